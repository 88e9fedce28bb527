"""Carrying the full network's answers by optical flow, more finely than a cell (beyond the paper).

Eq. (1) moves whole cells of 8x8 pixels: its weights are shared over channels, so what lies within a
cell, which channels tell, stays where it is within it. A thing of a cell's width is smeared by the
first few pixels that it moves. So the full network's answers, several per cell, are warped by dense
optical flow (DIS, Kroeger et al., ECCV 2016, as OpenCV has it) between the frame that Sh has seen
and the current one. They are warped once, however many key frames lie between the two. Where the
warped image differs from the current one, the flow is wrong, or the place was hidden: the gate is
told (:mod:`trust`).
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lowlat_seg_ros.network import machine_code

#: Pixels of the network's input per pixel of the luma that flow is computed on, per side.
LUMA_STRIDE = 2

_FLOWS = threading.local()


@dataclass(frozen=True, eq=False)
class Motion:
    """Where each answer of the current frame has come from, and how far the pictures differ.

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
    # In pixels of luma. A flow that is given would be where the search begins.
    flow = _dis().calc(now, then, None)  # type: ignore[call-overload]
    scale = width / now.shape[1]
    flow = cv2.resize(flow, (width, height), interpolation=cv2.INTER_AREA) * scale
    small_then, small_now = (
        cv2.resize(luma, (width, height), interpolation=cv2.INTER_AREA) for luma in (then, now)
    )
    columns, rows = _grid(height, width)
    warped = cv2.remap(
        small_then, flow[..., 0] + columns, flow[..., 1] + rows, cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REPLICATE,
    )  # fmt: skip
    residual = torch.from_numpy(cv2.absdiff(small_now, warped)).float().div_(255)
    return Motion(
        torch.from_numpy(flow).permute(2, 0, 1).unsqueeze(0),  # NHWC in memory
        F.pixel_unshuffle(residual.view(1, 1, height, width), points),
    )


def _dis() -> cv2.DISOpticalFlow:
    """One for each thread, as it owns the buffers that it works on."""
    dis: cv2.DISOpticalFlow | None = getattr(_FLOWS, "dis", None)
    if dis is None:
        dis = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST)
        dis.setFinestScale(1)  # the preset's 2 halves the time and costs 0.3 mIoU
        _FLOWS.dis = dis
    return dis


@functools.lru_cache(maxsize=4)
def _grid(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    columns, rows = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype="f4"))
    return columns, rows


@functools.cache
def compiled() -> Callable[[Tensor, Tensor, int], Tensor] | None:
    """The numba kernel for one image on a CPU; None without numba.

    The first call of a process takes a second or more; call it before that matters.
    """

    def make() -> Callable[[Tensor, Tensor, int], Tensor]:
        from lowlat_seg_ros.network import warping_numba

        return warping_numba.compiled()

    return machine_code.if_possible(make, "carrying answers will be slow")


def warp(answers: Tensor, flow: Tensor, points: int) -> Tensor:
    """Answers of an earlier frame where ``flow`` moves them, bicubic, beyond the border the edge.

    ``answers``: logits (N, classes, points*h, points*w); ``flow`` (N, 2, points*h, points*w), see
    :class:`Motion`. Returns them (N, classes*points^2, h, w) as :meth:`~.classifier.SubPixel.cells`
    has them, to be summed with others. There is no gradient.
    """
    alone = answers.device.type == "cpu" and len(answers) == 1 and not answers.requires_grad
    kernel = compiled() if alone and answers.dtype == torch.float32 else None
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
