"""``sensor_msgs/Image`` as RGB: every encoding of sensor_msgs/image_encodings.hpp, or why not."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum
from fractions import Fraction
from typing import Any

import cv2
import numpy as np

#: Makes uint8 of uint16 values, of the same shape.
Narrow = Callable[[np.ndarray], np.ndarray]


class Chroma(Enum):
    """How the colours lie that follow the rows of Y, each named by an encoding that has it.

    PAIRS: rows of U and V in turn. PLANES: all of U, then all of V. In 4:2:0 each is there for
    every second pixel of every second row. Rows are padded as those of Y, by their length.
    """

    PAIRS_420 = "nv12"
    PAIRS_444 = "nv24"
    PLANES_420 = "i420"

    @property
    def rows(self) -> Fraction:
        """The length of the whole image in rows of Y, for each of them."""
        return Fraction(3) if self is Chroma.PAIRS_444 else Fraction(3, 2)


@dataclass(frozen=True)
class Encoding:
    """How pixels lie in a message, and OpenCV's conversion to RGB; None where there is none.

    ``channels`` values a pixel in a row, of 16 bits where ``wide``, else of 8. ``pair`` (height,
    width) pixels share their colour: the sides are multiples of it. No side is below ``least``.
    """

    channels: int
    code: int | None
    least: int = 1
    wide: bool = False
    pair: tuple[int, int] = (1, 1)
    chroma: Chroma | None = None


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
_I420 = Encoding(1, cv2.COLOR_YUV2RGB_I420, pair=(2, 2), chroma=Chroma.PLANES_420)

#: All raw encodings that are understood, by their names in sensor_msgs/image_encodings.hpp; and
#: nv12, i420, yuv420 (the same) and yv12, which drivers of V4L2 and libcamera send.
ENCODINGS: dict[str, Encoding] = {
    **{f"{name}8": how for name, how in _COLOURS.items()},
    **{f"{name}16": replace(how, wide=True) for name, how in _COLOURS.items()},
    **{"uyvy": _UYVY, "yuv422": _UYVY, "yuyv": _YUYV, "yuv422_yuy2": _YUYV},
    "nv12": Encoding(1, cv2.COLOR_YUV2RGB_NV12, pair=(2, 2), chroma=Chroma.PAIRS_420),
    "nv21": Encoding(1, cv2.COLOR_YUV2RGB_NV21, pair=(2, 2), chroma=Chroma.PAIRS_420),
    "nv24": Encoding(1, None, chroma=Chroma.PAIRS_444),
    **{"i420": _I420, "yuv420": _I420, "yv12": replace(_I420, code=cv2.COLOR_YUV2RGB_YV12)},
    # OpenCV's matrices, in its order of colours, as rviz shows them.
    **{"8UC1": _COLOURS["mono"], "8UC3": _COLOURS["bgr"], "8UC4": _COLOURS["bgra"]},
}

#: OpenCV's names of matrices: bits, kind of number, channels.
MATRIX = re.compile(r"(8|16|32|64)[USF]C(\d*)")

#: Depth in mm or m by REP 118, and in other precisions.
_DEPTH = ("16UC1", "16SC1", "32FC1", "64FC1")


#: Names of V4L2, FFmpeg, GStreamer and GenICam, in lower case and without signs between letters.
_SAME = {
    "mono8": ("mono", "gray", "grey", "gray8", "grey8", "y8", "y800", "l8", "r8"),
    "mono16": ("gray16", "grey16", "gray16le", "y16", "r16"),
    "rgb8": ("rgb", "rgb24"),
    "bgr8": ("bgr", "bgr24"),
    "rgba8": ("rgba", "rgba32"),
    "bgra8": ("bgra",),
    "yuyv": ("yuy2", "yuyv422"),
    "uyvy": ("uyvy422",),
    "i420": ("iyuv", "yu12", "yuv420p"),
    "yv12": ("yvu420",),
}
_NAMES = {alias: name for name, aliases in _SAME.items() for alias in aliases}

#: The mosaic's colours, by V4L2 or by GenICam; then bits, of which more than 8 have two bytes.
_MOSAIC = re.compile(r"(?:s|bayer)?(rggb|bggr|gbrg|grbg)(8|10|12|14|16)?")
_GENICAM = re.compile(r"bayer(rg|bg|gb|gr)(8|10|12|14|16)?")
_PATTERNS = {"rg": "rggb", "bg": "bggr", "gb": "gbrg", "gr": "grbg"}
_GREY = re.compile(r"(?:mono|gray|grey|y)(10|12|14)")

#: (Y, U, V, 1) to RGB: BT.601 of limited range, as OpenCV has it (ITU-R BT.601-7, 2.5).
_LUMA, _CHROMA, _KR, _KB = 255 / 219, 255 / 224, 0.299, 0.114
_V_RED, _U_BLUE = 2 * (1 - _KR) * _CHROMA, 2 * (1 - _KB) * _CHROMA
_V_GREEN, _U_GREEN = (-x * k / (1 - _KR - _KB) for x, k in ((_V_RED, _KR), (_U_BLUE, _KB)))
_BT601 = np.array(
    [
        [_LUMA, u, v, -16 * _LUMA - 128 * (u + v)]
        for u, v in ((0, _V_RED), (_U_GREEN, _V_GREEN), (_U_BLUE, 0))
    ]
)


class Fault(Enum):
    """What is wrong with an image message."""

    SIZE = "size"
    ENCODING = "encoding"
    STEP = "step"
    LENGTH = "length"
    CONVERSION = "conversion"
    MESSAGE = "message"  # its bytes are no such message
    KEY_FRAME = "key frame"  # a video stream cannot be shown before its next one


class ImageError(ValueError):
    """An image message that cannot be; the text names the value, the rule and the fix."""

    def __init__(self, fault: Fault, text: str) -> None:
        super().__init__(text)
        self.fault = fault


def narrowed(values: np.ndarray, bits: int = 16) -> np.ndarray:
    """uint16 ``values`` of ``bits`` bits as uint8: rounded, and 255 from 2**bits - 1 on."""
    return np.asarray(cv2.convertScaleAbs(values, alpha=255 / (2**bits - 1)))


def octets(data: Any) -> np.ndarray:
    """A message's ``uint8[]`` as uint8 (bytes,); a view where ``data`` is a contiguous buffer."""
    if len(data) == 0:
        return np.empty(0, np.uint8)
    try:
        return np.frombuffer(data, np.uint8)
    except (TypeError, ValueError):  # a list, or an array with gaps
        return np.ascontiguousarray(data, np.uint8).reshape(-1)


