"""From a camera image to the network's input: size, padding, normalisation.

All sizes share one geometry: pixel centres are at half-integers (as ``cv2.resize`` and
``F.interpolate(align_corners=False)`` have it), and a feature cell covers 8x8 pixels of the
network's input, as in training. So the way back, in :mod:`postprocess`, is one bilinear
interpolation.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field

import cv2
import numpy as np
import torch
from torch import Tensor

from lowlat_seg_ros.frames import FrameError
from lowlat_seg_ros.network.segmenter import STRIDE
from lowlat_seg_ros.network.trunk import Statistics

#: Largest input of the network (8192x4096 pixels); a size beyond it is probably damaged.
MAX_PIXELS = 2**25


@dataclass(frozen=True)
class Geometry:
    """Sizes (height, width) in px: of the image, scaled for the network and padded for it.

    ``mask`` is the size of the mask. Two geometries that differ in it alone are equal, because
    features do not depend on it.
    """

    image: tuple[int, int]
    scaled: tuple[int, int]
    padded: tuple[int, int]
    mask: tuple[int, int] = field(compare=False)


def plan(
    image: tuple[int, int],
    inference_height: int,
    scale: float = 1.0,
    *,
    trained_height: int = 0,
    mask_at_network_size: bool = False,
) -> Geometry:
    """Sizes by the rule of ``EngineConfig.inference_height``.

    ``trained_height``: what -1 stands for, 0 where the checkpoint does not say. ``scale`` shrinks
    the network's input further, while load is shed. The mask has the image's size, or the network's
    before ``scale`` and padding. Raises ``FrameError`` for an image that is too large without
    ``scale``.
    """
    height, width = image
    if inference_height < 0:
        # Objects in a portrait picture are as large as in a landscape one of the same shorter side.
        inference_height = round(trained_height * max(1.0, height / width))
    if inference_height:
        scaled = (inference_height, max(1, round(width * inference_height / height)))
    else:
        scaled = (height, width)
    padded = _padded(scaled)
    if padded[0] * padded[1] > MAX_PIXELS:
        raise FrameError(
            f"an image of {width}x{height} would be segmented at {padded[1]}x{padded[0]}, which is "
            f"over {MAX_PIXELS} pixels; set a smaller inference_height or check the image's size"
        )
    mask = scaled if mask_at_network_size else (height, width)
    if scale != 1.0:
        scaled = (max(1, round(scaled[0] * scale)), max(1, round(scaled[1] * scale)))
        padded = _padded(scaled)
    return Geometry((height, width), scaled, padded, mask)


def _padded(scaled: tuple[int, int]) -> tuple[int, int]:
    return (-(-scaled[0] // STRIDE) * STRIDE, -(-scaled[1] // STRIDE) * STRIDE)


def fill(image: np.ndarray, geometry: Geometry, padded: np.ndarray) -> None:
    """Write ``image``, uint8 (H, W, 3), scaled and with its edges repeated into ``padded``."""
    height, width = geometry.scaled
    if geometry.scaled != geometry.image:
        # Area averages when shrinking; bilinear would skip pixels and flicker.
        shrinks = height < geometry.image[0]
        method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
        image = cv2.resize(np.ascontiguousarray(image), (width, height), interpolation=method)
    padded[:height, :width] = image
    padded[:height, width:] = padded[:height, width - 1 : width]
    padded[height:] = padded[height - 1 : height]


def pixels_of(image: np.ndarray, geometry: Geometry) -> np.ndarray:
    """uint8 (H, W, 3) RGB -> uint8 (*padded, 3), contiguous; ``image`` itself where it fits."""
    if geometry.padded == geometry.image:
        return np.ascontiguousarray(image)
    padded = np.empty((*geometry.padded, 3), np.uint8)
    fill(image, geometry, padded)
    return padded


def resample(features: Tensor, old: Geometry, new: Geometry, stride: int | None = None) -> Tensor:
    """Features (1, C, h, w) of an image at ``old`` -> (1, C, h', w') of the same image at ``new``.

    The interpolation is bilinear, from cell centre to cell centre; cells of the padding repeat the
    edge. The cells may be of any ``stride``; by default it is one that divides the padded sides.
    Only the result is rounded to the precision of ``features``.
    """
    stride = stride or old.padded[0] // features.shape[2]
    size = [-(-side // stride) for side in new.padded]
    # The scale is that of the unpadded region, as it is in postprocess.
    scales = [after / before for after, before in zip(new.scaled, old.scaled, strict=True)]
    result: Tensor = torch.ops.aten.upsample_bilinear2d(features.float(), size, False, *scales)
    if features.is_cuda:
        # They may belong to the other track, which may drop them while they are read here.
        features.record_stream(torch.cuda.current_stream())
    return result.to(features.dtype)


def resample_luma(luma: np.ndarray, old: Geometry, new: Geometry) -> np.ndarray:
    pixels = torch.from_numpy(luma)[None, None]
    return resample(pixels.float(), old, new).round_().to(torch.uint8)[0, 0].numpy()


def normalised(pixels: np.ndarray, dtype: torch.dtype, statistics: Statistics) -> Tensor:
    """RGB, uint8 (H, W, 3), contiguous -> normalised (1, 3, H, W), channels_last.

    The result is bfloat16 if ``dtype``, that of the network's input, is: bit for bit what the
    network would round to. If it is uint8 the bytes are returned as they are. Otherwise it is
    float32.
    """
    # A channel has 256 possible values, so a table replaces subtraction and division.
    if dtype == torch.uint8:
        # The first convolution normalises. A copy, as Sh reads it when the caller has moved on.
        values = torch.from_numpy(pixels.copy())
    elif dtype == torch.bfloat16:
        bits = cv2.LUT(pixels, _bfloat16_table(statistics))
        values = torch.from_numpy(bits).view(torch.bfloat16)
    else:
        values = torch.from_numpy(cv2.LUT(pixels, _float32_table(statistics).numpy()))
    return values.permute(2, 0, 1).unsqueeze(0)  # (1, 3, H, W), NHWC in memory


@functools.cache
def _float32_table(statistics: Statistics) -> Tensor:
    """The normalised value of each byte of each channel: float32 (1, 256, 3)."""
    levels = torch.arange(256, dtype=torch.uint8).expand(1, 3, 1, 256) / 255
    return statistics.normalise(levels)[0].permute(1, 2, 0).contiguous()


@functools.cache
def _bfloat16_table(statistics: Statistics) -> np.ndarray:
    bits: np.ndarray = _float32_table(statistics).to(torch.bfloat16).view(torch.int16).numpy()
    return bits
