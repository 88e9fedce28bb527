"""Image messages of a bag as arrays, in the encodings that need no ROS to read."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np

from lowlat_seg_ros.data.sequence import DataError

#: Encodings (REP-118) that are read: bytes a pixel, and OpenCV's conversion to RGB.
ENCODINGS: dict[str, tuple[int, int | None]] = {
    "rgb8": (3, None),
    "bgr8": (3, cv2.COLOR_BGR2RGB),
    "rgba8": (4, cv2.COLOR_RGBA2RGB),
    "bgra8": (4, cv2.COLOR_BGRA2RGB),
    "mono8": (1, cv2.COLOR_GRAY2RGB),
}


def to_rgb(message: Any) -> np.ndarray:
    """``sensor_msgs/Image`` or ``CompressedImage`` as uint8 (H, W, 3) RGB; DataError if it cannot.

    Padded rows (``step``) are honoured. Compressed images may be whatever OpenCV decodes.
    """
    if hasattr(message, "format"):
        return _decompressed(message)
    if message.encoding not in ENCODINGS:
        raise DataError(
            f"an image has the encoding {message.encoding!r}; those read here are "
            f"{', '.join(ENCODINGS)}, and compressed images"
        )
    channels, code = ENCODINGS[message.encoding]
    pixels = _rows(message, channels).reshape(message.height, message.width, channels)
    return pixels if code is None else np.asarray(cv2.cvtColor(pixels, code))


def to_ids(message: Any) -> np.ndarray:
    """A mono8 ``sensor_msgs/Image``, such as a mask, as uint8 (H, W); DataError for others."""
    if message.encoding not in ("mono8", "8UC1"):
        raise DataError(f"a mask has the encoding {message.encoding!r}; it must be mono8")
    return _rows(message, 1)


def _decompressed(message: Any) -> np.ndarray:
    pixels = None
    if message.data.size:
        pixels = cv2.imdecode(np.asarray(message.data), cv2.IMREAD_COLOR)
    if pixels is None:
        raise DataError(
            f"a compressed image of format {message.format!r} and {message.data.size} bytes cannot "
            "be decoded; it must be JPEG or PNG"
        )
    return np.asarray(cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB))


def _rows(message: Any, channels: int) -> np.ndarray:
    """The bytes without padding, uint8 (H, W * channels); DataError if they are too few."""
    height, width, step = message.height, message.width, message.step
    if height == 0 or width == 0:
        raise DataError(f"an image is {width}x{height}; width and height must be at least 1")
    if step < width * channels or message.data.size != step * height:
        raise DataError(
            f"a {width}x{height} image of {message.encoding} has step {step} and "
            f"{message.data.size} bytes; step must be {width * channels} or more, and there must "
            f"be step * height bytes"
        )
    return np.asarray(message.data).reshape(height, step)[:, : width * channels]
