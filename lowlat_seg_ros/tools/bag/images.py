"""Image messages of a bag as arrays."""

from __future__ import annotations

from typing import Any

import numpy as np

from lowlat_seg_ros.images import compressed, raw
from lowlat_seg_ros.images.raw import ImageError
from lowlat_seg_ros.lab.data.sequence import DataError


def to_rgb(message: Any) -> np.ndarray:
    """``sensor_msgs/Image`` or ``CompressedImage`` as uint8 (H, W, 3) RGB, as the node reads it.

    Raises :class:`~.images.raw.ImageError`.
    """
    decode = compressed.to_rgb if hasattr(message, "format") else raw.to_rgb
    return decode(message)


def encoding(message: Any) -> str:
    """What the camera sent the image as, as the node names it."""
    return str(message.format if hasattr(message, "format") else message.encoding)


def to_ids(message: Any) -> np.ndarray:
    """A mono8 ``sensor_msgs/Image``, such as a mask, as uint8 (H, W); DataError for others."""
    try:
        return raw.to_ids(message)
    except ImageError as error:
        raise DataError(f"a mask or label cannot be read: {error}") from error
