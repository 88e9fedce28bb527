"""The last step of a mask on a CPU: bilinear to full size and arg max, one class at a time.

A running maximum over planes stays in the cache; all classes at full size do not (a third of the
time at 11 classes, 360x480, and no more memory than two planes).
"""

from __future__ import annotations

import cv2
import numpy as np
import torch


def arg_max_at(logits: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Logits float32 (classes, h, w) -> uint8 (H, W) ids at ``size`` (H, W), first of equals.

    The geometry is that of ``F.interpolate(mode="bilinear", align_corners=False)``. Uses as many
    threads as the caller's PyTorch.
    """
    # OpenCV would take all cores, and so those of the slow track.
    cv2.setNumThreads(torch.get_num_threads())
    height, width = size
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
