"""Image messages as RGB arrays, and the ledger of what became of them; needs no ROS.

A message is anything with the fields of ``sensor_msgs/Image`` or ``sensor_msgs/CompressedImage``,
whatever library made it. Encodings are those of ``sensor_msgs/image_encodings.hpp``.
"""

from __future__ import annotations

import dataclasses
import threading
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

import cv2
import numpy as np


@dataclass(frozen=True)
class Encoding:
    """How pixels lie in a message, and OpenCV's conversion to RGB; None where they are RGB.

    ``channels`` values a pixel in a row, of 16 bits where ``wide``, else of 8. ``pair`` (height,
    width) pixels share their colour: the sides are multiples of it. No side is below ``least``.
    ``planar``: below the rows of Y, and with the same ``step``, half as many rows of UV follow
    (4:2:0).
    """

    channels: int
    code: int | None
    least: int = 1
    wide: bool = False
    pair: tuple[int, int] = (1, 1)
    planar: bool = False


_COLOURS = {
    "rgb": Encoding(3, None),
    "bgr": Encoding(3, cv2.COLOR_BGR2RGB),
    "rgba": Encoding(4, cv2.COLOR_RGBA2RGB),
    "bgra": Encoding(4, cv2.COLOR_BGRA2RGB),
    "mono": Encoding(1, cv2.COLOR_GRAY2RGB),
    "bayer_rggb": Encoding(1, cv2.COLOR_BayerRGGB2RGB, 3),
    "bayer_bggr": Encoding(1, cv2.COLOR_BayerBGGR2RGB, 3),
    "bayer_gbrg": Encoding(1, cv2.COLOR_BayerGBRG2RGB, 3),
    "bayer_grbg": Encoding(1, cv2.COLOR_BayerGRBG2RGB, 3),
}
_UYVY = Encoding(2, cv2.COLOR_YUV2RGB_UYVY, pair=(1, 2))
_YUYV = Encoding(2, cv2.COLOR_YUV2RGB_YUY2, pair=(1, 2))

#: All raw encodings that are understood, by their names in sensor_msgs/image_encodings.hpp.
ENCODINGS: dict[str, Encoding] = {
    **{f"{name}8": how for name, how in _COLOURS.items()},
    **{f"{name}16": replace(how, wide=True) for name, how in _COLOURS.items()},
    **{"uyvy": _UYVY, "yuv422": _UYVY, "yuyv": _YUYV, "yuv422_yuy2": _YUYV},
    "nv12": Encoding(1, cv2.COLOR_YUV2RGB_NV12, pair=(2, 2), planar=True),
    "nv21": Encoding(1, cv2.COLOR_YUV2RGB_NV21, pair=(2, 2), planar=True),
}