def converted(msg: Any, narrow: Narrow) -> np.ndarray:
    """A raw image as uint8 (H, W, 3) RGB; see :func:`.to_rgb`."""
    encoding = _encoding(msg)
    try:
        if encoding.chroma is not None:
            return _with_chroma(msg, encoding.chroma, encoding.code)
        rows = _rows(msg, encoding)
        if encoding.wide:
            order = ">u2" if msg.is_bigendian else "<u2"
            # Copied, as rows of odd step are not aligned.
            values = np.ascontiguousarray(rows).view(order).astype(np.uint16, copy=False)
            rows = narrow(values)
        pixels = rows.reshape(msg.height, msg.width, encoding.channels)  # a view of strided rows
        return pixels if encoding.code is None else cv2.cvtColor(pixels, encoding.code)
    except cv2.error as error:
        raise ImageError(
            Fault.CONVERSION,
            f"a {msg.width}x{msg.height} image of encoding {msg.encoding} cannot be turned into "
            f"rgb8 ({str(error).strip()}); have the camera publish rgb8 or bgr8",
        ) from error


def to_ids(msg: Any) -> np.ndarray:
    """``msg`` of mono8, such as a mask, as uint8 (H, W), a view; raises :class:`ImageError`."""
    if msg.encoding != "mono8":
        raise ImageError(
            Fault.ENCODING, f"encoding is {msg.encoding!r}; class ids must come as mono8"
        )
    return _rows(msg, _encoding(msg))


def _encoding(msg: Any) -> Encoding:
    """How the message's pixels lie, its size being one that they can have."""
    encoding = encoding_named(msg.encoding)
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


def encoding_named(name: str) -> Encoding:
    """The encoding of that ``name``; raises :class:`ImageError` where images cannot have it."""
    if name in ENCODINGS:
        return ENCODINGS[name]
    if name in _DEPTH:
        rule = ", which is depth (REP 118) or other numbers, not a picture; remap to the camera's "
        rule += "colour images, or have it publish mono16 if these are grey values"
    elif MATRIX.fullmatch(name):
        rule = ", a matrix that does not say what its channels are; have it published as rgb8, "
        rule += "bgr8 or mono8 (in cv_bridge: cv2_to_imgmsg(image, encoding='bgr8'))"
    else:
        rule = f"; {_hint(name)}have the camera publish one of {', '.join(ENCODINGS)}"
    raise ImageError(Fault.ENCODING, f"encoding is {name!r}{rule}")


