"""Offline replay: a bag's images through the node's pipeline into another bag, without ROS.

Images are answered one by one, and each is accounted for. Time is the bag's own, in ns: virtual,
or as this machine's passes.
"""

from __future__ import annotations

import argparse
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

import lowlat_seg_ros
from lowlat_seg_ros.config import ConfigError, EngineConfig
from lowlat_seg_ros.engine.engine import Engine
from lowlat_seg_ros.engine.timing import measure
from lowlat_seg_ros.frames import Counters, FrameError, Ledger, NodeTiming, Segmentation
from lowlat_seg_ros.images import ImageError, to_rgb
from lowlat_seg_ros.lab.arguments import settings_from
from lowlat_seg_ros.lab.data.sequence import DataError
from lowlat_seg_ros.lab.report import describe
from lowlat_seg_ros.messages import COMPRESSED, IMAGE, stamp_ns
from lowlat_seg_ros.network import inference
from lowlat_seg_ros.network.checkpoint import DEFAULT_CHECKPOINT, Header, sha256
from lowlat_seg_ros.network.inference import resolve_device
from lowlat_seg_ros.network.segmenter import Segmenter
from lowlat_seg_ros.pipeline import Pipeline
from lowlat_seg_ros.tools.bag.command import Topics
from lowlat_seg_ros.tools.bag.storage import CLOCK, BagReader, BagWriter, Raw

#: Types of the messages that are copied in any case: what one looks at masks with.
COPIED = (IMAGE, COMPRESSED, CLOCK, "sensor_msgs/msg/CameraInfo", "tf2_msgs/msg/TFMessage")


#: Of ~/statistics, as the node has it.
STATISTICS_PERIOD_NS = 1_000_000_000


@dataclass(frozen=True)
class Segmented:
    """What became of the images of one bag.

    ``complaints``: why images gave no mask, and how many for each reason.
    """

    ledger: dict[str, int]
    counters: dict[str, Any]
    complaints: dict[str, int]


def segment_bag(args: argparse.Namespace, bag: Path, out_path: Path) -> Segmented:
    """Segment ``bag`` into the new bag ``out_path`` as ``args`` says.

    Raises ``DataError``, ``ConfigError`` and ``CheckpointError`` for what a user can have got
    wrong; then nothing is left at ``out_path``.
    """
    config = settings_from(args, EngineConfig)
    topics, path = Topics.of(args), args.checkpoint or DEFAULT_CHECKPOINT
    with BagReader(bag) as source:
        source.require(topics.image, (IMAGE, COMPRESSED), "--image-topic")
        for topic in (topics.mask, topics.report, topics.statistics, topics.confidence):
            if topic in source.topics:
                raise DataError(f"{source.path} has masks already, on {topic}; give a bag without")
        copied = copied_topics(source, args.copy)
        segmenter, header = inference.load(
            path, resolve_device(args.device), config.precision, config.runtime
        )
        engine, pace = _engine(args, segmenter, header, config, source, topics)
        count = source.counts[topics.image]
        with (
            closing(engine),
            BagWriter(out_path, args.storage) as out,
            tqdm(total=count, unit="frame", desc=bag.name, disable=None) as bar,
        ):
            ledger, complaints = replay(source, out, engine, pace, topics, bar.update)
            for raw in source.raw(copied):  # afterwards, as it takes time
                out.copy(raw)
            counts = {"ledger": asdict(ledger), "counters": asdict(engine.counters)}
            out.facts = source.facts | _facts(args, path, header, config)
            out.facts |= counts
    return Segmented(**counts, complaints=dict(complaints))


