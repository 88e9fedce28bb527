"""Carrying the full network's answers by optical flow, more finely than a cell (beyond the paper).

Eq. (1) moves whole cells of 8x8 pixels: its weights are shared over channels, so a thing keeps its
place within the cell, and one of a cell's width is smeared by the first few pixels that it moves.
So the full network's answers, several per cell, are warped by dense optical flow (DIS, Kroeger et
al., ECCV 2016, in OpenCV) between the frame that Sh has seen and the current one. They are warped
once, however many key frames lie between the two. Where the warped image differs from the current
one, the flow is wrong or the place was hidden, and the gate weighs that
(:class:`.gate.TrustGate`).
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lowlat_seg_ros.network.layers import compile_with_numba

#: Pixels of the network's input per pixel of the luma that flow is computed on, per side.
LUMA_STRIDE = 2

#: OpenCV's flow refuses images that are smaller; images of a few pixels get a border.
LEAST_SIDE = 12

#: Of the numba kernel: answers (rows, columns, classes); flow (rows, columns, (x, y)); points per
#: cell's side; result (rows of cells, columns of cells, channels).
SIGNATURE = "void(f4[:,:,::1], f4[:,:,::1], i8, f4[:,:,::1])"

#: Parameter of the cubic kernel in OpenCV and PyTorch (Keys 1981).
SHARPNESS = np.float32(-0.75)

_FLOWS = threading.local()


@dataclass(frozen=True, eq=False)
class Motion:
    """Where each answer of the current frame has come from, and how far the images differ.

    ``flow`` (1, 2, r*H/8, r*W/8) float32: (x, y) in answers, from a point of the current frame to
    where it was. ``residual`` (1, r*r, H/8, W/8) float32: difference between the current luma and
    the warped one, as a share of 255, for each answer of a cell.
    """

    flow: Tensor
    residual: Tensor


def luma_of(pixels: np.ndarray) -> np.ndarray:
    """RGB uint8 (H, W, 3), sides multiples of 8 -> brightness uint8 (H/2, W/2)."""
    height, width = pixels.shape[:2]
    size = (width // LUMA_STRIDE, height // LUMA_STRIDE)
    return cv2.resize(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), size, interpolation=cv2.INTER_AREA)


def motion(then: np.ndarray, now: np.ndarray, points: int) -> Motion:
    """Dense flow between two frames, by their :func:`luma_of`; ``points`` answers per cell's side.

    On the CPU, on as many threads as OpenCV has.
    """
    height, width = (points * LUMA_STRIDE * side // 8 for side in now.shape)
    flow = _flow(then, now)  # in pixels of luma
    scale = width / now.shape[1]
    flow = cv2.resize(flow, (width, height), interpolation=cv2.INTER_AREA) * scale
    small_then, small_now = (
        cv2.resize(luma, (width, height), interpolation=cv2.INTER_AREA) for luma in (then, now)
    )
    columns, rows = _grid(height, width)
    warped = cv2.remap(
        small_then,
        flow[..., 0] + columns,
        flow[..., 1] + rows,
        cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REPLICATE,
    )
    residual = torch.from_numpy(cv2.absdiff(small_now, warped)).float().div_(255)
    return Motion(
        torch.from_numpy(flow).permute(2, 0, 1).unsqueeze(0),  # NHWC in memory
        F.pixel_unshuffle(residual.view(1, 1, height, width), points),
    )


def _flow(then: np.ndarray, now: np.ndarray) -> np.ndarray:
    height, width = now.shape
    below, right = (max(LEAST_SIDE - side, 0) for side in now.shape)
    if below or right:
        then, now = (
            cv2.copyMakeBorder(luma, 0, below, 0, right, cv2.BORDER_REPLICATE)
            for luma in (then, now)
        )
    # The third argument would be an initial flow.
    flow: np.ndarray = _dis().calc(now, then, None)  # type: ignore[call-overload]
    return flow[:height, :width]


def _dis() -> cv2.DISOpticalFlow:
    """The calling thread's own estimator, since each owns the buffers that it works on."""
    dis: cv2.DISOpticalFlow | None = getattr(_FLOWS, "dis", None)
    if dis is None:
        dis = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST)
        dis.setFinestScale(1)  # the preset's 2 halves the time and costs 0.3 mIoU
        dis.setGradientDescentIterations(40)  # the preset's 12 save 0.5 ms and cost 0.2 mIoU
        _FLOWS.dis = dis
    return dis


@functools.lru_cache(maxsize=4)
def _grid(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    columns, rows = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype="f4"))
    return columns, rows


@functools.cache
def compiled() -> Callable[[Tensor, Tensor, int], Tensor] | None:
    """:func:`warp` of one image, float32 on a CPU, compiled by numba; None without numba.

    PyTorch would rearrange the answers, warp them and rearrange them back, each a pass over memory
    and a copy into another layout: 3 ms on one thread at 360x480, ten times what this takes. The
    first call of a process takes a second or more.
    """

    kernel = compile_with_numba(_warp, SIGNATURE, "carrying answers will be slow", fastmath=True)
    if kernel is None:
        return None

    def warp(answers: Tensor, flow: Tensor, points: int) -> Tensor:
        rows, moves = (x[0].permute(1, 2, 0).contiguous().numpy() for x in (answers, flow))
        height, width, classes = rows.shape
        out = np.empty((height // points, width // points, classes * points**2), np.float32)
        kernel(rows, moves, points, out)
        return torch.from_numpy(out).permute(2, 0, 1).unsqueeze(0)  # NHWC in memory

    return warp


def _warp(answers: Any, flow: Any, points: int, out: Any) -> None:
    height, width, classes = answers.shape
    squared = points * points
    # In numba an integer and a float32 make a float64, which would halve the speed.
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


def warp(answers: Tensor, flow: Tensor, points: int) -> Tensor:
    """Answers of an earlier frame, moved by ``flow``: bicubic, and the edge repeats at the border.

    ``answers``: logits (N, classes, points*h, points*w); ``flow`` (N, 2, points*h, points*w), see
    :class:`Motion`. Returns them (N, classes*points^2, h, w), as ``SubPixel.cells`` of
    :mod:`.fast_track` has them, to be added to others. There is no gradient.
    """
    if answers.shape[2:] != flow.shape[2:]:  # the compiled kernel would write beyond its output
        raise ValueError(
            f"answers are {tuple(answers.shape[2:])} and flow is {tuple(flow.shape[2:])}; both "
            "must have the size of the answers"
        )
    single = answers.device.type == "cpu" and len(answers) == 1 and not answers.requires_grad
    kernel = compiled() if single and answers.dtype == torch.float32 else None
    if kernel is not None:
        return kernel(answers, flow, points)
    height, width = answers.shape[2:]
    rows = torch.arange(height, dtype=torch.float32, device=answers.device).view(1, -1, 1)
    columns = torch.arange(width, dtype=torch.float32, device=answers.device).view(1, 1, -1)
    # The edge is repeated by staying within it; grid_sample's border is that of single taps.
    x = (2 * (columns + flow[:, 0]).clamp(0, width - 1) + 1) / width - 1
    y = (2 * (rows + flow[:, 1]).clamp(0, height - 1) + 1) / height - 1
    grid = torch.stack([x, y], dim=-1)
    # Linear interpolation would smear a pole over its neighbours: 0.4 mIoU.
    warped = F.grid_sample(
        answers.float(), grid, mode="bicubic", padding_mode="border", align_corners=False
    )
    cells = F.pixel_unshuffle(warped, points).to(answers.dtype)
    return cells.contiguous(memory_format=torch.channels_last)
