"""Carrying answers more finely than a cell (beyond the paper).

Eq. (1) moves whole cells of 8x8 pixels: its weights are shared over channels, so what lies within a
cell, which channels tell, stays where it is within it. A thing of a cell's width is smeared by the
first few pixels that it moves. So the full network's answers, several per cell, are warped by the
displacement that the same weights stand for, their mean, at the answers' own resolution.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from lowlat_seg_ros.network import machine_code


@functools.cache
def compiled() -> Callable[[Tensor, Tensor, int], Tensor] | None:
    """The numba kernel for one image on a CPU, without gradients; None without numba.

    The first call of a process takes a second or more; call it before that matters.
    """

    def make() -> Callable[[Tensor, Tensor, int], Tensor]:
        from lowlat_seg_ros.network import fine_numba

        return fine_numba.compiled()

    return machine_code.if_possible(make, "propagation will be slow")


def displacement(weights: Tensor) -> Tensor:
    """Weights of Eq. (1) (N, K*K, h, w) -> their mean (u, v) in cells, (N, 2, h, w) float32."""
    side = round(weights.shape[1] ** 0.5)
    steps = torch.arange(side, dtype=torch.float32, device=weights.device) - side // 2
    offsets = torch.stack(torch.meshgrid(steps, steps, indexing="ij"), dim=-1).view(-1, 2)
    # NHWC, as the predictor's softmax leaves them.
    mean = weights.permute(0, 2, 3, 1).float() @ offsets
    return mean.permute(0, 3, 1, 2)


def move(cells: Tensor, weights: Tensor, points: int) -> Tensor:
    """Answers of the key frame, ``points`` per side of a cell, where ``weights`` move them.

    ``cells`` (N, classes*points^2, h, w) as :meth:`~.classifier.SubPixel.cells` gives them;
    ``weights`` (N, K*K, h, w). Returns the shape of ``cells``; beyond the border the edge repeats.
    """
    learns = torch.is_grad_enabled() and (cells.requires_grad or weights.requires_grad)
    alone = cells.device.type == "cpu" and len(cells) == 1 and not learns
    kernel = compiled() if alone and cells.dtype == weights.dtype == torch.float32 else None
    if kernel is not None:
        return kernel(cells, weights, points)
    fine = F.pixel_shuffle(cells, points).contiguous()
    height, width = fine.shape[2:]
    # Of each point in points, from which what is there now has come.
    moved = points * F.interpolate(displacement(weights), (height, width), mode="bilinear")
    rows = torch.arange(height, dtype=torch.float32, device=cells.device).view(1, -1, 1)
    columns = torch.arange(width, dtype=torch.float32, device=cells.device).view(1, 1, -1)
    y = (2 * (rows - moved[:, 0]) + 1) / height - 1
    x = (2 * (columns - moved[:, 1]) + 1) / width - 1
    grid = torch.stack([x, y], dim=-1)
    warped = F.grid_sample(fine.float(), grid, padding_mode="border", align_corners=False)
    back = F.pixel_unshuffle(warped, points).to(cells.dtype)
    return back.contiguous(memory_format=torch.channels_last)
