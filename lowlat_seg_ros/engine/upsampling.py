"""The last step of a mask on a CPU: bilinear to full size and arg max.

Where numba is installed and sizes are multiples, that is one kernel. Else it is done one class at a
time: a running maximum over planes stays in the cache; all classes at full size do not (a third of
the time at 11 classes, 360x480, and no more memory than two planes).
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import cv2
import numpy as np
import torch

from lowlat_seg_ros.network import machine_code


def arg_max_at(logits: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Logits float32 (classes, h, w) -> uint8 (H, W) ids at ``size`` (H, W), first of equals.

    The geometry is that of ``F.interpolate(mode="bilinear", align_corners=False)``. Uses at most as
    many threads as the caller's PyTorch. Logits are finite; what is not may give any id near it.
    """
    factor, rest = divmod(size[0], logits.shape[1])
    if rest == 0 and factor > 1 and size[1] == factor * logits.shape[2]:
        upsample = compiled()
        if upsample is not None:
            return upsample(logits, factor)
    return class_by_class(logits, size)


@functools.cache
def compiled() -> Callable[[np.ndarray, int], np.ndarray] | None:
    """The numba kernel, see :func:`.upsampling_numba.compiled`; None without numba.

    The first call of a process takes half a second or more; call it before that matters.
    """

    def make() -> Callable[[np.ndarray, int], np.ndarray]:
        from lowlat_seg_ros.engine import upsampling_numba

        return upsampling_numba.compiled()

    return machine_code.if_possible(make, "masks will take longer")


def class_by_class(logits: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """:func:`arg_max_at` of any size, by OpenCV."""
    # It would take all cores, and so those of the slow track.
    cv2.setNumThreads(torch.get_num_threads())
    height, width = size
    logits = np.ascontiguousarray(logits)
    ids = np.zeros(size, np.uint8)
    best = cv2.resize(logits[0], (width, height), interpolation=cv2.INTER_LINEAR)
    plane, above = np.empty_like(best), np.empty_like(ids)
    for index in range(1, len(logits)):
        cv2.resize(logits[index], (width, height), dst=plane, interpolation=cv2.INTER_LINEAR)
        cv2.compare(plane, best, cv2.CMP_GT, dst=above)  # 255 or 0
        np.bitwise_and(above, np.uint8(index), out=above)
        np.maximum(ids, above, out=ids)  # later ids are larger, so this overwrites
        cv2.max(best, plane, dst=best)
    return ids
