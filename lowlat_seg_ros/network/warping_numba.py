"""Answers warped by optical flow, compiled by numba for a CPU.

PyTorch would arrange the answers, warp them and arrange them back, each a pass over memory and a
copy into another layout: 3 ms on one thread at 360x480, of which a tenth is left here.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from lowlat_seg_ros.network import machine_code

#: Answers as rows, columns, channels; flow as rows, columns, (x, y); points a side; answers, moved.
SIGNATURE = "void(f4[:,:,::1], f4[:,:,::1], i8, f4[:,:,::1])"


def compiled() -> Callable[[Tensor, Tensor, int], Tensor]:
    """:func:`~.warping.warp` of one image, float32 in channels_last on a CPU, on one thread.

    Raises what numba raises.
    """
    kernel = machine_code.compiled(_warp, SIGNATURE, fastmath=True)

    def warp(cells: Tensor, flow: Tensor, points: int) -> Tensor:
        rows, moves = (x[0].permute(1, 2, 0).contiguous().numpy() for x in (cells, flow))
        out = np.empty_like(rows)
        kernel(rows, moves, points, out)
        return torch.from_numpy(out).permute(2, 0, 1).unsqueeze(0)  # NHWC in memory

    return warp


def _warp(cells, flow, points, out):
    """What is compiled."""
    height, width, channels = cells.shape
    squared, mask = points * points, points - 1
    shift = 0  # points are a power of two, and divisions slow
    while 1 << shift < points:
        shift += 1
    last_row, last_column = points * height - 1, points * width - 1
    for row in range(points * height):
        for column in range(points * width):
            y = np.float32(row) + flow[row, column, 1]
            x = np.float32(column) + flow[row, column, 0]
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
