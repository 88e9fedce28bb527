"""``sensor_msgs/Image`` and ``CompressedImage`` as the middleware delivers them: no byte is copied.

Both are laid out as CDR has it (DDSI-RTPS 2.3, chapter 10): four bytes say the order of bytes,
numbers are aligned to their size, and strings and sequences begin with their length.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from lowlat_seg_ros.images.raw import Fault, ImageError

#: Makes a ``std_msgs/Header`` of seconds, nanoseconds and the frame's id.
MakeHeader = Callable[[int, int, str], Any]

_ORDERS = {b"\0\0": ">", b"\0\1": "<"}


@dataclass(frozen=True)
class RawImage:
    """The fields of ``sensor_msgs/Image``; ``data`` is uint8 (bytes,), a view, not writable."""

    header: Any
    height: int
    width: int
    encoding: str
    is_bigendian: int
    step: int
    data: np.ndarray


@dataclass(frozen=True)
class CompressedImage:
    """The fields of ``sensor_msgs/CompressedImage``; ``data`` as in :class:`RawImage`."""

    header: Any
    format: str
    data: np.ndarray


def raw_image(message: bytes, make_header: MakeHeader) -> RawImage:
    """The ``sensor_msgs/Image`` in ``message``; raises :class:`~.raw.ImageError`."""
    fields = _Fields(message)
    header = fields.header(make_header)
    height, width = fields.numbers("II")
    encoding, (is_bigendian,), (step,) = fields.text(), fields.numbers("B", 1), fields.numbers("I")
    return RawImage(header, height, width, encoding, is_bigendian, step, fields.octets())


def compressed_image(message: bytes, make_header: MakeHeader) -> CompressedImage:
    """The ``sensor_msgs/CompressedImage`` in ``message``; raises :class:`~.raw.ImageError`."""
    fields = _Fields(message)
    return CompressedImage(fields.header(make_header), fields.text(), fields.octets())


class _Fields:
    """Reads a message from its begin to its end; raises ImageError where that comes too soon."""

    def __init__(self, message: bytes) -> None:
        order = _ORDERS.get(message[:2])
        if order is None:
            raise ImageError(
                Fault.MESSAGE,
                f"the message begins with {message[:4].hex(' ') or 'nothing'}; serialized ROS "
                "messages begin with 00 00 or 00 01: publish it with ROS 2",
            )
        self._order, self._bytes, self._place = order, memoryview(message)[4:], 0

    def header(self, make: MakeHeader) -> Any:
        sec, nanosec = self.numbers("iI")
        return make(sec, nanosec, self.text())

    def numbers(self, form: str, size: int = 4) -> tuple[int, ...]:
        """Numbers of ``size`` bytes each, to which they are aligned; ``form`` as in struct."""
        self._place += -self._place % size
        return struct.unpack(self._order + form, self._next(size * len(form)))

    def text(self) -> str:
        # Its end is a zero, which counts.
        return bytes(self._next(*self.numbers("I"))[:-1]).decode(errors="replace")

    def octets(self) -> np.ndarray:
        return np.frombuffer(self._next(*self.numbers("I")), np.uint8)

    def _next(self, count: int) -> memoryview:
        begin, self._place = self._place, self._place + count
        if self._place > len(self._bytes):
            raise ImageError(
                Fault.MESSAGE,
                f"the message holds {len(self._bytes)} bytes, and a field of {count} begins at "
                f"byte {begin}: it was cut short, or is no image; check the camera driver",
            )
        return self._bytes[begin : self._place]
