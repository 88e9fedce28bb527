"""``sensor_msgs/CompressedImage`` to RGB arrays: JPEG and PNG, by OpenCV's decoders."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np

from lowlat_seg_ros.images.raw import Fault, ImageError

#: Name: how such a file begins, and how it ends.
FORMATS = {
    "JPEG": (b"\xff\xd8\xff", b"\xff\xd9"),
    "PNG": (b"\x89PNG\r\n\x1a\n", b"IEND\xaeB`\x82"),
}


def to_rgb(msg: Any) -> np.ndarray:
    """``msg`` as uint8 (H, W, 3) RGB; grey becomes colour, 16 bits become 8, alpha is left out.

    What it is, its first bytes say: drivers fill ``format`` in as they like. The order of pixels is
    that of the file, whatever orientation EXIF asks for, as camera calibration goes by it. A file
    cut short is an error, whatever the decoder would make of it; damage inside a JPEG which its
    format cannot tell is not noticed. Raises :class:`ImageError`.
    """
    data = bytes(msg.data)
    name = next((name for name, (begin, _) in FORMATS.items() if data.startswith(begin)), None)
    if name is None:
        raise ImageError(
            Fault.ENCODING,
            f"data begins with {data[:8].hex(' ') or 'nothing'} (format is {msg.format!r}), which "
            f"is neither {' nor '.join(FORMATS)}; have the camera publish one of them, or set "
            "image_transport to raw",
        )
    # Some drivers fill their buffers up with zeros.
    if not data.rstrip(b"\0").endswith(FORMATS[name][1]):
        raise ImageError(
            Fault.LENGTH,
            f"data holds {len(data)} bytes of a {name} that does not end: the message was cut "
            "short; check the camera driver and the network to it",
        )
    try:
        flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:
        raise _damaged(name, data, str(error).strip()) from error
    if pixels is None:
        raise _damaged(name, data, "the decoder gives up")
    # What image_transport says of channels that it left in the order of the raw image.
    return pixels if "compressed rgb" in msg.format else cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)


def _damaged(name: str, data: bytes, why: str) -> ImageError:
    return ImageError(
        Fault.CONVERSION,
        f"data holds {len(data)} bytes of a damaged {name} ({why}); check the camera driver",
    )
