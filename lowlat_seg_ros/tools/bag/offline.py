"""Offline replay: a bag's images through the node's pipeline, one by one, each accounted for."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from lowlat_seg_ros.engine.engine import Engine
from lowlat_seg_ros.frames import FrameError, NodeTiming, Segmentation
from lowlat_seg_ros.images import ImageError, Ledger
from lowlat_seg_ros.messages import stamp_ns
from lowlat_seg_ros.pipeline import Pipeline
from lowlat_seg_ros.tools.bag.pace import Pace, VirtualTime, Waiting
from lowlat_seg_ros.tools.bag.storage import BagReader, BagWriter
from lowlat_seg_ros.tools.bag.topics import Topics


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
    pipeline = Pipeline(engine, _BagSink(out, pace, topics), virtual_time=virtual)
    complaints = []
    waiting = Waiting(source.raw([topics.image]), pace)
    while (found := waiting.newest()) is not None:
        raw, superseded, now_ns = found
        began_ns, wait_ms = time.perf_counter_ns(), (now_ns - raw.time_ns) / 1e6
        try:
            pipeline.answer(source.decode(raw), began_ns, wait_ms, superseded)
        except (ImageError, FrameError) as error:
            complaints.append(str(error))
        progress(1 + superseded)
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
        self,
        header: Any,
        image: np.ndarray,
        result: Segmentation,
        timing: NodeTiming,
        ledger: Ledger,
    ) -> None:
        make, header = self._out.messages, self._own(header)
        self._write(self._topics.report, make.frame_report(header, result, timing, ledger))
        assert result.confidence is not None  # it was asked for
        self._write(self._topics.confidence, make.image(header, result.confidence, "mono8"))

    def _own(self, header: Any) -> Any:
        """The header in a message class of the bag that is written."""
        return self._out.messages.header(stamp_ns(header.stamp), header.frame_id)

    def _write(self, topic: str, message: Any) -> None:
        self._out.write(topic, message, self._published_ns)
