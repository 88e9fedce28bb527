"""Messages from records and back, for the node and for bags; needs no ROS.

Images are also read as the middleware delivers them, without a copy of their bytes. They are laid
out as CDR has it (DDSI-RTPS 2.3, chapter 10): four bytes say the order of bytes, numbers are
aligned to their size, and strings and sequences begin with their length.
"""

from __future__ import annotations

import dataclasses
import math
import struct
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from lowlat_seg_ros.frames import (
    NO_TRUST,
    Counters,
    Deadline,
    Ledger,
    MaskKind,
    NodeTiming,
    Outcome,
    Provenance,
    Refinement,
    ResetReason,
    Segmentation,
    Selection,
    StageTiming,
)
from lowlat_seg_ros.images import Fault, ImageError, Packet

PACKAGE = "lowlat_seg_ros"
IMAGE, COMPRESSED, REPORT, STATISTICS = (
    "sensor_msgs/msg/Image",
    "sensor_msgs/msg/CompressedImage",
    f"{PACKAGE}/msg/FrameReport",
    f"{PACKAGE}/msg/Statistics",
)

Record = TypeVar("Record")

# In the order of the constants in the .msg files.
_KINDS, _OUTCOMES = list(MaskKind), list(Outcome)

_ORDERS = {b"\0\0": ">", b"\0\1": "<"}


@dataclass(frozen=True)
class Transport:
    """``kind`` of messages, and where their topic is below the one of raw images.

    ``depth`` messages wait while a frame is segmented. Of images the newest is enough; each of a
    video builds on those before it.
    """

    kind: str
    below: str
    depth: int = 1

    @property
    def is_video(self) -> bool:
        """Whether a message is a :class:`~.images.Packet`."""
        return self.depth > 1


#: As image_transport and its plugins name them.
TRANSPORTS = {
    "raw": Transport(IMAGE, ""),
    "compressed": Transport(COMPRESSED, "/compressed"),
    "foxglove": Transport("foxglove_msgs/msg/CompressedVideo", "/foxglove", 60),
    "ffmpeg": Transport("ffmpeg_image_transport_msgs/msg/FFMPEGPacket", "/ffmpeg", 60),
}


class Messages(ABC):
    """Makes messages; :meth:`make` knows the library that their classes come from."""

    @abstractmethod
    def make(self, kind: str, /, **fields: Any) -> Any:
        """A message of type ``kind``, such as ``std_msgs/msg/Header``; other fields are zero."""

    def time(self, ns: int) -> Any:
        """Integer nanoseconds as a message's stamp."""
        sec, nanosec = divmod(ns, 1_000_000_000)
        return self.make("builtin_interfaces/msg/Time", sec=sec, nanosec=nanosec)

    def header(self, stamp_ns: int, frame_id: str) -> Any:
        """A ``std_msgs/Header``."""
        return self.make("std_msgs/msg/Header", stamp=self.time(stamp_ns), frame_id=frame_id)

    def image(self, header: Any, pixels: np.ndarray, encoding: str) -> Any:
        """``pixels``, uint8 (H, W) or (H, W, C), as ``sensor_msgs/Image`` with this ``header``."""
        height, width = pixels.shape[:2]
        data = np.ascontiguousarray(pixels).reshape(-1)
        return self.make(
            IMAGE,
            header=header,
            height=height,
            width=width,
            encoding=encoding,
            step=data.size // height,
            data=data,
        )

    def read(self, kind: str, message: bytes) -> SerializedImage | SerializedCompressedImage:
        """The image of type ``kind`` in a serialized ``message``; raises ``ImageError``."""
        fields = _Fields(message)
        sec, nanosec = fields.numbers("iI")
        stamp = self.make("builtin_interfaces/msg/Time", sec=sec, nanosec=nanosec)
        header = self.make("std_msgs/msg/Header", stamp=stamp, frame_id=fields.text())
        if kind == COMPRESSED:
            return SerializedCompressedImage(header, fields.text(), fields.octets())
        height, width = fields.numbers("II")
        encoding = fields.text()
        (is_bigendian,), (step,) = fields.numbers("B", 1), fields.numbers("I")
        return SerializedImage(header, height, width, encoding, is_bigendian, step, fields.octets())

    def packet(self, message: Any, *, after_gap: bool) -> Packet:
        """A picture of a video, as ``foxglove_msgs/CompressedVideo`` or ``FFMPEGPacket``.

        ``after_gap``: messages before it were lost.
        """
        if hasattr(message, "timestamp"):  # Foxglove's have no header
            header = self.header(stamp_ns(message.timestamp), message.frame_id)
            return Packet(header, message.format, message.data, after_gap)
        return Packet(message.header, message.encoding, message.data, after_gap)

    def frame_report(self, header: Any, result: Segmentation, timing: NodeTiming) -> Any:
        """What ``~/frame_report`` says of one published mask."""
        source, chosen = result.provenance, result.selection
        verdict = {} if chosen is None else {"selected": True, **vars(chosen)}
        return self.make(
            REPORT,
            header=header,
            kind=_KINDS.index(source.kind),
            key_stamp=self.time(source.key_stamp_ns),
            key_age_frames=source.key_age_frames,
            key_age_ms=source.key_age_ms,
            exact=source.exact,
            features_age_ms=source.features_age_ms,
            trust=NO_TRUST if result.trust is None else result.trust,
            expected_accuracy=result.expected_accuracy,
            epoch=source.epoch,
            reset_reason=source.reset.value if source.reset else "",
            # These messages have the fields of their records.
            timing=self.make(f"{PACKAGE}/msg/StageTiming", **vars(result.timing)),
            deadline=self.make(f"{PACKAGE}/msg/Deadline", **vars(result.deadline)),
            **vars(timing),
            **verdict,
        )

    def statistics(self, header: Any, counters: Counters, ledger: Ledger) -> Any:
        """What ``~/statistics`` says of a camera."""
        return self.make(
            STATISTICS,
            header=header,
            counters=self.make(f"{PACKAGE}/msg/Counters", **vars(counters)),
            ledger=self.make(f"{PACKAGE}/msg/Ledger", **vars(ledger)),
        )

    def refinement_report(self, refinement: Refinement) -> Any:
        """What ``~/key_frame_refinement`` says of one job of the slow track."""
        return self.make(
            f"{PACKAGE}/msg/KeyFrameRefinement",
            header=self.header(refinement.stamp_ns, refinement.frame_id),
            epoch=refinement.epoch,
            outcome=_OUTCOMES.index(refinement.outcome),
            applied=refinement.outcome.applied,
            wait_ms=refinement.wait_ms,
            compute_ms=refinement.compute_ms,
            error=refinement.error,
        )


