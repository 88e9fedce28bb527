"""Coded images as RGB: whole JPEG and PNG files, and H.264 and H.265 through PyAV (FFmpeg)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
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

#: A NAL unit begins, with its header's first byte (ITU-T H.264 and H.265, Annex B).
_UNIT = re.compile(rb"\0\0\x01(.)", re.DOTALL)


def decoded(msg: Any, narrow: Narrow) -> np.ndarray:
    """A compressed image as uint8 (H, W, 3) RGB; see :func:`.to_rgb`."""
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
    return cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)  # which leaves alpha out, too


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
        if not begin.startswith(magic):
            continue
        # Pixels may begin like a JPEG, but they do not go on like one to its size.
        if (name != "JPEG" or _goes_on_as_jpeg(data.data)) and all(size(data.data)):
            raise ImageError(
                Fault.ENCODING,
                f"data is a {name}, not pixels of encoding {msg.encoding!r}; have the camera "
                "publish it as sensor_msgs/CompressedImage and set the parameter image_transport "
                "to compressed, or have it publish rgb8",
            )


def _goes_on_as_jpeg(data: memoryview) -> bool:
    """Whether segment follows upon segment to the one with the size, whose samples have 8 bits."""
    place = 2
    while place + 9 <= len(data) and data[place] == 0xFF:
        if data[place + 1] in _SIZE_OF_JPEG:
            return data[place + 4] == 8
        place += 2 + int.from_bytes(data[place + 2 : place + 4], "big")
    return False


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


@dataclass(frozen=True)
class Packet:
    """One coded picture of a stream: what ``foxglove_msgs/CompressedVideo`` and
    ``ffmpeg_image_transport_msgs/FFMPEGPacket`` hold, with a ``std_msgs/Header``.

    ``codec``: the message's word for it; ``data``: Annex B, any buffer. ``after_gap``: packets
    before it were lost, so that it cannot be shown unless it is a key frame.
    """

    header: Any
    codec: str
    data: Any
    after_gap: bool = False


class VideoDecoder:
    """Decodes the packets of one camera in their order; each builds on those before it.

    Nothing is shown between a loss and the next key frame: FFmpeg would make up what is missing.
    """

    def __init__(self) -> None:
        self._codec = ""
        self._context: Any = None
        self._waiting = "no key frame of the stream has come yet"

    def decode(self, packet: Packet) -> np.ndarray:
        """The picture as uint8 (H, W, 3) RGB; raises :class:`~.raw.ImageError`.

        That is also raised, with :attr:`Fault.KEY_FRAME`, until a key frame comes.
        """
        rgb: np.ndarray = self._frame(packet).to_ndarray(format="rgb24")
        return rgb

    def skip(self, packet: Packet) -> None:
        """Take in a picture that nobody needs but those that follow it."""
        with suppress(ImageError):  # the next one says what is wrong
            self._frame(packet)

    def _frame(self, packet: Packet) -> Any:
        import av  # here, as only those who have a video need it

        codec, data = _codec_of(packet.codec), octets(packet.data).tobytes()
        is_key = _is_key_frame(codec, data)
        if codec != self._codec or (is_key and self._waiting):
            self._restart(codec)
        if packet.after_gap and not self._waiting:
            self._waiting = "packets were lost on their way"
        if is_key:
            self._waiting = ""
        if self._waiting:
            raise ImageError(
                Fault.KEY_FRAME,
                f"{self._waiting}, and the {codec} stream cannot be shown before its next key "
                "frame; if it does not come soon, have the encoder make one at least every second "
                "(a GOP of the frame rate)",
            )
        try:
            frames = self._context.decode(av.Packet(data))
        except av.error.FFmpegError as error:
            self._waiting = "a packet was damaged"
            raise ImageError(
                Fault.CONVERSION,
                f"data holds {len(data)} bytes that are no picture of {codec} ({error}); a key "
                "frame must come with its parameter sets, and data as Annex B: check the encoder",
            ) from error
        if not frames or frames[-1].is_corrupt:
            self._waiting = "a packet gave no whole picture"
            raise ImageError(
                Fault.CONVERSION,
                f"data holds {len(data)} bytes of {codec} that give no whole picture; each message "
                "must hold one, without B-frames: set the encoder to them (x264: tune zerolatency)",
            )
        return frames[-1]

    def _restart(self, codec: str) -> None:
        import av
        from av.codec.context import Flags

        self._codec, self._waiting = codec, "no key frame of the stream has come yet"
        self._context = av.CodecContext.create(codec, "r")
        # One picture out for each in; more threads would keep some back.
        self._context.thread_count = 1
        self._context.flags |= Flags.low_delay


def _codec_of(name: str) -> str:
    """FFmpeg's decoder for a message's word, such as h265, libx264 or hevc_nvenc."""
    word = name.partition(";")[0].strip().lower()
    if "264" in word:
        return "h264"
    if "265" in word or "hevc" in word:
        return "hevc"
    raise ImageError(
        Fault.ENCODING,
        f"the video's format is {name!r}; it must be H.264 or H.265: set the camera's encoder to "
        "h264 or h265, or image_transport to raw or compressed",
    )


def _is_key_frame(codec: str, data: bytes) -> bool:
    """Whether decoding can begin with the picture: what its first slice says."""
    for found in _UNIT.finditer(data):
        head = found[1][0]
        kind = head & 31 if codec == "h264" else head >> 1 & 63
        is_slice = 1 <= kind <= 5 if codec == "h264" else kind < 32
        if is_slice:
            return kind == 5 if codec == "h264" else 16 <= kind <= 21
    return False
