"""Answers carried more finely than a cell, compiled by numba for a CPU.

PyTorch would arrange the answers, warp them and arrange them back, each a pass over memory and a
copy into another layout: 3 ms on one thread at 360x480, of which a tenth is left here.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from lowlat_seg_ros.network import machine_code

#: Answers and weights as rows, columns, channels; how far each weight moves, in points, down and
#: right; points a side; displacements; answers, moved.
SIGNATURE = "void(f4[:,:,::1], f4[:,:,::1], f4[::1], f4[::1], i8, f4[:,:,::1], f4[:,:,::1])"


def compiled() -> Callable[[Tensor, Tensor, int], Tensor]:
    """:func:`~.fine.move` of one image, float32 in channels_last on a CPU, on one thread.

    Raises what numba raises.
    """
    kernel = machine_code.compiled(_move, SIGNATURE, fastmath=True)

    def move(cells: Tensor, weights: Tensor, points: int) -> Tensor:
        rows, kernels = (x[0].permute(1, 2, 0).contiguous().numpy() for x in (cells, weights))
        side = round(weights.shape[1] ** 0.5)
        steps = points * (np.arange(side, dtype=np.float32) - side // 2)
        taps = np.repeat(steps, side), np.tile(steps, side)
        out, shifts = np.empty_like(rows), np.empty((*rows.shape[:2], 2), np.float32)
        kernel(rows, kernels, *taps, points, shifts, out)
        return torch.from_numpy(out).permute(2, 0, 1).unsqueeze(0)  # NHWC in memory

    return move


def _move(cells, weights, downs, rights, points, shifts, out):
    """What is compiled."""
    height, width, channels = cells.shape
    squared, mask = points * points, points - 1
    shift = 0  # points are a power of two, and divisions slow
    while 1 << shift < points:
        shift += 1
    scale = np.float32(1) / np.float32(points)
    for i in range(height):
        for j in range(width):
            kernel, down, right = weights[i, j], np.float32(0), np.float32(0)
            for tap in range(len(downs)):
                down += kernel[tap] * downs[tap]
                right += kernel[tap] * rights[tap]
            shifts[i, j, 0], shifts[i, j, 1] = down, right
    last_row, last_column = points * height - 1, points * width - 1
    for row in range(points * height):
        # Where the point lies among the cells' centres, as F.interpolate has it.
        at = max((np.float32(row) + np.float32(0.5)) * scale - np.float32(0.5), np.float32(0))
        i0 = int(at)
        i1, fi = min(i0 + 1, height - 1), at - np.float32(i0)
        for column in range(points * width):
            at = max(
                (np.float32(column) + np.float32(0.5)) * scale - np.float32(0.5), np.float32(0)
            )
            j0 = int(at)
            j1, fj = min(j0 + 1, width - 1), at - np.float32(j0)
            y = np.float32(row)
            x = np.float32(column)
            for i, wi in ((i0, np.float32(1) - fi), (i1, fi)):
                for j, wj in ((j0, np.float32(1) - fj), (j1, fj)):
                    y -= wi * wj * shifts[i, j, 0]
                    x -= wi * wj * shifts[i, j, 1]
            y = min(max(y, np.float32(0)), np.float32(last_row))
            x = min(max(x, np.float32(0)), np.float32(last_column))
            y0, x0 = int(y), int(x)
            y1, x1 = min(y0 + 1, last_row), min(x0 + 1, last_column)
            fy, fx = y - np.float32(y0), x - np.float32(x0)
            w00 = (np.float32(1) - fy) * (np.float32(1) - fx)
            w01, w10, w11 = (np.float32(1) - fy) * fx, fy * (np.float32(1) - fx), fy * fx
            a, b = cells[y0 >> shift, x0 >> shift], cells[y0 >> shift, x1 >> shift]
            c, d = cells[y1 >> shift, x0 >> shift], cells[y1 >> shift, x1 >> shift]
            # Which point of its cell each of them is.
            pa, pb = ((y0 & mask) << shift) + (x0 & mask), ((y0 & mask) << shift) + (x1 & mask)
            pc, pd = ((y1 & mask) << shift) + (x0 & mask), ((y1 & mask) << shift) + (x1 & mask)
            target = out[row >> shift, column >> shift]
            pt = ((row & mask) << shift) + (column & mask)
            for k in range(0, channels, squared):
                target[pt + k] = (
                    w00 * a[pa + k] + w01 * b[pb + k] + w10 * c[pc + k] + w11 * d[pd + k]
                )
