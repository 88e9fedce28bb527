"""The gate: how far carried answers are trusted, and what becomes of them (beyond the paper).

On a CPU two steps around its layers are compiled by numba. PyTorch would take a dozen operators for
each, which are slower the longer ago the last frame was (docs/notes/inference.md).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lowlat_seg_ros.network.layers import compile_with_numba

#: Channels between the gate's two layers.
GATE_CHANNELS = 16
#: Age in seconds at which the gate's input is 1: 16 frames at 15 Hz.
AGE_S = 16 / 15
#: Factor of the differences of luma, which are small: a tenth of white is much.
RESIDUAL_SCALE = 8.0

#: Of the kernel for the evidence: reduced F_l of key and current frame (rows, columns, channels),
#: age, residual (points, rows, columns), result (rows, columns, 2 + points).
EVIDENCE = "void(f4[:,:,::1], f4[:,:,::1], f4, f4[:,:,::1], f4[:,:,::1])"

#: Of the kernel that weighs: own answers and trust (rows, columns, (classes + 1) * points), carried
#: answers (rows, columns, classes * points), planes (classes + 1, points*rows, points*columns).
WEIGH = "void(f4[:,:,::1], f4[:,:,::1], f4[:,:,::1])"


class TrustGate(nn.Module):
    """How far each location trusts the carried answer, in [0, 1] (beyond the paper).

    Features carried for long, or to where something else came into view, are wrong, and then the
    frame's own answer is better. The gate, two layers per location, weighs both, so that late or
    stale features fade out: 0 stands for the frame's own answer alone, 1 for the carried one. The
    fused features only help it to decide. DAVSS (Zhuang et al., TCSVT 2021) and Tamed Warping (Feng
    et al., 2020) correct warped features where flow fails; here one number per answer says where.
    """

    calibration: Tensor

    def __init__(self, width: int, classes: int, points: int) -> None:
        """``width``: channels of the fused features; ``points``: answers per class and location."""
        super().__init__()
        self.first = nn.Conv2d(width + (classes + 1) * points + 2, GATE_CHANNELS, 1)
        self.last = nn.Conv2d(GATE_CHANNELS, points, 1)
        # Added to the logit of the trust: a constant, and a share of the age. Training is over
        # warped stills, whose flow is worse than a video's, so it trusts too little.
        self.register_buffer("calibration", torch.zeros(2))

    def forward(self, fused: Tensor, carried: Tensor, own: Tensor, evidence: Tensor) -> Tensor:
        """Logit of the trust, (N, points, H/8, W/8).

        ``fused`` (N, width, H/8, W/8), or of 2x2 cells each; ``carried`` and ``own``, the answers
        as :meth:`.fast_track.SubPixel.cells` returns them; ``evidence`` of :func:`evidence_of`.
        """
        distance = (carried - own).abs()
        kind, cells = distance.dtype, distance.shape[2:]
        fused = fused.to(kind)
        if fused.shape[2:] != cells:
            fused = F.interpolate(fused, cells)  # the nearest: each of 2x2 cells is its own
        inputs = [fused, distance, evidence.to(kind)]
        logit: Tensor = self.last(self.first(torch.cat(inputs, dim=1)).relu())
        constant, of_age = self.calibration
        return logit + (constant + of_age * evidence[:, 1:2])


def evidence_of(reduced_key: Tensor, reduced: Tensor, age_s: Tensor, residual: Tensor) -> Tensor:
    """What speaks against carried features, for the gate: (N, 2 + points, H/8, W/8) float32.

    The planes are the mean change of F_l, from the kernel predictor's reductions of both frames
    (N, width, H/8, W/8), or of 2x2 cells each; the age, from ``age_s`` (N,), seconds since the
    frame that Sh has seen, on a logarithmic scale; and those of ``residual`` (N, points, H/8, W/8),
    see :class:`.warping.Motion`.
    """
    # 8: the scale on which the first frames differ most.
    age = torch.log1p(8 * age_s.clamp(min=0) / AGE_S) / math.log(9)
    fits = reduced_key.shape == reduced.shape
    kernel = compiled_evidence() if fits and _alone(reduced_key, reduced, residual) else None
    if kernel is not None:
        before, now = _rows(reduced_key), _rows(reduced)
        points = residual[0].contiguous().numpy()
        out = np.empty((*points.shape[1:], 2 + len(points)), np.float32)
        kernel(before, now, age.item(), points, out)
        return torch.from_numpy(out).permute(2, 0, 1).unsqueeze(0)  # NHWC in memory
    change = (reduced - reduced_key).abs().mean(dim=1, keepdim=True, dtype=torch.float32)
    if change.shape[2:] != residual.shape[2:]:
        change = F.interpolate(change, residual.shape[2:])
    planes = [change, age.view(-1, 1, 1, 1).expand_as(change), residual * RESIDUAL_SCALE]
    # Channels last, as all that it is concatenated with.
    return torch.cat(planes, dim=1).contiguous(memory_format=torch.channels_last)


def weigh(cells: Tensor, carried: Tensor, points: int) -> Tensor:
    """Logits, and the trust as one more plane: (N, classes + 1, points*h, points*w).

    logits = trust * carried + (1 - trust) * own. ``cells`` (N, (classes + 1) * points^2, h, w) are
    the frame's own answers and then the trust, each with the points of a cell as channels, in the
    order of ``torch.nn.PixelShuffle``; ``carried`` (N, classes * points^2, h, w) likewise.
    """
    own, trust = cells.split([carried.shape[1], points**2], dim=1)
    fits = own.shape == carried.shape  # else PyTorch says what does not
    classes = carried.shape[1] // points**2
    kernel = compiled_weighing(classes, points) if fits and _alone(cells, carried) else None
    if kernel is None:
        return F.pixel_shuffle(torch.cat([weighed(own, carried, trust), trust], dim=1), points)
    height, width = cells.shape[2:]
    out = np.empty((classes + 1, points * height, points * width), np.float32)
    kernel(_rows(cells), _rows(carried), out)
    return torch.from_numpy(out).unsqueeze(0)


def weighed(own: Tensor, carried: Tensor, trust: Tensor) -> Tensor:
    """The mean of both answers (N, classes * points^2, h, w) by ``trust`` (N, points^2, h, w)."""
    # In NHWC, as all tensors here: otherwise each step would copy there and back.
    times = own.shape[1] // trust.shape[1]
    of_classes = trust.permute(0, 2, 3, 1).repeat(1, 1, 1, times).permute(0, 3, 1, 2)
    # Under autocast their types differ.
    kind = carried.dtype
    return torch.lerp(own.to(kind), carried, of_classes.to(kind))


@functools.cache
def compiled_evidence() -> Callable[..., None] | None:
    """Numba's kernel; None without numba. The first call of a process takes a second or two."""
    return compile_with_numba(_evidence, EVIDENCE, "masks will be slower", fastmath=True)