def serialized_image(header: Any, pixels: np.ndarray, encoding: str) -> bytes:
    """The bytes of ``sensor_msgs/Image``: ``pixels``, uint8 (H, W) or (H, W, C), and ``header``.

    The pixels are copied once; by way of a message it would be three times.
    """
    height, width = pixels.shape[:2]
    stamp = struct.pack("<iI", header.stamp.sec, header.stamp.nanosec)
    begin = stamp + _text(header.frame_id)
    begin += bytes(-len(begin) % 4) + struct.pack("<II", height, width) + _text(encoding)
    begin += bytes(1)  # is_bigendian
    begin += bytes(-len(begin) % 4) + struct.pack("<II", pixels.nbytes // height, pixels.nbytes)
    return b"".join((b"\0\1\0\0", begin, np.ascontiguousarray(pixels).data))


def _text(value: str) -> bytes:
    """A string that begins at a multiple of four bytes."""
    octets = value.encode() + b"\0"
    return struct.pack("<I", len(octets)) + octets


def stamp_ns(time: Any) -> int:
    """A message's stamp in integer nanoseconds."""
    return int(time.sec) * 1_000_000_000 + int(time.nanosec)


def segmentation(report: Any, mask: np.ndarray) -> Segmentation:
    """The engine's record behind a ``FrameReport``, with its ``mask``, uint8 (H, W).

    Its ``counters`` are all 0: a report does not have them (see ``Statistics``).
    """
    return Segmentation(
        mask,
        stamp_ns(report.header.stamp),
        report.header.frame_id,
        Provenance(
            _KINDS[report.kind],
            stamp_ns(report.key_stamp),
            report.key_age_frames,
            report.key_age_ms,
            report.exact,
            report.epoch,
            ResetReason(report.reset_reason) if report.reset_reason else None,
            _known(report, "features_age_ms"),
        ),
        record_of(StageTiming, report.timing),
        selection=record_of(Selection, report) if report.selected else None,
        deadline=record_of(Deadline, report.deadline),
        trust=None if report.trust == NO_TRUST else report.trust,
        expected_accuracy=_known(report, "expected_accuracy"),
    )


def _known(report: Any, name: str) -> float:
    """A field that older bags do not have; every unknown value is ``math.nan`` itself."""
    value = float(getattr(report, name, math.nan))
    return math.nan if math.isnan(value) else value


def record_of(kind: type[Record], message: Any) -> Record:
    """The record ``kind`` from the ``message`` that has its fields."""
    names = (item.name for item in dataclasses.fields(kind))  # type: ignore[arg-type]
    return kind(**{name: getattr(message, name) for name in names})


@dataclass(frozen=True)
class SerializedImage:
    """The fields of ``sensor_msgs/Image``; ``data`` is uint8 (bytes,), a view, not writable."""

    header: Any
    height: int
    width: int
    encoding: str
    is_bigendian: int
    step: int
    data: np.ndarray


@dataclass(frozen=True)
class SerializedCompressedImage:
    """The fields of ``sensor_msgs/CompressedImage``; ``data`` as in :class:`SerializedImage`."""

    header: Any
    format: str
    data: np.ndarray


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
