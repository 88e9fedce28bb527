"""``sensor_msgs/Image`` to RGB arrays and back (encodings of REP-118)."""

from __future__ import annotations

from array import array
from enum import Enum

import cv2
import numpy as np
from sensor_msgs.msg import Image
from std_msgs.msg import Header

try:
    from cv_bridge import CvBridge, CvBridgeError
except ImportError:  # not on PyPI; rosbags-image does the same work there
    CvBridge = None

#: Encodings turned into RGB here, with at most one copy: channels, and OpenCV's conversion.
DIRECT: dict[str, tuple[int, int | None]] = {
    "rgb8": (3, None),
    "bgr8": (3, cv2.COLOR_BGR2RGB),
    "rgba8": (4, cv2.COLOR_RGBA2RGB),
    "bgra8": (4, cv2.COLOR_BGRA2RGB),
    "mono8": (1, cv2.COLOR_GRAY2RGB),
}

#: Bytes a pixel of the encodings left to cv_bridge or rosbags-image.
OTHERS: dict[str, int] = {
    "mono16": 2,
    **dict.fromkeys(("rgb16", "bgr16"), 6),
    **dict.fromkeys(("rgba16", "bgra16"), 8),
    **dict.fromkeys(("uyvy", "yuyv", "yuv422", "yuv422_yuy2"), 2),
    **{f"bayer_{order}8": 1 for order in ("rggb", "bggr", "gbrg", "grbg")},
    **{f"bayer_{order}16": 2 for order in ("rggb", "bggr", "gbrg", "grbg")},
}


class Fault(Enum):
    """What is wrong with an image message."""

    SIZE = "size"
    ENCODING = "encoding"
    STEP = "step"
    LENGTH = "length"
    CONVERSION = "conversion"


class ImageError(ValueError):
    """An image message that cannot be; the text names the value, the rule and the fix."""

    def __init__(self, fault: Fault, text: str) -> None:
        super().__init__(text)
        self.fault = fault


def to_rgb(msg: Image) -> np.ndarray:
    """``msg`` as uint8 (H, W, 3) RGB; ``rgb8`` is a view of the message, the others are a copy.

    Padded rows (``step``) and, for 16-bit encodings, ``is_bigendian`` are honoured. 16-bit values
    are scaled to 8 bits. Raises :class:`ImageError`.
    """
    rows = _rows(msg)
    if msg.encoding not in DIRECT:
        return _to_rgb_by_library(msg, rows)
    channels, code = DIRECT[msg.encoding]
    pixels = rows.reshape(msg.height, msg.width, channels)  # a view: only rows are strided
    return pixels if code is None else cv2.cvtColor(pixels, code)


def image_message(header: Header, pixels: np.ndarray, encoding: str) -> Image:
    """``pixels``, uint8 (H, W) or (H, W, C), as a message with ``header`` verbatim."""
    height, width = pixels.shape[:2]
    msg = Image(header=header, height=height, width=width, encoding=encoding)
    msg.step = pixels.nbytes // height
    # Anything but an array.array would be checked byte by byte by the setter.
    msg.data = array("B")
    msg.data.frombytes(np.ascontiguousarray(pixels).reshape(-1).data)
    return msg


def _rows(msg: Image) -> np.ndarray:
    """The message's bytes, uint8 (H, W * bytes a pixel), without the padding and without a copy."""
    if msg.height == 0 or msg.width == 0:
        raise ImageError(
            Fault.SIZE,
            f"image is {msg.width}x{msg.height}; width and height must be at least 1: check the "
            "camera driver",
        )
    row_bytes = msg.width * _bytes_a_pixel(msg.encoding)
    if msg.step < row_bytes:
        raise ImageError(
            Fault.STEP,
            f"step is {msg.step} bytes; {msg.width} pixels of {msg.encoding} take {row_bytes}: "
            "set step to the length of a row",
        )
    if len(msg.data) != msg.step * msg.height:
        raise ImageError(
            Fault.LENGTH,
            f"data holds {len(msg.data)} bytes; it must hold step * height = {msg.step} * "
            f"{msg.height} = {msg.step * msg.height}: the message was cut short or mislabelled",
        )
    data = np.frombuffer(msg.data, np.uint8).reshape(msg.height, msg.step)
    return data[:, :row_bytes]


def _bytes_a_pixel(encoding: str) -> int:
    if encoding in DIRECT:
        return DIRECT[encoding][0]
    if encoding in OTHERS:
        return OTHERS[encoding]
    raise ImageError(
        Fault.ENCODING,
        f"encoding is {encoding!r}; have the camera publish one of {', '.join([*DIRECT, *OTHERS])}",
    )


def _to_rgb_by_library(msg: Image, rows: np.ndarray) -> np.ndarray:
    # Neither library can be relied upon to honour the padding.
    packed = Image(height=msg.height, width=msg.width, encoding=msg.encoding)
    packed.is_bigendian, packed.step = msg.is_bigendian, rows.shape[1]
    packed.data = array("B", rows.tobytes())
    if CvBridge is None:
        return _to_rgb_by_rosbags(packed)
    try:
        return np.asarray(CvBridge().imgmsg_to_cv2(packed, "rgb8"))
    except (CvBridgeError, cv2.error, TypeError, ValueError) as error:
        raise _not_converted(msg, error) from error


def _to_rgb_by_rosbags(msg: Image) -> np.ndarray:
    try:
        from rosbags.image import ImageError as LibraryError
        from rosbags.image import message_to_cvimage
    except ImportError as error:
        raise ImageError(
            Fault.CONVERSION,
            f"encoding {msg.encoding} needs cv_bridge or rosbags-image; install one of them",
        ) from error
    try:
        return np.asarray(message_to_cvimage(msg, "rgb8"))
    except (LibraryError, cv2.error) as error:
        raise _not_converted(msg, error) from error


def _not_converted(msg: Image, error: Exception) -> ImageError:
    return ImageError(
        Fault.CONVERSION,
        f"a {msg.width}x{msg.height} image of encoding {msg.encoding} cannot be turned into rgb8 "
        f"({str(error).strip()}); have the camera publish rgb8 or bgr8",
    )