#: Compressed formats that are understood: how such a file begins, and how it ends.
FORMATS = {
    "JPEG": (b"\xff\xd8\xff", b"\xff\xd9"),
    "PNG": (b"\x89PNG\r\n\x1a\n", b"IEND\xaeB`\x82"),
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


def to_rgb(message: Any) -> np.ndarray:
    """The image ``message`` as uint8 (H, W, 3) RGB; raises :class:`ImageError`.

    Raw images: ``rgb8`` is a view of the message, all others are a copy. Padded rows (``step``)
    and, for 16-bit encodings, ``is_bigendian`` are honoured. 16-bit values are scaled to 8 bits
    (65535 to 255) and rounded. YUV is BT.601 of limited range, as in cv_bridge.

    Compressed images: grey becomes colour, 16 bits become 8, and alpha is left out. The first bytes
    say what the image is, since drivers fill ``format`` in as they like. The order of pixels is
    that of the file, whatever orientation EXIF asks for, as camera calibration goes by it. A file
    cut short is an error, whatever the decoder would make of it; damage inside a JPEG which its
    format cannot tell is not noticed.
    """
    return _decoded(message) if _is_compressed(message) else _converted(message)


def encoding_of(message: Any) -> str:
    """What the camera sent the image as, in the words of the message."""
    return str(message.format if _is_compressed(message) else message.encoding)


def to_ids(msg: Any) -> np.ndarray:
    """``msg`` of mono8, such as a mask, as uint8 (H, W), a view; raises :class:`ImageError`."""
    if msg.encoding != "mono8":
        raise ImageError(
            Fault.ENCODING, f"encoding is {msg.encoding!r}; class ids must come as mono8"
        )
    return _rows(msg, _encoding(msg))


def _is_compressed(message: Any) -> bool:
    return hasattr(message, "format")


def _converted(msg: Any) -> np.ndarray:
    """A raw image as uint8 (H, W, 3) RGB."""
    encoding = _encoding(msg)
    rows = _rows(msg, encoding)
    if encoding.wide:
        rows = _narrowed(rows, msg)
    shape, code = (msg.height, msg.width, encoding.channels), encoding.code
    if code is None:
        return rows.reshape(shape)  # a view: only rows are strided
    try:
        if encoding.planar:
            luma, chroma = rows[: msg.height], rows[msg.height :]
            chroma = chroma.reshape(msg.height // 2, msg.width // 2, 2)
            return cv2.cvtColorTwoPlane(luma, chroma, code)
        return cv2.cvtColor(rows.reshape(shape), code)
    except cv2.error as error:
        raise ImageError(
            Fault.CONVERSION,
            f"a {msg.width}x{msg.height} image of encoding {msg.encoding} cannot be turned into "
            f"rgb8 ({str(error).strip()}); have the camera publish rgb8 or bgr8",
        ) from error


def _encoding(msg: Any) -> Encoding:
    """How the message's pixels lie, its size being one that they can have."""
    encoding = ENCODINGS.get(msg.encoding)
    if encoding is None:
        raise ImageError(
            Fault.ENCODING,
            f"encoding is {msg.encoding!r}; have the camera publish one of {', '.join(ENCODINGS)}",
        )
    if min(msg.height, msg.width) < encoding.least:
        raise ImageError(
            Fault.SIZE,
            f"image is {msg.width}x{msg.height}; width and height of {msg.encoding} must be at "
            f"least {encoding.least}: check the camera driver",
        )
    height, width = encoding.pair
    if msg.height % height or msg.width % width:
        sides = "width and height" if height > 1 else "width"
        raise ImageError(
            Fault.SIZE,
            f"image is {msg.width}x{msg.height} of encoding {msg.encoding}, whose pixels share "
            f"colours in twos; {sides} must be even: crop it or have the camera publish rgb8",
        )
    return encoding


def _rows(msg: Any, encoding: Encoding) -> np.ndarray:
    """The message's bytes, uint8 (rows, bytes a row), without the padding and without a copy."""
    row_bytes = msg.width * encoding.channels * (2 if encoding.wide else 1)
    if msg.step < row_bytes:
        raise ImageError(
            Fault.STEP,
            f"step is {msg.step} bytes; {msg.width} pixels of {msg.encoding} take {row_bytes}: "
            "set step to the length of a row",
        )
    count = msg.height * 3 // 2 if encoding.planar else msg.height
    if len(msg.data) != msg.step * count:
        rows = "height * 3/2" if encoding.planar else "height"
        raise ImageError(
            Fault.LENGTH,
            f"data holds {len(msg.data)} bytes; it must hold step * {rows} = {msg.step} * "
            f"{count} = {msg.step * count}: the message was cut short or mislabelled",
        )
    return np.frombuffer(msg.data, np.uint8).reshape(count, msg.step)[:, :row_bytes]


def _narrowed(rows: np.ndarray, msg: Any) -> np.ndarray:
    """Rows of 16-bit values as uint8."""
    order = ">u2" if msg.is_bigendian else "<u2"
    # Copied, as rows of odd step are not aligned.
    values = np.ascontiguousarray(rows).view(order).astype(np.uint16, copy=False)
    return np.asarray(cv2.convertScaleAbs(values, alpha=1 / 257))


def _decoded(msg: Any) -> np.ndarray:
    """A compressed image as uint8 (H, W, 3) RGB."""
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


@dataclass(frozen=True)
class Ledger:
    """Counts since the start: ``received = published + rejected + failed + in_flight``."""

    received: int = 0
    published: int = 0
    rejected: int = 0
    failed: int = 0
    in_flight: int = 0
    superseded: int = 0

    def __post_init__(self) -> None:
        ends = self.published + self.rejected + self.failed + self.in_flight
        if self.received != ends or min(vars(self).values()) < 0:
            raise ValueError(f"{self} does not balance; book each message in once and out once")


class Bookkeeper:
    """Owner of the ledger; any thread may read, and what it reads balances."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ledger = Ledger()

    @property
    def ledger(self) -> Ledger:
        """A snapshot."""
        with self._lock:
            return self._ledger

    def receive(self, superseded: int) -> None:
        """A message has come in, ``superseded`` others before it never did."""
        self._add(received=1, in_flight=1, superseded=superseded)

    def publish(self) -> None:
        """The message in flight was answered with a mask."""
        self._add(published=1, in_flight=-1)

    def reject(self) -> None:
        """The message in flight is an impossible image."""
        self._add(rejected=1, in_flight=-1)

    def fail(self) -> None:
        """No mask could be made for the message in flight."""
        self._add(failed=1, in_flight=-1)

    def _add(self, **increments: int) -> None:
        with self._lock:
            values = {name: getattr(self._ledger, name) + by for name, by in increments.items()}
            self._ledger = dataclasses.replace(self._ledger, **values)
