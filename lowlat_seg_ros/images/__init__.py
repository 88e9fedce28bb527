"""Whatever image message a camera sends as an RGB array; needs no ROS.

A message is anything with the fields of ``sensor_msgs/Image`` or ``sensor_msgs/CompressedImage``,
whatever library made it, or a :class:`~.compressed.Packet` of a video stream.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numpy as np

from lowlat_seg_ros.images.compressed import Packet, VideoDecoder, decoded, refuse_file
from lowlat_seg_ros.images.raw import (
    ENCODINGS,
    Fault,
    ImageError,
    Narrow,
    converted,
    narrowed,
    to_ids,
)

__all__ = [
    "ENCODINGS",
    "SAMPLE_BITS",
    "WATCHED_IMAGES",
    "Fault",
    "ImageError",
    "ImageReader",
    "Packet",
    "encoding_of",
    "to_ids",
    "to_rgb",
]

logger = logging.getLogger(__name__)

#: Bits a sample that cameras have, in values of 16.
SAMPLE_BITS = (8, 10, 12, 14, 16)

#: So many images are looked at before anything is said about their bits: one may be dark.
WATCHED_IMAGES = 5


def to_rgb(message: Any, narrow: Narrow = narrowed) -> np.ndarray:
    """The image ``message`` as uint8 (H, W, 3) RGB; raises :class:`~.raw.ImageError`.

    Raw images: ``rgb8`` is a view of the message, all others are a copy. Padded rows (``step``)
    and, for 16-bit encodings, ``is_bigendian`` are honoured. ``narrow`` makes 8 bits of 16: 65535
    becomes 255, rounded, unless it is another. YUV is BT.601 of limited range, as in cv_bridge.

    Compressed images: grey becomes colour, 16 bits become 8, and alpha is left out; a Bayer mosaic
    is named by ``format`` and demosaiced. The first bytes say what the file is, since drivers fill
    ``format`` in as they like. The order of pixels is that of the file, whatever orientation EXIF
    asks for, as camera calibration goes by it. A file cut short is an error, whatever the decoder
    would make of it, and bytes after its end are none; damage inside a JPEG which its format cannot
    tell is not noticed.
    """
    if hasattr(message, "format"):
        return decoded(message, narrow)
    refuse_file(message)
    return converted(message, narrow)


def encoding_of(message: Any) -> str:
    """What the camera sent the image as, in the words of the message."""
    if isinstance(message, Packet):
        return message.codec
    return str(message.format if hasattr(message, "format") else message.encoding)


class ImageReader:
    """Makes RGB of the messages of one camera, one after the other.

    Besides :func:`to_rgb` it knows what a message does not say: how many bits a sample of 16 has,
    and the pictures that a video's next one builds on.
    """

    def __init__(
        self, bits: Callable[[], int] = lambda: 0, warn: Callable[[str], object] = logger.warning
    ) -> None:
        """``bits`` gives one of :data:`SAMPLE_BITS`, or 0 for 16, at any image.

        ``warn`` is called, once for each, when the values of :data:`WATCHED_IMAGES` images say
        otherwise.
        """
        self._bits, self._warn = bits, warn
        self._watched = (0, "", 0)  # bits and encoding, and how many images were looked at
        self._largest = 0
        self._video = VideoDecoder()

    def __call__(self, message: Any) -> np.ndarray:
        """As :func:`to_rgb`, also for a :class:`~.compressed.Packet`."""
        if isinstance(message, Packet):
            return self._video.decode(message)
        return to_rgb(message, lambda values: self._narrow(values, encoding_of(message)))

    def restart(self) -> None:
        """Forget a video's earlier pictures: messages were missed, so wait for its key frame."""
        self._video = VideoDecoder()

    def skip(self, packet: Packet) -> None:
        """Take in a video's picture that nobody needs but those that follow it."""
        self._video.skip(packet)

    def _narrow(self, values: np.ndarray, encoding: str) -> np.ndarray:
        asked = self._bits()
        bits, of, count = self._watched
        if (bits, of) != (asked, encoding):
            count = self._largest = 0
        if count < WATCHED_IMAGES:
            brightest = int(values.max())
            self._largest = max(self._largest, brightest)
            count += brightest > 0  # a black image says nothing
            if count == WATCHED_IMAGES:
                self._judge(asked, encoding)
        self._watched = asked, encoding, count
        return narrowed(values, asked or 16)

    def _judge(self, asked: int, encoding: str) -> None:
        largest = self._largest
        needed = next(bits for bits in SAMPLE_BITS if largest < 2**bits)
        seen = f"of {WATCHED_IMAGES} images of encoding {encoding} reach {largest}"
        if needed > (asked or 16):
            self._warn(
                f"values {seen}, which is more than {2**asked - 1}, the largest of "
                f"advanced.bits_per_sample {asked}, so they are too bright; set it to {needed}"
            )
        elif needed < (asked or 16):
            self._warn(
                f"values {seen} and no more, of {2 ** (asked or 16) - 1}, so they are taken for "
                f"dark; if the camera has {needed} bits a sample, set the parameter "
                f"advanced.bits_per_sample to {needed}"
            )
