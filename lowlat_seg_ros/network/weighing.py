"""The carried and the own answer weighed by the trust, as the last step to a mask reads them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lowlat_seg_ros.network.layers import compile_with_numba

#: Of the numba kernel: own answers and trust (rows, columns, (classes + 1) * points^2), carried
#: answers (rows, columns, classes * points^2), points per cell's side, planes (classes + 1, ...).
SIGNATURE = "void(f4[:,:,::1], f4[:,:,::1], i8, f4[:,:,::1])"


def weigh(cells: Tensor, carried: Tensor, points: int) -> Tensor:
    """Logits, and the trust as one more plane: (N, classes + 1, points*h, points*w).

    logits = trust * carried + (1 - trust) * own. ``cells`` (N, (classes + 1) * points^2, h, w) are
    the frame's own answers and then the trust, each with the points of a cell as channels, in the
    order of ``torch.nn.PixelShuffle``; ``carried`` (N, classes * points^2, h, w) likewise.
    """
    kernel = compiled()
    alone = len(cells) == 1 and cells.device.type == "cpu" and not torch.is_grad_enabled()
    if kernel is None or not alone or {cells.dtype, carried.dtype} != {torch.float32}:
        own, trust = cells.split([carried.shape[1], points**2], dim=1)
        return F.pixel_shuffle(torch.cat([weighed(own, carried, trust), trust], dim=1), points)
    height, width = cells.shape[2:]
    out = np.empty((cells.shape[1] // points**2, points * height, points * width), np.float32)
    rows, other = (x[0].permute(1, 2, 0).contiguous().numpy() for x in (cells, carried))
    kernel(rows, other, points, out)
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
def compiled() -> Callable[..., None] | None:
    """The numba kernel; None without numba. The first call of a process takes a second or less."""
    return compile_with_numba(_weigh, SIGNATURE, "fusion will be slow", fastmath={"contract"})


def _weigh(cells: Any, carried: Any, points: int, out: Any) -> None:
    height, width, channels = carried.shape
    squared = points * points
    classes = channels // squared
    for i in range(height):
        for point in range(squared):
            y, first = i * points + point // points, point % points
            for j in range(width):
                out[classes, y, j * points + first] = cells[i, j, channels + point]
            for k in range(classes):
                channel = k * squared + point
                for j in range(width):
                    own, trust = cells[i, j, channel], cells[i, j, channels + point]
                    value = own + trust * (carried[i, j, channel] - own)
                    out[k, y, j * points + first] = value
