"""From logits to the mask and its confidence: bilinear to full size, then arg max.

On a CPU with numba, where sizes are whole multiples, both are one kernel. Otherwise OpenCV
enlarges one class at a time: a running maximum over planes stays in the cache, all classes at full
size do not.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import cv2
import numpy as np
import torch
from torch import Tensor

from lowlat_seg_ros.engine.preprocess import Geometry
from lowlat_seg_ros.frames import IGNORE_LABEL
from lowlat_seg_ros.network import machine_code

#: The kernel's rows are padded to a multiple of so many values, which vector registers divide.
BLOCK = 16


def mask_of(logits: Tensor, geometry: Geometry) -> np.ndarray:
    """Logits (1, classes, h, w) of the padded image -> uint8 (H, W) ids at the mask's size."""
    # The padded image at the mask's scale, if that is a whole number of pixels.
    sizes = zip(geometry.padded, geometry.mask, geometry.scaled, strict=True)
    sides = [divmod(padded * mask, scaled) for padded, mask, scaled in sizes]
    if logits.device.type == "cpu" and not any(rest for _, rest in sides):
        (height, width), planes = geometry.mask, logits[0].float().numpy()
        full = arg_max_at(planes, (sides[0][0], sides[1][0]))
        return np.ascontiguousarray(full[:height, :width])
    mask: np.ndarray = ids_of(logits, geometry).cpu().numpy()
    return mask


def ids_of(logits: Tensor, geometry: Geometry) -> Tensor:
    """Logits (1, classes, h, w) -> uint8 (H, W) ids at the mask's size, on the same device."""
    return _full_size(logits.float(), geometry).argmax(dim=1)[0].to(torch.uint8)


def confidence_of(logits: Tensor, geometry: Geometry, temperature: float = 1.0) -> np.ndarray:
    """Logits (1, classes, h, w) -> uint8 (H, W), the highest softmax probability, 255 for 1.

    ``temperature``: what the logits are divided by first.

    The probabilities are those at the network's own cells, interpolated: softmax of all classes at
    full size takes ten times as long. The result is lower where classes meet within a cell.
    """
    best = (logits / temperature).softmax(dim=1).amax(dim=1, keepdim=True)
    full = _full_size(best, geometry).mul_(255).round_()
    confidence: np.ndarray = full.to(torch.uint8)[0, 0].cpu().numpy()
    return confidence


def leave_out(mask: np.ndarray, confidence: np.ndarray, least: float) -> None:
    """Make pixels of ``mask`` unlabelled, in place, whose confidence is below ``least``.

    Both are uint8 (H, W), ``least`` in [0, 1]: 255 of ``confidence`` stands for 1.
    """
    highest = math.ceil(255 * least) - 1
    _, below = cv2.threshold(confidence, highest, IGNORE_LABEL, cv2.THRESH_BINARY_INV)  # or 0
    np.maximum(mask, below, out=mask)


def _full_size(values: Tensor, geometry: Geometry) -> Tensor:
    """(1, C, h, w) of the padded image -> (1, C, H, W) at the mask's size."""
    height, width = geometry.mask
    stride = geometry.padded[0] / values.shape[2]
    # The operator behind F.interpolate, which takes a size or a scale: here the scale is that of
    # the unpadded region, and the padding is never computed.
    full: Tensor = torch.ops.aten.upsample_bilinear2d(
        values,
        [height, width],
        False,
        stride * height / geometry.scaled[0],
        stride * width / geometry.scaled[1],
    )
    return full


def arg_max_at(logits: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Logits float32 (classes, h, w) -> uint8 (H, W) ids at ``size`` (H, W), first of equals.

    The geometry is that of ``F.interpolate(mode="bilinear", align_corners=False)``. Uses at most as
    many threads as the caller's PyTorch. Logits must be finite; others may give any id near them.
    """
    factor, rest = divmod(size[0], logits.shape[1])
    if rest == 0 and factor > 1 and size[1] == factor * logits.shape[2]:
        upsample = compiled_upsampling()
        if upsample is not None:
            return upsample(logits, factor)
    return class_by_class(logits, size)


def class_by_class(logits: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    # By itself OpenCV would take all cores, and so those of the slow track.
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


@functools.cache
def compiled_upsampling() -> Callable[[np.ndarray, int], np.ndarray] | None:
    """Logits float32 (classes, h, w) and a factor f -> uint8 (f*h, f*w) ids; None without numba.

    It runs on the calling thread alone, in a quarter of the time of :func:`class_by_class`. The
    first call in a process compiles and takes half a second or more, so it is made before the first
    frame.
    """
    signature = "void(f4[:,:,::1], f4[::1], f4[:,::1], f4[::1], i4[::1], u1[:,::1])"
    kernel = machine_code.compiled(
        _upsample, signature, "masks will take longer", fastmath={"contract"}
    )
    if kernel is None:
        return None

    def arg_max(logits: np.ndarray, factor: int) -> np.ndarray:
        classes, height, width = logits.shape
        gaps = -(-(width + 1) // BLOCK) * BLOCK  # between two columns each, and at both edges
        cells = np.zeros((classes, height + 2, gaps + 1), np.float32)
        cells[:, 1:-1, 1 : width + 1] = logits
        cells[:, 0], cells[:, -1] = cells[:, 1], cells[:, -2]  # the edges are repeated
        cells[:, :, 0], cells[:, :, width + 1] = cells[:, :, 1], cells[:, :, width]
        # Pixel centres are at half-integers: with an even factor none lies on a logit.
        weights = (np.arange(factor, dtype=np.float32) + (1 - factor % 2) / 2) / factor
        mask = np.empty((factor * height, factor * width), np.uint8)
        blended = np.empty((classes, gaps + 1), np.float32)
        best, ids = np.empty(gaps, np.float32), np.empty(gaps, np.int32)
        kernel(cells, weights, blended, best, ids, mask)
        return mask

    return arg_max


def _upsample(
    cells: np.ndarray,
    weights: np.ndarray,
    blended: np.ndarray,
    best: np.ndarray,
    ids: np.ndarray,
    mask: np.ndarray,
) -> None:
    """The loop that numba compiles.

    Between two neighbouring logits of ``cells`` (classes, h + 2, gaps + 1) lie ``factor`` pixels,
    whose ``weights`` are the same in every gap. So each row of pixels is first one blend of two
    rows of cells; then, for each of the ``factor`` places within a gap, the maximum over the
    classes is taken in all gaps at once. ``blended``, ``best`` and ``ids`` are buffers of a row.
    """
    factor, gaps = len(weights), len(best)
    height, width = mask.shape
    before = (factor + 1) // 2  # pixels of the first gap that lie outside the image
    for y in range(height):
        gap, place = divmod(y + before, factor)
        below = weights[place]
        above = np.float32(1) - below
        for c in range(len(cells)):
            for x in range(gaps + 1):
                blended[c, x] = above * cells[c, gap, x] + below * cells[c, gap + 1, x]
        for place in range(factor):
            right = weights[place]
            left = np.float32(1) - right
            for x in range(gaps):
                best[x] = -np.inf
                ids[x] = 0
            for c in range(len(cells)):
                row, this = blended[c], np.int32(c)
                for x in range(gaps):
                    value = row[x] * left + row[x + 1] * right
                    larger = value > best[x]  # never true of NaN
                    best[x] = value if larger else best[x]
                    ids[x] = this if larger else ids[x]
            first = int(place < before)  # the first gap's pixel at this place lies outside
            for x in range(width // factor):
                mask[y, (x + first) * factor + place - before] = ids[x + first]
