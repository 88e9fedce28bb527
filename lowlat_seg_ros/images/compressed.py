"""``sensor_msgs/CompressedImage`` as RGB: JPEG and PNG, whole ones alone."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import cv2
import numpy as np

from lowlat_seg_ros.images.raw import (
    ENCODINGS,
    MATRIX,
    Fault,
    ImageError,
    Narrow,
    encoding_named,
    octets,
)

#: The next marker of a JPEG; 0xFF as a value is followed by 0, and 0xD0 to 0xD7 only restart the
#: decoder (ITU-T T.81, B.1.1). Others begin a segment, with its length.
_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
_END_OF_JPEG = b"\xff\xd9"
#: What else cameras and bridges send as CompressedImage, by how it begins.
_OTHERS = (
    (re.compile(rb"RIFF....WEBP", re.DOTALL), "WebP"),
    (re.compile(rb"II\*\0|MM\0\*"), "TIFF"),
    (re.compile(rb"BM"), "BMP"),
    (re.compile(rb"GIF8"), "GIF"),
    (re.compile(rb"\0\0\0\x0cjP  "), "JPEG 2000"),
    (re.compile(rb"\0\0\0.ftyp(avif|hei|mif)", re.DOTALL), "AVIF or HEIF"),
    (re.compile(rb"\0{2,3}\x01"), "H.264 or H.265"),
    (re.compile(rb"/9j/|iVBORw0KGgo"), "text in base64"),
)

_END_OF_PNG = re.compile(rb"\0\0\0\0IEND\xaeB`\x82")

#: The markers of a JPEG's size: SOF0 to SOF15 but DHT, JPG and DAC (ITU-T T.81, Table B.1).
_SIZE_OF_JPEG = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}

#: A header of more pixels (16K is 133 million) is damaged, and would take gigabytes of memory.
MOST_PIXELS = 2**27

#: A file of more pixels a byte is cut short, and filling in what is missing takes minutes. Each
#: block of 64 pixels of a JPEG takes a bit at least; deflate makes at most 1032 bytes of one, which
#: are 8 pixels each where they have one bit.
PIXELS_PER_BYTE = {"JPEG": 1000, "PNG": 8300}


def decoded(msg: Any, narrow: Narrow) -> np.ndarray:
    """A compressed image as uint8 (H, W, 3) RGB; see :func:`~.reader.to_rgb`."""
    data = octets(msg.data)
    source, target = _encodings(msg.format)
    name = _file_of(data, msg.format)
    if not _FILES[name][1](data.data):
        raise ImageError(
            Fault.LENGTH,
            f"data holds {data.size} bytes of a {name} that does not end: the message was cut "
            "short; check the camera driver and the network to it",
        )
    if name == "PNG" and not _png_chunks_fit(data.data):  # OpenCV would allocate what they claim
        raise _damaged(name, data, "a chunk claims more bytes than there are")
    height, width = _FILES[name][2](data.data)
    most = min(MOST_PIXELS, PIXELS_PER_BYTE[name] * data.size)
    if height * width > most:
        raise ImageError(
            Fault.SIZE,
            f"the {name}'s header says {width}x{height} pixels, and {data.size} bytes can hold "
            f"{most} at most: it is damaged; check the camera driver",
        )
    try:
        # Also leaves the orientation of EXIF alone.
        pixels = cv2.imdecode(data, cv2.IMREAD_UNCHANGED)
        if pixels is None:
            raise _damaged(name, data, "the decoder gives up")
        if pixels.dtype != np.uint8:
            pixels = narrow(pixels)
        if pixels.ndim == 2:
            mosaic = source.startswith("bayer_") and ENCODINGS[source].code
            return cv2.cvtColor(pixels, mosaic or cv2.COLOR_GRAY2RGB)
    except cv2.error as error:
        raise _damaged(name, data, str(error).strip()) from error
    # OpenCV gives BGR; what image_transport left in the order of the raw image is RGB by that.
    if target.startswith("rgb"):
        return pixels[..., :3]
    alpha = pixels.shape[2] == 4
    return cv2.cvtColor(pixels, cv2.COLOR_BGRA2RGB if alpha else cv2.COLOR_BGR2RGB)


def _encodings(text: str) -> tuple[str, str]:
    """Of the raw image and of what was compressed, as image_transport writes both into ``format``.

    That is "rgb8; jpeg compressed bgr8"; others write "jpeg" alone, which is neither. Raises
    :class:`ImageError` for what is no picture, such as depth.
    """
    source, _, how = (part.strip() for part in text.partition(";"))
    if "compresseddepth" in text.lower():
        raise ImageError(
            Fault.ENCODING,
            f"format is {text!r}, which is depth (image_transport's compressedDepth), not a "
            "picture; remap to the camera's colour images",
        )
    if source.startswith("bayer_") or MATRIX.fullmatch(source):  # others change nothing
        encoding_named(source)
    return source, how.partition("compressed")[2].strip()


def refuse_file(msg: Any) -> None:
    """ImageError for a JPEG or PNG in a raw image, as usb_cam's ``raw_mjpeg`` sends it.

    Its bytes would be taken for pixels where there are as many as the image has.
    """
    data = octets(msg.data)
    begin = data[:8].tobytes()
    for name, (magic, _, size) in _FILES.items():
        # Pixels may begin like a JPEG, but they do not go on like one to its size.
        if begin.startswith(magic) and all(size(data.data)):
            raise ImageError(
                Fault.ENCODING,
                f"data is a {name}, not pixels of encoding {msg.encoding!r}; have the camera "
                "publish it as sensor_msgs/CompressedImage and set the parameter image_transport "
                "to compressed, or have it publish rgb8",
            )


def _file_of(data: np.ndarray, text: str) -> str:
    """What the data begin as, whatever ``text``, the message's format, says."""
    begin = data[:8].tobytes()
    for name, (magic, *_) in _FILES.items():
        if begin.startswith(magic):
            return name
    what = next((name for form, name in _OTHERS if form.match(data[:16].tobytes())), "")
    if what == "H.264 or H.265":
        fix = "have it sent as foxglove_msgs/CompressedVideo, with image_transport foxglove"
    else:
        fix = "have the camera publish one of them, or set image_transport to raw"
    is_ = f"data is {what}" if what else f"data begins with {begin.hex(' ') or 'nothing'}"
    raise ImageError(
        Fault.ENCODING,
        f"{is_} (format is {text!r}), which is neither {' nor '.join(_FILES)}; {fix}",
    )