def copied_topics(source: BagReader, named: list[str]) -> list[str]:
    """Topics to copy: those of the types in :data:`COPIED`, and those ``named`` by ``--copy``.

    DataError for a named topic that is not there, or whose type nobody defines; where all are to
    be copied those are left out, with a word.
    """
    chosen = {topic for topic, kind in source.topics.items() if kind in COPIED}
    undefined = [topic for topic in sorted(source.topics) if not source.defines(topic)]
    for topic in named:
        if topic == "all":
            chosen |= source.topics.keys() - set(undefined)
            for left_out in undefined:
                print(
                    f"Left out, as its type is not defined: {left_out} ({source.topics[left_out]})"
                )
        elif topic not in source.topics:
            raise DataError(
                f"--copy is {topic}, but {source.path} has no such topic; it has "
                f"{', '.join(sorted(source.topics))}"
            )
        elif topic in undefined:
            raise DataError(
                f"--copy is {topic}, but its type {source.topics[topic]} is defined neither in "
                f"{source.path} nor here; leave it out, or turn the bag into mcap where the type's "
                "package is installed (ros2 bag convert), which stores definitions"
            )
        else:
            chosen.add(topic)
    return sorted(chosen)


def _engine(
    args: argparse.Namespace,
    segmenter: Segmenter,
    header: Header,
    config: EngineConfig,
    source: BagReader,
    topics: Topics,
) -> tuple[Engine, Pace]:
    if args.time == "virtual":
        pace = VirtualTime(args.latency_ms)
        engine = Engine.deterministic(
            segmenter, config, threshold=header.threshold, delay_frames=args.delay_frames
        )
        return engine, pace
    first = next(source.raw([topics.image]), None)
    if first is not None:
        # Every stage runs once at the images' size, as in the node before it subscribes.
        with suppress(ImageError):  # it is counted when it is played
            measure(segmenter, config, to_rgb(source.decode(first)).shape[:2])
    return Engine(segmenter, config, threshold=header.threshold), RealTime()


def _facts(
    args: argparse.Namespace, path: Path, header: Header, config: EngineConfig
) -> dict[str, Any]:
    """How the masks were made, for the bag's metadata."""
    virtual = {"delay_frames": args.delay_frames, "latency_ms": args.latency_ms}
    return {
        "version": lowlat_seg_ros.__version__,
        "checkpoint": path.name,
        "sha256": sha256(path),
        "mask_classes": list(header.classes),
        "mask_colours": [list(colour) for colour in header.colours],
        "engine": asdict(config),
        "time": {"kind": args.time} | (virtual if args.time == "virtual" else {}),
        "machine": asdict(describe(args.device)),
    }


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


def newest(images: Iterator[Raw], pace: Pace) -> Iterator[tuple[Raw, int, int]]:
    """The newest image that has come, how many it superseded, and the time, again and again.

    As with the node's subscription of depth 1: of the images that come while it is busy, in the
    order in which they were recorded, only the newest waits.
    """
    ahead = next(images, None)
    while ahead is not None:
        image, superseded, now_ns = ahead, 0, pace.wait_until(ahead.time_ns)
        while (ahead := next(images, None)) is not None and ahead.time_ns <= now_ns:
            image, superseded = ahead, superseded + 1
        yield image, superseded, now_ns


def replay(
    source: BagReader,
    out: BagWriter,
    engine: Engine,
    pace: Pace,
    topics: Topics,
    progress: Callable[[int], object],
) -> tuple[Ledger, Counter[str]]:
    """Do with the images of ``source`` what the node does with a camera's, and write it to ``out``.

    Returns what became of the images, and what was wrong with those rejected or failed; the next
    one works as usual. ``progress`` is called with the number of images dealt with since the last
    call.
    """
    sink, complaints, now_ns, due_ns = _BagSink(out, pace, topics), Counter[str](), 0, 0
    pipeline = Pipeline(engine, sink, virtual_time=isinstance(pace, VirtualTime))
    for raw, superseded, now_ns in newest(source.raw([topics.image]), pace):
        began_ns, wait_ms = time.perf_counter_ns(), (now_ns - raw.time_ns) / 1e6
        try:
            pipeline.answer(source.decode(raw), began_ns, wait_ms, superseded)
        except (ImageError, FrameError) as error:
            complaints[str(error)] += 1
        now_ns = pace.wait_until(now_ns)  # later, if there is a mask
        if now_ns >= due_ns:
            sink.statistics(now_ns, engine.counters, pipeline.ledger)
            due_ns = now_ns + STATISTICS_PERIOD_NS
        progress(1 + superseded)
    sink.statistics(now_ns, engine.counters, pipeline.ledger)
    return pipeline.ledger, complaints


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
