"""Eq. (1) as one fused kernel for CPUs, compiled by numba: many times as fast as the shift loop.

The shift loop reads and writes all sums K*K times. Here those of some neighbouring locations and a
block of channels stay in vector registers until all K*K taps are added; neighbours share all
columns of features but one, so a column is loaded once for all of them. The K rows of features
that a row of locations reaches lie in a ring that fits into the L2 cache: each row is copied there
once, with its ends repeated. Sums are float32, in the order of the rows of features.

The innermost part is LLVM's own language: what numba makes of loops over channels writes the sums
to memory after every row of a kernel, and takes twice the time.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from llvmlite import ir
from llvmlite.binding import get_host_cpu_features
from numba.core import cgutils, types
from numba.extending import intrinsic
from torch import Tensor

from lowlat_seg_ros.network import machine_code


class Tile(NamedTuple):
    """What is summed at a time: ``VECTORS`` vectors of ``lanes`` floats of ``sites`` neighbours."""

    lanes: int
    sites: int


#: Vectors of channels in a block.
VECTORS = 4

#: 16 sums in the 32 registers of AVX-512; 8 in the 16 of AVX2, also for other processors.
WIDE, NARROW = Tile(16, 4), Tile(8, 2)

#: Features, weights and answer, each NHWC; the ring of rows; the sums of a tile.
SIGNATURE = "void(f4[:,:,:,::1], f4[:,:,:,::1], f4[:,:,:,::1], f4[:,:,::1], f4[:,::1])"


def compiled(kernel: int, tile: Tile | None = None) -> Callable[[Tensor, Tensor], Tensor]:
    """Eq. (1) for ``kernel`` x ``kernel`` weights, without gradients.

    The answer is a function of features (N, C, H, W) and weights (N, K*K, H, W), both float32 on
    the CPU and best channels_last; others are copied. It answers channels_last, on the calling
    thread alone and without the GIL. Raises what numba raises.
    """
    lanes, sites = tile or (WIDE if get_host_cpu_features().get("avx512f") else NARROW)
    block = VECTORS * lanes
    gather = machine_code.compiled(_gather(kernel, lanes, sites), SIGNATURE)

    def propagate(features: Tensor, weights: Tensor) -> Tensor:
        features, weights = _nhwc(features), _nhwc(weights)
        out = torch.empty_like(features)
        # Tensors begin at cache lines, as vectors should. Zeros, as the last block may be narrow.
        ring = torch.zeros(kernel, features.shape[2] + kernel + sites - 2, block)
        sums = torch.empty(sites, block)
        gather(*(x.numpy() for x in (features, weights, out, ring, sums)))
        return out.permute(0, 3, 1, 2)

    return propagate


def _nhwc(x: Tensor) -> Tensor:
    return x.detach().permute(0, 2, 3, 1).contiguous()


def _gather(kernel: int, lanes: int, sites: int) -> Callable[..., None]:
    """What is compiled, for these three constants."""
    block, half = VECTORS * lanes, kernel // 2

    def gather(features, weights, out, ring, sums):
        batch, height, width, channels = features.shape
        reached = np.empty(kernel, np.int64)  # addresses of rows in the ring
        near = np.empty(sites, np.int64)  # addresses of the neighbours' weights
        for n in range(batch):
            for begin in range(0, channels, block):
                count = min(block, channels - begin)
                rows = 0  # that were copied
                for i in range(height):
                    while rows < min(i + half + 1, height):
                        for x in range(ring.shape[1]):
                            column = min(max(x - half, 0), width - 1)
                            source = features[n, rows, column, begin : begin + count]
                            target = ring[rows % kernel, x]
                            for c in range(count):  # assigned whole it would take far longer
                                target[c] = source[c]
                        rows += 1
                    for u in range(kernel):
                        row = min(max(i + half - u, 0), height - 1)
                        reached[u] = ring[row % kernel].ctypes.data
                    for j in range(0, width, sites):
                        for s in range(sites):  # beyond the width the last location again
                            near[s] = weights[n, i, min(j + s, width - 1)].ctypes.data
                        _add_taps(kernel, lanes, sites, reached, near, sums, j)
                        for s in range(min(sites, width - j)):
                            target, source = out[n, i, j + s, begin : begin + count], sums[s]
                            for c in range(count):
                                target[c] = source[c]

    return gather


@intrinsic(prefer_literal=True)
def _add_taps(typing, kernel, lanes, sites, reached, near, sums, first):
    """Write the ``sums`` (sites, block) of all taps; ``kernel``, ``lanes``, ``sites``: constants.

    ``reached`` (kernel,): address of the features that each row of the kernels reaches; ``first``:
    the column there that the first location's last tap reaches. ``near`` (sites,): address of each
    location's weights (K, K).
    """
    sizes = (constant.literal_value for constant in (kernel, lanes, sites))
    signature = types.void(kernel, lanes, sites, reached, near, sums, first)
    return signature, partial(_emit, *sizes)


def _emit(kernel, lanes, sites, context, builder, signature, args):
    word, number, vector = ir.IntType(64), ir.FloatType(), ir.VectorType(ir.FloatType(), lanes)
    undefined, fused = ir.Constant(vector, ir.Undefined), ("contract",)
    everywhere = ir.Constant(ir.VectorType(ir.IntType(32), lanes), [0] * lanes)

    def array(which):
        return context.make_array(signature.args[which])(context, builder, args[which]).data

    def address(table, which):
        entry = builder.load(builder.gep(table, [which]))
        return builder.inttoptr(entry, number.as_pointer())

    def vector_at(base, offset):
        return builder.bitcast(builder.gep(base, [word(offset)]), vector.as_pointer())

    def broadcast(base, offset):
        value = builder.load(builder.gep(base, [word(offset)]))
        value = builder.insert_element(undefined, value, ir.IntType(32)(0))
        return builder.shuffle_vector(value, undefined, everywhere)

    # Nothing else has their addresses, so LLVM makes them registers.
    totals = [[cgutils.alloca_once(builder, vector) for _ in range(VECTORS)] for _ in range(sites)]
    for total in itertools.chain(*totals):
        builder.store(ir.Constant(vector, [0.0] * lanes), total)
    own = [address(array(4), word(s)) for s in range(sites)]
    column = builder.mul(args[6], word(VECTORS * lanes))
    with cgutils.for_range(builder, word(kernel)) as loop:
        row = builder.gep(address(array(3), loop.index), [column])
        weights = [builder.gep(w, [builder.mul(loop.index, word(kernel))]) for w in own]
        for x in range(kernel + sites - 1):
            places = (vector_at(row, (x * VECTORS + v) * lanes) for v in range(VECTORS))
            parts = [builder.load(place, align=4) for place in places]
            for s in range(max(0, x - kernel + 1), min(sites, x + 1)):
                # Eq. (1) has -v: a location's first column has its last weight.
                weight = broadcast(weights[s], kernel - 1 - (x - s))
                for total, part in zip(totals[s], parts, strict=True):
                    product = builder.fmul(part, weight, flags=fused)
                    builder.store(builder.fadd(builder.load(total), product, flags=fused), total)
    for place, total in enumerate(itertools.chain(*totals)):
        builder.store(builder.load(total), vector_at(array(5), place * lanes), align=4)
    return context.get_dummy_value()
