"""From bytes to what the network reads, on a CPU: the 256 values that a channel can have."""

from __future__ import annotations

import functools
from collections.abc import Callable

import cv2
import numpy as np
import torch
from torch import Tensor

from lowlat_seg_ros.network import machine_code
from lowlat_seg_ros.network.trunk import Statistics


def normalised(pixels: np.ndarray, dtype: torch.dtype, statistics: Statistics) -> Tensor:
    """RGB, uint8 (H, W, 3), contiguous -> normalised (1, 3, H, W), channels_last.

    In bfloat16 if that is the ``dtype`` of the network's input, to the bit what the network would
    round to; else in float32.
    """
    if dtype == torch.bfloat16:
        kernel = compiled(statistics)
        bits = cv2.LUT(pixels, _bits(statistics)) if kernel is None else kernel(pixels)
        values = torch.from_numpy(bits).view(torch.bfloat16)
    else:
        values = torch.from_numpy(cv2.LUT(pixels, _values(statistics).numpy()))
    return values.permute(2, 0, 1).unsqueeze(0)  # NHWC in memory


@functools.cache
def compiled(statistics: Statistics) -> Callable[[np.ndarray], np.ndarray] | None:
    """The numba kernel for bfloat16, see :func:`.normalising_numba.compiled`; None without numba.

    The first call of a process takes half a second or more; call it before that matters.
    """

    def make() -> Callable[[np.ndarray], np.ndarray]:
        from lowlat_seg_ros.engine import normalising_numba

        return normalising_numba.compiled(statistics)

    return machine_code.if_possible(make, "images take longer to prepare")


@functools.cache
def _values(statistics: Statistics) -> Tensor:
    """What becomes of each byte of each channel, float32 (1, 256, 3): one pass instead of three."""
    levels = torch.arange(256, dtype=torch.uint8).expand(1, 3, 1, 256) / 255
    return statistics.normalise(levels)[0].permute(1, 2, 0).contiguous()


@functools.cache
def _bits(statistics: Statistics) -> np.ndarray:
    """The same in bfloat16, its bits as int16."""
    bits: np.ndarray = _values(statistics).to(torch.bfloat16).view(torch.int16).numpy()
    return bits
