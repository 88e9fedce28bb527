"""Eq. (1) as one fused Triton kernel, without gradients, for CUDA devices.

A shift loop reads all features K*K times. Here each program computes a tile of locations: it reads
the features around the tile once, row by row, and multiplies each row by a band matrix of the
tile's own weights, which it makes in registers:

    out[site, c] += band[site, x] * row[x, c],    band[(i, j), x] = weights[i, j, (i - y, j - x)]

Most of a band is zero, but matrix units multiply those zeros faster than other units could leave
them out. Sums are fp32; fp32 itself is rounded to TF32 where PyTorch's convolutions are
(``torch.backends.cudnn.allow_tf32``). A feature that is not finite spoils its tile, not only what
its kernels reach.
"""

from __future__ import annotations

import os

import torch
import triton
import triton.language as tl
from torch import Tensor

#: Side of a tile of locations. With the 8 columns that a 9x9 kernel reaches beyond its 8 they make
#: the 16 columns, and with 8 rows the 64 locations, that Hopper's matrix units take at once.
TILE = tl.constexpr(8)

#: Whether Triton's interpreter runs the programs, on CPU tensors; it cannot multiply bf16.
INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")

#: The most channels of a tile whose sums fit into registers.
CHANNELS = {torch.float16: 256, torch.bfloat16: 256, torch.float32: 128}

#: Compiled once for all sizes: otherwise a frame of another size, such as a smaller one while load
#: is shed, would wait for the compiler.
SIDES = ["height", "width"]


def fused_convolution(features: Tensor, weights: Tensor, kernel: int) -> Tensor:
    """Features (N, C, H, W) in fp16, bf16 or fp32 and weights (N, K*K, H, W), as for Eq. (1).

    Weights may have another floating dtype; they are rounded to that of the features. Both should
    be channels_last, others are copied. The answer is channels_last.
    """
    features, weights = (x.permute(0, 2, 3, 1).contiguous() for x in (features, weights))
    out = torch.empty_like(features)
    batch, height, width, channels = features.shape
    block = min(CHANNELS[features.dtype], max(16, triton.next_power_of_2(channels)))
    tile: int = TILE.value
    tiles = triton.cdiv(height, tile) * triton.cdiv(width, tile)
    grid = (tiles, triton.cdiv(channels, block), batch)
    span = max(16, triton.next_power_of_2(tile + kernel - 1))
    sizes = {"K": kernel, "SPAN": span, "BLOCK": block}
    precision = "tf32" if torch.backends.cudnn.allow_tf32 else "ieee"
    with torch.cuda.device_of(features):
        _gather[grid](features, weights, out, height, width, channels, **sizes, PRECISION=precision)
    return out.permute(0, 3, 1, 2)


@triton.jit
def _add_product(left, right, total, PRECISION: tl.constexpr):
    if INTERPRETED:
        left, right = left.to(tl.float32), right.to(tl.float32)
    return tl.dot(left, right, total, input_precision=PRECISION)


@triton.jit(do_not_specialize=SIDES)
def _gather(
    features,
    weights,
    out,
    height,
    width,
    channels,
    K: tl.constexpr,
    SPAN: tl.constexpr,
    BLOCK: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """out[site, c] = sum over taps of weights[site, tap] * features[site - tap, c]."""
    across = tl.cdiv(width, TILE)
    top, left = tl.program_id(0) // across * TILE, tl.program_id(0) % across * TILE
    first = tl.program_id(2).to(tl.int64) * height * width  # of this image's locations
    i, j = top + tl.arange(0, TILE * TILE) // TILE, left + tl.arange(0, TILE * TILE) % TILE
    x = left - K // 2 + tl.arange(0, SPAN)
    c = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    here, in_block = (i < height) & (j < width), (c < channels)[None, :]
    # All that does not change from row to row: the loop moves scalar pointers only.
    column = tl.minimum(tl.maximum(x, 0), width - 1)  # the edge repeats
    cells = column[:, None] * channels + c[None, :]
    site = i * width + j
    v = j[:, None] - x[None, :] + K // 2
    taps = (site * (K * K) + (i + K // 2) * K)[:, None] + v
    reached = here[:, None] & (v >= 0) & (v < K)
    total = tl.zeros((TILE * TILE, BLOCK), tl.float32)
    for step in range(TILE + K - 1):
        y = top - K // 2 + step
        edge = tl.minimum(tl.maximum(y, 0), height - 1)
        row = tl.load(
            features + (first + edge * width) * channels + cells, mask=in_block, other=0.0
        )
        u = (i - y + K // 2)[:, None]
        ours = reached & (u >= 0) & (u < K)
        band = tl.load(weights + (first * (K * K) - y * K) + taps, mask=ours, other=0.0)
        total = _add_product(band.to(row.dtype), row, total, PRECISION)
    total = total.to(out.dtype.element_ty)
    own = out + first * channels + site[:, None] * channels + c[None, :]
    tl.store(own, total, mask=here[:, None] & in_block)