def _segments(data: memoryview) -> Iterator[tuple[int, int]]:
    """Markers of a JPEG, without their 0xFF, and where their segments begin."""
    place = 2
    while place <= len(data) and (found := _MARKER.search(data, place)) is not None:
        marker, place = found[0][1], found.end()
        yield marker, place
        if marker != 0x01:  # which is all of its segment
            place += int.from_bytes(data[place : place + 2], "big")


def _jpeg_is_whole(data: memoryview) -> bool:
    """Whether the image's own end comes, not one of a thumbnail in its header or of a later image.

    What follows it does not count: drivers send buffers that are longer than the image.
    """
    for marker, _ in _segments(data):
        if marker in (0xD8, 0xD9):  # another image begins, or this one ends
            return marker == 0xD9
    # A header that leads beyond the data: damaged, not cut short.
    return bytes(data).rstrip(b"\0").endswith(_END_OF_JPEG)


def _jpeg_size(data: memoryview) -> tuple[int, int]:
    """Height and width in pixels by the header; 0 where there is none, which no decoder takes."""
    place = next((place for marker, place in _segments(data) if marker in _SIZE_OF_JPEG), len(data))
    sides = data[place + 3 : place + 5], data[place + 5 : place + 7]
    return int.from_bytes(sides[0], "big"), int.from_bytes(sides[1], "big")


def _png_is_whole(data: memoryview) -> bool:
    """Whether its last chunk comes, with its checksum; whatever follows."""
    return _END_OF_PNG.search(data) is not None


def _png_chunks_fit(data: memoryview) -> bool:
    """Whether each chunk up to the end of the image lies in the data."""
    place = 8
    while place + 12 <= len(data):
        length, kind = int.from_bytes(data[place : place + 4], "big"), data[place + 4 : place + 8]
        place += 12 + length
        if bytes(kind) == b"IEND":
            return place <= len(data)
    return False


def _png_size(data: memoryview) -> tuple[int, int]:
    """Height and width in pixels by the header."""
    return int.from_bytes(data[20:24], "big"), int.from_bytes(data[16:20], "big")


#: Files that are understood: how they begin, whether they are whole, and their size.
_FILES: dict[
    str,
    tuple[bytes, Callable[[memoryview], bool], Callable[[memoryview], tuple[int, int]]],
] = {
    "JPEG": (b"\xff\xd8\xff", _jpeg_is_whole, _jpeg_size),
    "PNG": (b"\x89PNG\r\n\x1a\n", _png_is_whole, _png_size),
}


def _damaged(name: str, data: np.ndarray, why: str) -> ImageError:
    return ImageError(
        Fault.CONVERSION,
        f"data holds {data.size} bytes of a damaged {name} ({why}); check the camera driver",
    )
