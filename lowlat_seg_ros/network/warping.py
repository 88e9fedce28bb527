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

#: Of the numba kernel: padded answers (rows + 3, (columns + 3) * lanes); flow (rows, columns, (x,
#: y)); sums (lanes); result (rows of cells, columns of cells, channels).
SIGNATURE = "void(f4[:,::1], f4[:,:,::1], f4[::1], f4[:,:,::1])"

#: Classes are padded to a multiple of it, a vector of AVX-512.
LANES = 16

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
def compiled(classes: int, points: int) -> Callable[[Tensor, Tensor], Tensor] | None:
    """:func:`warp` of one image, float32 on a CPU, compiled by numba; None without numba.

    PyTorch would rearrange the answers, warp them and rearrange them back, each a pass over memory
    and a copy into another layout: 3 ms on one thread at 360x480, ten times what this takes. The
    first call of a process takes a second or more.
    """
    lanes = -(-classes // LANES) * LANES
    kernel = compile_with_numba(
        _kernel(classes, points, lanes), SIGNATURE, "carrying answers will be slow", fastmath=True
    )
    if kernel is None:
        return None

    def warp(answers: Tensor, flow: Tensor) -> Tensor:
        values, moves = (x[0].permute(1, 2, 0).contiguous().numpy() for x in (answers, flow))
        height, width = moves.shape[:2]
        padded = np.zeros((height + 3, width + 3, lanes), np.float32)
        padded[1:-2, 1:-2, :classes] = values
        padded[0], padded[-2:] = padded[1], padded[-3]  # the edge is repeated
        padded[:, 0], padded[:, -2:] = padded[:, 1], padded[:, -3:-2]
        out = np.empty((height // points, width // points, classes * points**2), np.float32)
        kernel(padded.reshape(height + 3, -1), moves, np.empty(lanes, np.float32), out)
        return torch.from_numpy(out).permute(2, 0, 1).unsqueeze(0)  # NHWC in memory

    return warp


def _kernel(classes: int, points: int, lanes: int) -> Callable[..., None]:
    """What numba compiles, all three being constants; ``lanes``: classes with the padding.

    The answers are padded at the borders, where the edge repeats, and to ``lanes``, so that the 16
    taps of an answer lie at constant distances, and LLVM sums vectors of classes: a third of the
    time of a loop over as many classes as there are.
    """
    squared = points * points
    # In numba an integer and a float32 make a float64, which would halve the speed.
    zero, one, a = np.float32(0), np.float32(1), SHARPNESS
    a2, a3, a4 = np.float32(a + 2), np.float32(a + 3), np.float32(4 * a)
    a5, a8 = np.float32(5 * a), np.float32(8 * a)
    second, third, fourth = lanes, 2 * lanes, 3 * lanes

    def kernel(padded: Any, flow: Any, sums: Any, out: Any) -> None:
        height, width = flow.shape[:2]
        last_row, last_column = np.float32(height - 1), np.float32(width - 1)
        for row in range(height):
            for column in range(width):
                y = min(max(np.float32(row) + flow[row, column, 1], zero), last_row)
                x = min(max(np.float32(column) + flow[row, column, 0], zero), last_column)
                i, j = int(y), int(x)
                t = y - np.float32(i)
                far, near = one + t, one - t
                y0 = ((a * far - a5) * far + a8) * far - a4
                y1, y2 = (a2 * t - a3) * t * t + one, (a2 * near - a3) * near * near + one
                y3 = one - y0 - y1 - y2
                t = x - np.float32(j)
                far, near = one + t, one - t
                x0 = ((a * far - a5) * far + a8) * far - a4
                x1, x2 = (a2 * t - a3) * t * t + one, (a2 * near - a3) * near * near + one
                x3 = one - x0 - x1 - x2
                start, end = j * lanes, (j + 4) * lanes
                r0, r1 = padded[i, start:end], padded[i + 1, start:end]
                r2, r3 = padded[i + 2, start:end], padded[i + 3, start:end]
                for k in range(lanes):
                    m, n, p = k + second, k + third, k + fourth
                    c0 = y0 * r0[k] + y1 * r1[k] + y2 * r2[k] + y3 * r3[k]
                    c1 = y0 * r0[m] + y1 * r1[m] + y2 * r2[m] + y3 * r3[m]
                    c2 = y0 * r0[n] + y1 * r1[n] + y2 * r2[n] + y3 * r3[n]
                    c3 = y0 * r0[p] + y1 * r1[p] + y2 * r2[p] + y3 * r3[p]
                    sums[k] = x0 * c0 + x1 * c1 + x2 * c2 + x3 * c3
                target = out[row // points, column // points]
                point = (row % points) * points + column % points
                for k in range(classes):
                    target[k * squared + point] = sums[k]

    return kernel


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
    plain = single and answers.dtype == torch.float32
    kernel = compiled(answers.shape[1], points) if plain else None
    if kernel is not None:
        return kernel(answers, flow)
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
