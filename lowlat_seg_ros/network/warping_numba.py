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

#: Answers as rows, columns, classes; flow as rows, columns, (x, y); points a side; the cells.
SIGNATURE = "void(f4[:,:,::1], f4[:,:,::1], i8, f4[:,:,::1])"
#: Of the cubic's family, as OpenCV and PyTorch have it (Keys 1981).
SHARPNESS = np.float32(-0.75)


def compiled() -> Callable[[Tensor, Tensor, int], Tensor]:
    """:func:`~.warping.warp` of one image, float32 in channels_last on a CPU, on one thread.

    Raises what numba raises.
    """
    kernel = machine_code.compiled(_warp, SIGNATURE, fastmath=True)

    def warp(answers: Tensor, flow: Tensor, points: int) -> Tensor:
        rows, moves = (x[0].permute(1, 2, 0).contiguous().numpy() for x in (answers, flow))
        height, width, classes = rows.shape
        out = np.empty((height // points, width // points, classes * points**2), np.float32)
        kernel(rows, moves, points, out)
        return torch.from_numpy(out).permute(2, 0, 1).unsqueeze(0)  # NHWC in memory

    return warp


def _warp(answers, flow, points, out):
    """What is compiled."""
    height, width, classes = answers.shape
    squared = points * points
    # Numba makes a float64 of an integer and a float32, which would halve the speed.
    zero, one, two, three = np.float32(0), np.float32(1), np.float32(2), np.float32(3)
    a, a4, a5, a8 = SHARPNESS, 4 * SHARPNESS, 5 * SHARPNESS, 8 * SHARPNESS
    a4, a5, a8 = np.float32(a4), np.float32(a5), np.float32(a8)
    last_row, last_column = np.float32(height - 1), np.float32(width - 1)
    weights_y, weights_x = np.empty(4, np.float32), np.empty(4, np.float32)
    sums = np.empty(classes, np.float32)
    for row in range(height):
        for column in range(width):
            y = min(max(np.float32(row) + flow[row, column, 1], zero), last_row)
            x = min(max(np.float32(column) + flow[row, column, 0], zero), last_column)
            y0, x0 = int(y), int(x)
            for weights, t in ((weights_y, y - np.float32(y0)), (weights_x, x - np.float32(x0))):
                near, far = one - t, t + one
                weights[0] = ((a * far - a5) * far + a8) * far - a4
                weights[1] = ((a + two) * t - (a + three)) * t * t + one
                weights[2] = ((a + two) * near - (a + three)) * near * near + one
                weights[3] = one - weights[0] - weights[1] - weights[2]
            sums[:] = zero
            for i in range(4):
                line = answers[min(max(y0 + i - 1, 0), height - 1)]
                a0, a1 = line[max(x0 - 1, 0)], line[x0]
                a2, a3 = line[min(x0 + 1, width - 1)], line[min(x0 + 2, width - 1)]
                w0, w1 = weights_y[i] * weights_x[0], weights_y[i] * weights_x[1]
                w2, w3 = weights_y[i] * weights_x[2], weights_y[i] * weights_x[3]
                for k in range(classes):
                    sums[k] += w0 * a0[k] + w1 * a1[k] + w2 * a2[k] + w3 * a3[k]
            target = out[row // points, column // points]
            point = (row % points) * points + column % points
            for k in range(classes):
                target[k * squared + point] = sums[k]
