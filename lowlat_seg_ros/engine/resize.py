"""From an image to the network's input and from its logits to a mask of the image's or that size.

All sizes share one geometry: pixel centres at half-integers (as cv2.resize and
``F.interpolate(align_corners=False)`` have it), and a feature cell covers 8x8 pixels of the
network's input, as in training. So the way back is one bilinear interpolation.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import cv2
import numpy as np
import torch
from torch import Tensor

from lowlat_seg_ros.engine.normalising import normalised
from lowlat_seg_ros.engine.upsampling import arg_max_at
from lowlat_seg_ros.frames import FrameError
from lowlat_seg_ros.network.segmenter import STRIDE, Segmenter

#: Largest input of the network (8192x4096 pixels); beyond it a size is likelier damaged than meant.
MAX_PIXELS = 2**25


@dataclass(frozen=True)
class Geometry:
    """Sizes (height, width) in px: of the image, scaled for the network and padded for it.

    ``mask`` is the size of the mask; features have nothing to do with it.
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
    mask_at_network_size: bool = False,
) -> Geometry:
    """Sizes by the rule of ``EngineConfig.inference_height``; raises FrameError if too large.

    ``scale`` shrinks the network's sides further; what is too large without it is refused all the
    same. The mask has the image's size, or the network's without ``scale`` and padding.
    """
    height, width = image
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
    """Write ``image``, uint8 (H, W, 3), to ``padded`` at that size: scaled, its edges repeated."""
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


def network_input(image: np.ndarray, geometry: Geometry, segmenter: Segmenter) -> Tensor:
    """uint8 (H, W, 3) RGB -> normalised (1, 3, *padded), channels_last, on the network's device.

    On a CPU in the precision that the network rounds it to.
    """
    device, pixels = next(segmenter.parameters()).device, pixels_of(image, geometry)
    if device.type == "cpu":
        return normalised(pixels, segmenter.input_dtype, segmenter.statistics)
    tensor = torch.from_numpy(pixels).to(device).permute(2, 0, 1).unsqueeze(0)
    return segmenter.normalise(tensor / 255)


def resample(features: Tensor, old: Geometry, new: Geometry) -> Tensor:
    """Features (1, C, h, w) of an image at ``old`` -> (1, C, h', w') of the same image at ``new``.

    Bilinear, from cell centre to cell centre; cells of the padding repeat the edge. The cells may
    be of any stride that divides the padded sides, pixels among them. Whatever the precision of
    ``features``, only the answer is rounded to it.
    """
    stride = old.padded[0] // features.shape[2]
    size = [side // stride for side in new.padded]
    # The scale is that of the unpadded region, as in :func:`mask_of`.
    scales = [after / before for after, before in zip(new.scaled, old.scaled, strict=True)]
    result: Tensor = torch.ops.aten.upsample_bilinear2d(features.float(), size, False, *scales)
    if features.is_cuda:  # they may be the other side's, and dropped while they are read
        features.record_stream(torch.cuda.current_stream())
    return result.to(features.dtype)


def resample_luma(luma: np.ndarray, old: Geometry, new: Geometry) -> np.ndarray:
    """Luma of an image at ``old`` -> at ``new``, see :func:`~.warping.luma_of`."""
    pixels = torch.from_numpy(luma)[None, None]
    return resample(pixels.float(), old, new).round_().to(torch.uint8)[0, 0].numpy()


def mask_of(logits: Tensor, geometry: Geometry) -> np.ndarray:
    """Logits (1, classes, h, w) of the padded image -> uint8 (H, W) ids at the mask's size."""
    full = _whole_size(geometry)
    if logits.device.type == "cpu" and full is not None:
        (height, width), planes = geometry.mask, logits[0].float().numpy()
        return np.ascontiguousarray(arg_max_at(planes, full)[:height, :width])
    mask: np.ndarray = ids_of(logits, geometry).cpu().numpy()
    return mask


def ids_of(logits: Tensor, geometry: Geometry) -> Tensor:
    """Logits (1, classes, h, w) -> uint8 (H, W) ids at the mask's size, on the same device."""
    return _full_size(logits.float(), geometry).argmax(dim=1)[0].to(torch.uint8)


def _whole_size(geometry: Geometry) -> tuple[int, int] | None:
    """Size of the padded image at the mask's scale, None where that is no number of pixels."""
    sizes = zip(geometry.padded, geometry.mask, geometry.scaled, strict=True)
    sides = [divmod(padded * mask, scaled) for padded, mask, scaled in sizes]
    return None if any(rest for _, rest in sides) else (sides[0][0], sides[1][0])


def confidence_of(logits: Tensor, geometry: Geometry) -> np.ndarray:
    """Logits (1, classes, h, w) -> uint8 (H, W), the highest softmax probability, 255 for 1.

    The probabilities are those at the network's own cells, interpolated. Softmax of all classes at
    full size takes ten times as long; it differs where classes meet within a cell's width, where it
    is lower.
    """
    best = logits.softmax(dim=1).amax(dim=1, keepdim=True)
    full = _full_size(best, geometry).mul_(255).round_()
    confidence: np.ndarray = full.to(torch.uint8)[0, 0].cpu().numpy()
    return confidence


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
