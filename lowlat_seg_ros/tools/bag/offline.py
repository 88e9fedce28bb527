"""Offline replay: a bag's images through the node's pipeline, one by one, each accounted for.

Time is the bag's own, in ns: virtual, or as this machine's passes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from lowlat_seg_ros.config import ConfigError
from lowlat_seg_ros.engine.engine import Engine
from lowlat_seg_ros.frames import Counters, FrameError, NodeTiming, Segmentation
from lowlat_seg_ros.images import ImageError, Ledger
from lowlat_seg_ros.messages import stamp_ns
from lowlat_seg_ros.pipeline import Pipeline
from lowlat_seg_ros.tools.bag.storage import BagReader, BagWriter, Raw
from lowlat_seg_ros.tools.bag.topics import Topics

#: Of ~/statistics, as the node has it.
STATISTICS_PERIOD_NS = 1_000_000_000


class VirtualTime:
    """Every mask takes ``latency_ms``, whatever it takes on this machine.

    With 0 a mask is out when its image comes, and no image is ever superseded.
    """

    def __init__(self, latency_ms: float) -> None:
        if not 0 <= latency_ms < math.inf:
            raise ConfigError(f"--latency-ms is {latency_ms}; it must be 0 or more milliseconds")
        self._latency_ns, self._now_ns = round(latency_ms * 1e6), 0

    def wait_until(self, ns: int) -> int:
        """Let time pass until ``ns``, or none if it is past; returns the time it is then."""
        self._now_ns = max(self._now_ns, ns)
        return self._now_ns

    def mask_out(self) -> int:
        """The mask of the image at hand is made; returns the time it is now."""
        self._now_ns += self._latency_ns
        return self._now_ns


class RealTime:
    """This machine's own time, from the first image on."""

    def __init__(self) -> None:
        self._offset_ns: int | None = None

    def wait_until(self, ns: int) -> int:
        """As :meth:`VirtualTime.wait_until`."""
        if self._offset_ns is None:
            self._offset_ns = ns - time.monotonic_ns()
        time.sleep(max(0, ns - self.mask_out()) / 1e9)
        return self.mask_out()

    def mask_out(self) -> int:
        """As :meth:`VirtualTime.mask_out`."""
        assert self._offset_ns is not None  # an image has been waited for
        return time.monotonic_ns() + self._offset_ns


Pace = VirtualTime | RealTime


class Waiting:
    """Images in the order in which they were recorded, of which only the newest waits.

    As the node's subscription of depth 1 has it: those that come while it is busy are superseded.
    """

    def __init__(self, images: Iterator[Raw], pace: Pace) -> None:
        self._images, self._pace = images, pace
        self._ahead = next(images, None)

    def newest(self) -> tuple[Raw, int, int] | None:
        """The newest image that has come, how many it superseded, and the time; None at the end."""
        newest, superseded = self._ahead, 0
        if newest is None:
            return None
        now_ns = self._pace.wait_until(newest.time_ns)
        while (ahead := next(self._images, None)) is not None and ahead.time_ns <= now_ns:
            newest, superseded = ahead, superseded + 1
        self._ahead = ahead
        return newest, superseded, now_ns


@dataclass(frozen=True)
class Outcome:
    """``ledger`` of the images, and what was wrong with those ``rejected`` or failed."""

    ledger: Ledger
    complaints: tuple[str, ...]


def replay(
    source: BagReader,
    out: BagWriter,
    engine: Engine,
    pace: Pace,
    topics: Topics,
    progress: Callable[[int], object],
) -> Outcome:
    """Do with the images of ``source`` what the node does with a camera's, and write it to ``out``.

    ``progress`` is called with the number of images that have been dealt with since the last call.
    An image that cannot be segmented is counted, and the next one works as usual.
    """
    virtual = isinstance(pace, VirtualTime)
    sink = _BagSink(out, pace, topics)
    pipeline = Pipeline(engine, sink, virtual_time=virtual)
    complaints, now_ns, due_ns = [], 0, 0
    waiting = Waiting(source.raw([topics.image]), pace)
    while (found := waiting.newest()) is not None:
        raw, superseded, now_ns = found
        began_ns, wait_ms = time.perf_counter_ns(), (now_ns - raw.time_ns) / 1e6
        try:
            pipeline.answer(source.decode(raw), began_ns, wait_ms, superseded)
        except (ImageError, FrameError) as error:
            complaints.append(str(error))
        now_ns = pace.wait_until(now_ns)  # later, if there is a mask
        if now_ns >= due_ns:
            sink.statistics(now_ns, engine.counters, pipeline.ledger)
            due_ns = now_ns + STATISTICS_PERIOD_NS
        progress(1 + superseded)
    sink.statistics(now_ns, engine.counters, pipeline.ledger)
    return Outcome(pipeline.ledger, tuple(complaints))


class _BagSink:
    """Records masks and reports at the time at which they were published."""

    wants_confidence = True

    def __init__(self, out: BagWriter, pace: Pace, topics: Topics) -> None:
        self._out, self._pace, self._topics = out, pace, topics
        self._published_ns = 0

    def mask(self, header: Any, mask: np.ndarray, image_size: tuple[int, int]) -> int:
        self._published_ns = self._pace.mask_out()
        make = self._out.messages
        self._write(self._topics.mask, make.image(self._own(header), mask, "mono8"))
        return self._published_ns

    def details(
        self, header: Any, image: np.ndarray, result: Segmentation, timing: NodeTiming
    ) -> None:
        make, header = self._out.messages, self._own(header)
        self._write(self._topics.report, make.frame_report(header, result, timing))
        assert result.confidence is not None  # it was asked for
        self._write(self._topics.confidence, make.image(header, result.confidence, "mono8"))

    def statistics(self, now_ns: int, counters: Counters, ledger: Ledger) -> None:
        """Record what was counted until ``now_ns``."""
        make = self._out.messages
        message = make.statistics(make.header(now_ns, ""), counters, ledger)
        self._out.write(self._topics.statistics, message, now_ns)

    def _own(self, header: Any) -> Any:
        """The header in a message class of the bag that is written."""
        return self._out.messages.header(stamp_ns(header.stamp), header.frame_id)

    def _write(self, topic: str, message: Any) -> None:
        self._out.write(topic, message, self._published_ns)