@functools.cache
def compiled_weighing(classes: int, points: int) -> Callable[..., None] | None:
    """Likewise; ``points`` per cell's side."""
    weigh = _weigh(classes, points)
    return compile_with_numba(weigh, WEIGH, "masks will be slower", fastmath={"contract"})


def _alone(*tensors: Tensor) -> bool:
    """Whether they are of one image, as the kernels take them."""
    if torch.is_grad_enabled() or any(len(x) != 1 or x.dtype != torch.float32 for x in tensors):
        return False
    return all(x.device.type == "cpu" for x in tensors)


def _rows(x: Tensor) -> np.ndarray:
    """(1, C, h, w) -> (h, w, C), contiguous."""
    return x[0].permute(1, 2, 0).contiguous().numpy()


def _evidence(before: Any, now: Any, age: Any, residual: Any, out: Any) -> None:
    rows, columns, channels = now.shape
    points, height, width = residual.shape
    changes = np.empty((rows, columns), np.float32)
    scale = np.float32(RESIDUAL_SCALE)
    for i in range(rows):
        for j in range(columns):
            total = np.float32(0)
            for k in range(channels):
                total += abs(now[i, j, k] - before[i, j, k])
            changes[i, j] = total / np.float32(channels)
    for i in range(height):
        for j in range(width):
            out[i, j, 0] = changes[i * rows // height, j * columns // width]
            out[i, j, 1] = age
            for point in range(points):
                out[i, j, 2 + point] = scale * residual[point, i, j]


def _weigh(classes: int, points: int) -> Callable[..., None]:
    """What numba compiles; with both as constants it takes a third of the time."""
    squared = points * points
    channels = classes * squared

    def weigh(cells: Any, carried: Any, out: Any) -> None:
        height, width = cells.shape[:2]
        for i in range(height):
            for j in range(width):
                own, moved = cells[i, j], carried[i, j]
                for k in range(classes + 1):
                    for point in range(squared):
                        y, x = i * points + point // points, j * points + point % points
                        channel, trust = k * squared + point, own[channels + point]
                        if k < classes:
                            value = own[channel] + trust * (moved[channel] - own[channel])
                            out[k, y, x] = value
                        else:
                            out[k, y, x] = trust

    return weigh