def _hint(name: str) -> str:
    """The sentence "did you mean ...? " for an encoding's ``name``; empty where none is sure.

    A name that merely looks alike is none: yuv422p is not yuv422, nor is yuyv422, and pixels in the
    wrong order give a mask all the same. libcamera and DRM name the bytes of a pixel from the last
    one on, so that RGB888 may be either order, and nothing is said of it.
    """
    plain = re.sub(r"[\W_]", "", name.lower())
    same = {encoding.replace("_", "").lower(): encoding for encoding in ENCODINGS}
    if found := same.get(plain) or _NAMES.get(plain):
        return f"did you mean {found}? "
    base, bits = "", ""
    if match := _MOSAIC.fullmatch(plain):
        base, bits = f"bayer_{match[1]}", match[2] or "8"
    elif match := _GENICAM.fullmatch(plain):
        base, bits = f"bayer_{_PATTERNS[match[1]]}", match[2] or "8"
    elif match := _GREY.fullmatch(plain):
        base, bits = "mono", match[1]
    if not base:
        return ""
    if bits in ("8", "16"):
        return f"did you mean {base}{bits}? "
    return (
        f"did you mean {base}16, with the parameter advanced.bits_per_sample {bits} (if each value "
        "has two bytes)? "
    )


def _rows(msg: Any, encoding: Encoding) -> np.ndarray:
    """The message's bytes, uint8 (rows, bytes a row), without the padding and without a copy."""
    row_bytes, step = msg.width * encoding.channels * (2 if encoding.wide else 1), msg.step
    data = octets(msg.data)
    if data.size == row_bytes * msg.height and step % msg.width == 0:
        step = row_bytes  # no row is padded; drivers count other channels, or write nothing
    _check_step(msg, step, row_bytes)
    if data.size == step * (msg.height - 1) + row_bytes != step * msg.height:
        data = np.pad(data, (0, step - row_bytes))  # buffers may end with the last pixel
    if data.size != step * msg.height:
        raise _wrong_length(msg, data.size, "height", msg.height)
    return data.reshape(msg.height, step)[:, :row_bytes]


def _with_chroma(msg: Any, chroma: Chroma, code: Any) -> np.ndarray:
    """An image of Y, and colours below it, as uint8 (H, W, 3) RGB."""
    height, width, step = msg.height, msg.width, msg.step
    data, rows = octets(msg.data), chroma.rows * height
    if data.size == rows * width and (step > width or not step):
        step = width  # no row is padded; drivers count the colours' bytes in, or write nothing
    _check_step(msg, step, width)
    if data.size != rows * step:
        raise _wrong_length(msg, data.size, f"height * {chroma.rows}", int(rows))
    whole = data.reshape(int(rows), step)
    luma = whole[:height, :width]
    if chroma is Chroma.PAIRS_420:
        pairs = whole[height:, :width].reshape(height // 2, width // 2, 2)
        return cv2.cvtColorTwoPlane(luma, pairs, code)
    if chroma is Chroma.PAIRS_444:
        pairs = whole[height:].reshape(height, 2 * step)[:, : 2 * width]
        u, v = cv2.split(pairs.reshape(height, width, 2))
        # OpenCV has no code for it; Y below black is black in those it has.
        return cv2.transform(cv2.merge([np.maximum(luma, 16), u, v]), _BT601)
    if step > width:  # OpenCV wants the planes without their padding
        if step % 2:
            raise ImageError(
                Fault.STEP,
                f"step is {step} bytes; a row of {msg.encoding} has half as many for each colour, "
                "so it must be even: set step to the length of a row of Y",
            )
        colours = data[height * step :].reshape(height, step // 2)[:, : width // 2]
        whole = np.concatenate([luma.reshape(-1), colours.reshape(-1)]).reshape(-1, width)
    return cv2.cvtColor(whole, code)


def _check_step(msg: Any, step: int, row_bytes: int) -> None:
    if step < row_bytes:
        raise ImageError(
            Fault.STEP,
            f"step is {msg.step} bytes; {msg.width} pixels of {msg.encoding} take {row_bytes}: "
            "set step to the length of a row",
        )


def _wrong_length(msg: Any, size: int, rule: str, rows: int) -> ImageError:
    return ImageError(
        Fault.LENGTH,
        f"data holds {size} bytes; it must hold step * {rule} = {msg.step} * {rows} = "
        f"{msg.step * rows}: the message was cut short or mislabelled",
    )
