"""The node's offline twin: a bag's images through the engine, one by one, each accounted for."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from lowlat_seg_ros.engine.engine import Engine
from lowlat_seg_ros.frames import Frame, FrameError, NodeTiming
from lowlat_seg_ros.images.ledger import Bookkeeper, Ledger
from lowlat_seg_ros.images.raw import ImageError
from lowlat_seg_ros.tools.bag import frame_reports, images
from lowlat_seg_ros.tools.bag.messages import stamp_ns
from lowlat_seg_ros.tools.bag.pace import Pace, Waiting
from lowlat_seg_ros.tools.bag.storage import BagReader, BagWriter, Raw
from lowlat_seg_ros.tools.bag.topics import Topics


@dataclass(frozen=True)
class Outcome:
    """``ledger`` of the images, and what was wrong with those ``rejected`` or failed."""

    ledger: Ledger
    complaints: tuple[str, ...]


class Twin:
    """Does with the images of ``source`` what the node does, and writes it to ``out``.

    Masks and reports are recorded at the time at which they were published.
    """

    def __init__(
        self, source: BagReader, out: BagWriter, engine: Engine, pace: Pace, topics: Topics
    ) -> None:
        self._source, self._out, self._engine = source, out, engine
        self._pace, self._topics = pace, topics
        self._books = Bookkeeper()

    def run(self, progress: Callable[[int], object]) -> Outcome:
        """Play the bag to its end; ``progress`` is told how many images are done with.

        An image that cannot be segmented is counted and told; the next one works as usual.
        """
        complaints = []
        waiting = Waiting(self._source.raw([self._topics.image]), self._pace)
        while (found := waiting.newest()) is not None:
            raw, superseded, now_ns = found
            self._books.receive(superseded)
            # Both are raised before a mask is out.
            try:
                self._on_image(raw, now_ns)
            except ImageError as error:
                self._books.reject()
                complaints.append(str(error))
            except FrameError as error:
                self._books.fail()
                complaints.append(str(error))
            progress(1 + superseded)
        return Outcome(self._books.ledger, tuple(complaints))

    def _on_image(self, raw: Raw, now_ns: int) -> None:
        began_ns = time.perf_counter_ns()
        message = self._source.decode(raw)
        image = images.to_rgb(message)
        converted_ns = time.perf_counter_ns()
        stamp, encoding = stamp_ns(message.header.stamp), images.encoding(message)
        frame = Frame(image, stamp, message.header.frame_id, encoding)
        header = self._out.messages.header(frame.stamp_ns, frame.frame_id)
        wait_ms = (now_ns - raw.time_ns) / 1e6
        waited_ms = wait_ms + (converted_ns - began_ns) / 1e6
        step = self._engine.segment(frame, waited_ms=waited_ms)
        try:
            out_ns = time.perf_counter_ns()
            published_ns = self._pace.mask_out()
            mask = self._out.messages.image(header, step.mask, "mono8")
            self._out.write(self._topics.mask, mask, published_ns)
            self._books.publish()
            convert_ms = (converted_ns - began_ns) / 1e6
            publish_ms = (time.perf_counter_ns() - out_ns) / 1e6
            timing = NodeTiming(
                wait_ms=wait_ms,
                convert_ms=convert_ms,
                publish_ms=publish_ms,
                # Not the time since the image came: in virtual time Sh has run in between.
                processing_ms=convert_ms + step.timing.latency_ms + publish_ms,
                age_ms=(published_ns - frame.stamp_ns) / 1e6,
            )
        finally:
            result = self._engine.finish(step, confidence=True)
        make, ledger = self._out.messages, self._books.ledger
        report = frame_reports.message_of(make, header, result, timing, ledger)
        self._out.write(self._topics.report, report, published_ns)
        assert result.confidence is not None  # it was asked for
        confidence = make.image(header, result.confidence, "mono8")
        self._out.write(self._topics.confidence, confidence, published_ns)
