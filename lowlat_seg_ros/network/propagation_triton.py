"""Eq. (1) as one fused Triton kernel, forward and backward, for CUDA devices.

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
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from lowlat_seg_ros.network.propagation import unpad_nhwc

#: Side of a tile of locations. With the 8 columns that a 9x9 kernel reaches beyond its 8 they make
#: the 16 columns, and with 8 rows the 64 locations, that Hopper's matrix units take at once.
TILE = tl.constexpr(8)

#: Whether Triton's interpreter runs the programs, on CPU tensors; it cannot multiply bf16.
INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")

#: The most channels of a tile whose sums fit into registers.
CHANNELS = {torch.float16: 256, torch.bfloat16: 256, torch.float32: 128}

#: Channels that are summed over at a time, as many as fit into any device's shared memory.
SUMMED = 64

#: Compiled once for all sizes: otherwise a frame of another size, such as a smaller one while load
#: is shed, would wait for the compiler.
SIDES = ["height", "width"]


class FusedSpatiallyVariantConvolution(torch.autograd.Function):
    """Features (N, C, H, W) in fp16, bf16 or fp32 and weights (N, K*K, H, W), as for Eq. (1).

    Weights may have another floating dtype; they are rounded to that of the features. Both should
    be channels_last, others are copied. The answer is channels_last.
    """

    @staticmethod
    def forward(ctx: Any, features: Tensor, weights: Tensor, kernel: int) -> Tensor:
        """The result (N, C, H, W), channels_last."""
        features, weights = _nhwc(features), _nhwc(weights)
        ctx.save_for_backward(features, weights)
        ctx.kernel = kernel
        out = torch.empty_like(features)
        most = CHANNELS[features.dtype]
        _launch(_gather, out.shape, features.shape, (features, weights, out), kernel, most)
        return out.permute(0, 3, 1, 2)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        """Gradients of features and weights."""
        (features, weights), kernel = ctx.saved_tensors, ctx.kernel
        grad = _nhwc(grads[0])
        batch, height, width, channels = features.shape
        padded = (batch, height + kernel - 1, width + kernel - 1, channels)
        grad_padded = torch.empty(padded, dtype=torch.float32, device=features.device)
        most = CHANNELS[features.dtype]
        _launch(_scatter, padded, features.shape, (grad, weights, grad_padded), kernel, most)
        grad_features = unpad_nhwc(grad_padded, kernel).to(features.dtype)
        grad_weights = torch.empty_like(weights)
        sums = (batch, height, width, 1)  # each over all channels
        _launch(_correlate, sums, features.shape, (features, grad, grad_weights), kernel, SUMMED)
        return grad_features, grad_weights.permute(0, 3, 1, 2), None


def _nhwc(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1).contiguous()


def _launch(
    program: Any,
    out: tuple[int, ...],
    shape: tuple[int, ...],
    tensors: tuple[Tensor, Tensor, Tensor],
    kernel: int,
    most: int,
) -> None:
    """One program for each tile of ``out`` (N, H, W, C), of ``most`` channels at most.

    ``shape`` is that of the features.
    """
    _, height, width, channels = shape
    block = min(most, max(16, triton.next_power_of_2(channels)))
    tile: int = TILE.value
    tiles = triton.cdiv(out[1], tile) * triton.cdiv(out[2], tile)
    grid = (tiles, triton.cdiv(out[3], block), out[0])
    span = max(16, triton.next_power_of_2(tile + kernel - 1))
    sizes = {"K": kernel, "SPAN": span, "BLOCK": block}
    precision = "tf32" if torch.backends.cudnn.allow_tf32 else "ieee"
    with torch.cuda.device_of(tensors[0]):
        program[grid](*tensors, height, width, channels, **sizes, PRECISION=precision)


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


@triton.jit(do_not_specialize=SIDES)
def _scatter(
    grad,
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
    """out[cell, c] = sum over taps of weights[cell + tap, tap] * grad[cell + tap, c], padded."""
    across = tl.cdiv(width + K - 1, TILE)
    top, left = tl.program_id(0) // across * TILE, tl.program_id(0) % across * TILE
    first = tl.program_id(2).to(tl.int64) * height * width
    y, x = top + tl.arange(0, TILE * TILE) // TILE, left + tl.arange(0, TILE * TILE) % TILE
    j = left - (K - 1) + tl.arange(0, SPAN)
    c = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    there, in_block = (j >= 0) & (j < width), (c < channels)[None, :]
    sites = j[:, None] * channels + c[None, :]
    v = j[None, :] - x[:, None] + K - 1
    taps = (j * (K * K))[None, :] - ((y - (K - 1)) * K)[:, None] + v
    reached = (v >= 0) & (v < K)
    total = tl.zeros((TILE * TILE, BLOCK), tl.float32)
    for step in range(TILE + K - 1):
        i = top - (K - 1) + step
        line = tl.full((SPAN,), i, tl.int32)
        inside = there & (line >= 0) & (line < height)
        known = inside[:, None] & in_block
        row = tl.load(grad + (first + i * width) * channels + sites, mask=known, other=0.0)
        u = (i - y + K - 1)[:, None]
        ours = reached & inside[None, :] & (u >= 0) & (u < K)
        band = tl.load(weights + (first + i * width) * (K * K) + i * K + taps, mask=ours, other=0.0)
        total = _add_product(band.to(row.dtype), row, total, PRECISION)
    here = (y < height + K - 1) & (x < width + K - 1)
    padded = tl.program_id(2).to(tl.int64) * (height + K - 1) * (width + K - 1)
    cell = y * (width + K - 1) + x
    own = out + padded * channels + cell[:, None] * channels + c[None, :]
    tl.store(own, total.to(out.dtype.element_ty), mask=here[:, None] & in_block)


@triton.jit(do_not_specialize=SIDES)
def _correlate(
    features,
    grad,
    out,
    height,
    width,
    channels: tl.constexpr,
    K: tl.constexpr,
    SPAN: tl.constexpr,
    BLOCK: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """out[site, tap] = sum over c of grad[site, c] * features[site - tap, c]."""
    across = tl.cdiv(width, TILE)
    top, left = tl.program_id(0) // across * TILE, tl.program_id(0) % across * TILE
    first = tl.program_id(2).to(tl.int64) * height * width
    i, j = top + tl.arange(0, TILE * TILE) // TILE, left + tl.arange(0, TILE * TILE) % TILE
    x = left - K // 2 + tl.arange(0, SPAN)
    here = (i < height) & (j < width)
    column = tl.minimum(tl.maximum(x, 0), width - 1)
    site = i * width + j
    v = j[:, None] - x[None, :] + K // 2
    taps = (site * (K * K) + (i + K // 2) * K)[:, None] + v
    reached = here[:, None] & (v >= 0) & (v < K)
    for step in range(TILE + K - 1):
        y = top - K // 2 + step
        edge = tl.minimum(tl.maximum(y, 0), height - 1)
        total = tl.zeros((TILE * TILE, SPAN), tl.float32)
        # Up to a constant: interpreters of Triton 3.6 cannot count to anything else.
        for start in range(0, channels, BLOCK):
            c = start + tl.arange(0, BLOCK)
            cells = column[None, :] * channels + c[:, None]
            known = (c < channels)[:, None]
            row = tl.load(
                features + (first + edge * width) * channels + cells, mask=known, other=0.0
            )
            own = grad + first * channels + site[:, None] * channels + c[None, :]
            known = here[:, None] & (c < channels)[None, :]
            total = _add_product(tl.load(own, mask=known, other=0.0), row, total, PRECISION)
        u = (i - y + K // 2)[:, None]
        ours = reached & (u >= 0) & (u < K)
        total_out = total.to(out.dtype.element_ty)
        tl.store(out + (first * (K * K) - y * K) + taps, total_out, mask=ours)
