"""Bilinear upsampling by a whole factor and arg max as one kernel for CPUs, compiled by numba.

Between two neighbouring rows of logits, and likewise between two columns, lie ``factor`` pixels,
whose weights are the same everywhere. So a row of pixels is one sum of two rows of logits; then,
for each of the ``factor`` places between columns, the running maximum over the classes of many
neighbouring gaps stays in vector registers, and nothing but ids is written. The whole takes less
than a fifth of the time of class after class, as that reads and writes the maxima each time.

The innermost part is LLVM's own language, as in :mod:`~lowlat_seg_ros.network.propagation_numba`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
from llvmlite import ir
from llvmlite.binding import get_host_cpu_features
from numba.core import cgutils, types
from numba.extending import intrinsic, register_jitable

from lowlat_seg_ros.network import machine_code

#: Vectors of gaps whose maxima are in registers at a time.
VECTORS = 4

#: Floats of a vector: of AVX-512; of AVX2, also for other processors.
WIDE, NARROW = 16, 8

#: Logits of any layout; weights; two rows of logits; a row of sums; ids by place; a row; the mask.
SIGNATURE = "void(f4[:,:,:], f4[::1], f4[:,:,::1], f4[:,::1], u1[:,::1], u1[::1], u1[:,::1])"


def compiled(lanes: int | None = None) -> Callable[[np.ndarray, int], np.ndarray]:
    """Upsampling and arg max, with vectors of ``lanes`` floats.

    The answer is a function of logits (classes, h, w), float32 and of any layout, and the factor f
    >= 1, to ids (f*h, f*w), uint8. It runs on the calling thread alone and without the GIL. Raises
    what numba raises.
    """
    lanes = lanes or (WIDE if get_host_cpu_features().get("avx512f") else NARROW)
    block = VECTORS * lanes
    upsample = machine_code.compiled(_upsample(lanes), SIGNATURE)

    def arg_max(logits: np.ndarray, factor: int) -> np.ndarray:
        classes, height, width = logits.shape
        gaps = -(-(width + 1) // block) * block
        # Zeros, as what no logit is copied to is computed with.
        near = np.zeros((2, classes, gaps + 1), np.float32)
        sums, ids = np.empty_like(near[0]), np.empty((factor, gaps), np.uint8)
        line = np.empty(factor * (width + 1), np.uint8)
        mask = np.empty((factor * height, factor * width), np.uint8)
        # Pixel centres are at half-integers: with an even factor none has a logit's own place.
        places = (np.arange(factor, dtype=np.float32) + (1 - factor % 2) / 2) / factor
        upsample(logits, places, near, sums, ids, line, mask)
        return mask

    return arg_max


def _upsample(lanes: int) -> Callable[..., None]:
    """What is compiled. A gap ends at the row, or column, of its number; the edges repeat."""
    block = VECTORS * lanes

    def upsample(logits, weights, near, sums, ids, line, mask):
        classes, height, width = logits.shape
        factor = len(weights)
        before = (factor + 1) // 2  # pixels of the first gap that lie outside
        total = sums.reshape(-1)
        for gap in range(height + 1):
            row, target = min(gap, height - 1), near[gap % 2]
            for x in range(width):
                for c in range(classes):
                    target[c, x + 1] = logits[c, row, x]
            for c in range(classes):
                target[c, 0], target[c, width + 1] = target[c, 1], target[c, width]
            lower = target.reshape(-1)
            upper = near[1 - gap % 2].reshape(-1) if gap else lower
            for place in range(factor):
                y = gap * factor + place - before
                if y < 0 or y >= len(mask):
                    continue
                weight = weights[place]
                rest = np.float32(1) - weight
                for i in range(len(total)):
                    total[i] = rest * upper[i] + weight * lower[i]
                for p in range(factor):
                    for first in range(0, width + 1, block):
                        _find_largest(lanes, sums, first, weights[p], ids[p])
                # Of a factor that it knows LLVM makes a few instructions for many ids.
                if factor == 4:
                    _interleave(ids, 4, line)
                elif factor == 8:
                    _interleave(ids, 8, line)
                else:
                    _interleave(ids, factor, line)
                for x in range(mask.shape[1]):
                    mask[y, x] = line[before + x]

    return upsample


@register_jitable(inline="always")
def _interleave(ids, factor, line):
    for x in range(len(line) // factor):
        for p in range(factor):
            line[x * factor + p] = ids[p, x]


@intrinsic(prefer_literal=True)
def _find_largest(typing, lanes, sums, first, weight, ids):
    """Write the ``ids`` (gaps,) of a block of gaps from ``first`` on; ``lanes``: a constant.

    ``sums`` (classes, gaps + 1): logits of a row; ``weight``: that of a gap's right end.
    """
    signature = types.void(lanes, sums, first, weight, ids)
    return signature, partial(_emit, lanes.literal_value)


def _emit(lanes, context, builder, signature, args):
    word, index, number = ir.IntType(64), ir.IntType(32), ir.FloatType()
    floats, indices, octets = (ir.VectorType(t, lanes) for t in (number, index, ir.IntType(8)))
    fused = ("contract",)

    def array(which):
        return context.make_array(signature.args[which])(context, builder, args[which])

    def vector_at(base, offset, kind):
        return builder.bitcast(builder.gep(base, [word(offset)]), kind.as_pointer())

    def everywhere(value, kind):
        undefined = ir.Constant(kind, ir.Undefined)
        vector = builder.insert_element(undefined, value, index(0))
        return builder.shuffle_vector(vector, undefined, ir.Constant(indices, [0] * lanes))

    rows = array(1)
    classes, stride = cgutils.unpack_tuple(builder, rows.shape)
    start, out = (builder.gep(x.data, [args[2]]) for x in (rows, array(4)))
    right = everywhere(args[3], floats)
    left = everywhere(builder.fsub(number(1.0), args[3]), floats)
    # Nothing else has their addresses, so LLVM makes them registers.
    best, ids = (
        [cgutils.alloca_once(builder, kind) for _ in range(VECTORS)] for kind in (floats, indices)
    )
    for largest, own in zip(best, ids, strict=True):
        builder.store(ir.Constant(floats, [float("-inf")] * lanes), largest)
        builder.store(ir.Constant(indices, [0] * lanes), own)
    with cgutils.for_range(builder, classes) as loop:
        row = builder.gep(start, [builder.mul(loop.index, stride)])
        this = everywhere(builder.trunc(loop.index, index), indices)
        for v, (largest, own) in enumerate(zip(best, ids, strict=True)):
            ends = (vector_at(row, v * lanes + end, floats) for end in (0, 1))
            a, b = (builder.load(end, align=4) for end in ends)
            value = builder.fadd(
                builder.fmul(a, left, flags=fused), builder.fmul(b, right, flags=fused), flags=fused
            )
            # Ordered: false of NaN, which is never the largest.
            above = builder.fcmp_ordered(">", value, builder.load(largest))
            builder.store(builder.select(above, value, builder.load(largest)), largest)
            builder.store(builder.select(above, this, builder.load(own)), own)
    for v, own in enumerate(ids):
        place = vector_at(out, v * lanes, octets)
        builder.store(builder.trunc(builder.load(own), octets), place, align=1)
    return context.get_dummy_value()
