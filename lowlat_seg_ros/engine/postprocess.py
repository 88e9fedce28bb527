"""From logits to the mask and its confidence: bilinear to full size, then arg max.

On a CPU with numba, where sizes are whole multiples, both are one kernel. Otherwise OpenCV
enlarges one class at a time: a running maximum over planes stays in the cache, all classes at full
size do not.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from functools import partial

import cv2
import numpy as np
import torch
from torch import Tensor

from lowlat_seg_ros.engine.beside import Helper
from lowlat_seg_ros.engine.preprocess import Geometry
from lowlat_seg_ros.frames import IGNORE_LABEL
from lowlat_seg_ros.network.layers import compile_with_numba

#: The kernel's rows are padded to a multiple of so many values, which vector registers divide.
BLOCK = 16

#: Pixels from which on a helper does half of a mask; handing over to it takes some 0.2 ms.
SHARED = 2**19

#: Gaps between logits that it fills at a time: what it needs of them stays in the L1 cache.
CHUNK = 256


def mask_of(logits: Tensor, geometry: Geometry, helper: Helper | None = None) -> np.ndarray:
    """Logits (1, classes, h, w) of the padded image -> uint8 (H, W) ids at the mask's size.

    A ``helper`` does half of a large one.
    """
    # The padded image at the mask's scale, if that is a whole number of pixels.
    sizes = zip(geometry.padded, geometry.mask, geometry.scaled, strict=True)
    sides = [divmod(padded * mask, scaled) for padded, mask, scaled in sizes]
    if logits.device.type == "cpu" and not any(rest for _, rest in sides):
        (height, width), planes = geometry.mask, logits[0].float().numpy()
        full = arg_max_at(planes, (sides[0][0], sides[1][0]), helper)
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


def arg_max_at(
    logits: np.ndarray, size: tuple[int, int], helper: Helper | None = None
) -> np.ndarray:
    """Logits float32 (classes, h, w) -> uint8 (H, W) ids at ``size`` (H, W), first of equals.

    The geometry is that of ``F.interpolate(mode="bilinear", align_corners=False)``. Uses at most as
    many threads as the caller's PyTorch. Logits must be finite; others may give any id near them.
    """
    factor, rest = divmod(size[0], logits.shape[1])
    if rest == 0 and factor > 1 and size[1] == factor * logits.shape[2]:
        upsample = compiled_upsampling()
        if upsample is not None:
            return upsample(logits, factor, helper)
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
def compiled_upsampling() -> Callable[[np.ndarray, int, Helper | None], np.ndarray] | None:
    """Logits float32 (classes, h, w) and a factor f -> uint8 (f*h, f*w) ids; None without numba.

    It runs on the calling thread, half of a large mask on a helper's where there is one, and takes
    a quarter of the time of :func:`class_by_class`. The first call in a process compiles and takes
    half a second or more, so it is made before the first frame.
    """
    signature = (
        "void(f4[:,:,::1], i8, i8, f4[::1], f4[::1], i4[:,::1], u1[::1], i4[:,::1], f4[:,:,::1], "
        "f4[:,:,::1], u1[:,::1])"
    )
    kernel = compile_with_numba(
        _upsample, signature, "masks will take longer", fastmath={"contract"}
    )
    if kernel is None:
        return None

    def arg_max(logits: np.ndarray, factor: int, helper: Helper | None = None) -> np.ndarray:
        classes, height, width = logits.shape
        gaps = -(-(width + 1) // BLOCK) * BLOCK  # between two columns each, and at both edges
        cells = np.zeros((classes, height + 2, gaps + 1), np.float32)
        cells[:, 1:-1, 1 : width + 1] = logits
        cells[:, 0], cells[:, -1] = cells[:, 1], cells[:, -2]  # the edges are repeated
        cells[:, :, 0], cells[:, :, width + 1] = cells[:, :, 1], cells[:, :, width]
        # Pixel centres are at half-integers: with an even factor none lies on a logit.
        weights = (np.arange(factor, dtype=np.float32) + (1 - factor % 2) / 2) / factor
        mask = np.empty((factor * height, factor * width), np.uint8)

        def fill(first: int, last: int) -> None:
            best = np.empty(max(gaps + 1, CHUNK), np.float32)
            ids = np.empty((3, len(best)), np.int32)
            line = np.empty((width + 1) * factor, np.uint8)
            mixed = np.empty((2, (last - first) * (width + 1) + BLOCK), np.int32)
            corners, blended = (np.empty((n, classes, CHUNK), np.float32) for n in (4, 2))
            buffers = (best, ids, line, mixed, corners, blended)
            kernel(cells, first, last, weights, *buffers, mask)

        if helper is None or mask.size < SHARED:
            fill(0, height + 1)
            return mask
        half = height // 2
        below = helper(partial(fill, half, height + 1))
        fill(0, half)
        below()
        return mask

    return arg_max


def _upsample(
    cells: np.ndarray,
    begin: int,
    end: int,
    weights: np.ndarray,
    best: np.ndarray,
    ids: np.ndarray,
    line: np.ndarray,
    mixed: np.ndarray,
    corners: np.ndarray,
    blended: np.ndarray,
    mask: np.ndarray,
) -> None:
    """The loop that numba compiles.

    Between four neighbouring logits of ``cells`` (classes, h + 2, gaps + 1) lie ``factor`` times
    ``factor`` pixels, a gap. A class that is the largest at all four is it at each pixel between
    them, so most gaps are filled with one id. The others' row and column go to ``mixed``, and are
    filled afterwards, ``CHUNK`` of them at a time: each row of their pixels is a blend of the upper
    and lower two ``corners`` (4, classes, CHUNK), and for each of the ``factor`` places within a
    gap the maximum over the classes is taken in all of them at once. The ``weights`` are the same
    in every gap. Only gaps of the rows from ``begin`` to ``end`` are filled. ``best``, ``ids`` (3,
    ...), ``line`` and ``blended`` (2, classes, CHUNK) are buffers.
    """
    factor, (height, width) = len(weights), mask.shape
    before = (factor + 1) // 2  # pixels of the first gap that lie outside the image
    columns = width // factor + 1
    upper, lower, found = ids[0], ids[1], ids[2]
    number = 0
    for row in range(begin, end + 1):
        upper, lower = lower, upper
        across = cells.shape[2]
        for x in range(across):
            best[x] = -np.inf
            lower[x] = 0
        for c in range(len(cells)):
            this = np.int32(c)
            for x in range(across):
                larger = cells[c, row, x] > best[x]
                best[x] = cells[c, row, x] if larger else best[x]
                lower[x] = this if larger else lower[x]
        if row == begin:
            continue
        gap = row - 1
        for x in range(columns):
            this = upper[x]
            if this != upper[x + 1] or this != lower[x] or this != lower[x + 1]:
                mixed[0, number], mixed[1, number] = gap, x
                number += 1
            for pixel in range(x * factor, (x + 1) * factor):
                line[pixel] = this
        for y in range(max(gap * factor - before, 0), min((gap + 1) * factor - before, height)):
            mask[y] = line[before : before + width]
    for j in range(number, number + BLOCK):  # whole vectors of gaps
        mixed[0, j], mixed[1, j] = 0, 0
    for first in range(0, number, CHUNK):
        count = min(CHUNK, number - first)
        whole = -(-count // BLOCK) * BLOCK
        rows, places = mixed[0, first : first + whole], mixed[1, first : first + whole]
        for c in range(len(cells)):
            for j in range(whole):
                y, x = rows[j], places[j]
                corners[0, c, j], corners[1, c, j] = cells[c, y, x], cells[c, y, x + 1]
                corners[2, c, j], corners[3, c, j] = cells[c, y + 1, x], cells[c, y + 1, x + 1]
        for j in range(whole):  # from here on: the pixel where the gap begins
            rows[j], places[j] = rows[j] * factor - before, places[j] * factor - before
        for down in range(factor):
            below = weights[down]
            above = np.float32(1) - below
            for c in range(len(cells)):
                for j in range(whole):
                    blended[0, c, j] = above * corners[0, c, j] + below * corners[2, c, j]
                    blended[1, c, j] = above * corners[1, c, j] + below * corners[3, c, j]
            for place in range(factor):
                right = weights[place]
                left = np.float32(1) - right
                for j in range(whole):
                    best[j] = -np.inf
                    found[j] = 0
                for c in range(len(cells)):
                    one, other, this = blended[0, c], blended[1, c], np.int32(c)
                    for j in range(whole):
                        value = one[j] * left + other[j] * right
                        larger = value > best[j]  # never true of NaN
                        best[j] = value if larger else best[j]
                        found[j] = this if larger else found[j]
                for j in range(count):
                    y, x = rows[j] + down, places[j] + place
                    if 0 <= y < height and 0 <= x < width:
                        mask[y, x] = found[j]
