"""What a bag says of a run, images, labels and masks as they were published; and its figures.

The figures are one JSON object, which tools for ros2_benchmark read as well.
"""

from __future__ import annotations

import dataclasses
import math
from bisect import bisect_right
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lowlat_seg_ros.frames import Counters, Ledger, NodeTiming, Segmentation, StageTiming
from lowlat_seg_ros.lab import metrics
from lowlat_seg_ros.lab.data.sequence import DataError
from lowlat_seg_ros.lab.metrics import Confusion, Latency
from lowlat_seg_ros.labels import ClassTable
from lowlat_seg_ros.messages import (
    COMPRESSED,
    IMAGE,
    REPORT,
    STATISTICS,
    record_of,
    segmentation,
    stamp_ns,
)
from lowlat_seg_ros.tools.account import Account
from lowlat_seg_ros.tools.bag.command import Topics
from lowlat_seg_ros.tools.bag.storage import BagReader, to_ids

#: The mask where nobody asks for one.
NO_MASK = np.zeros((0, 0), np.uint8)

#: Stages of a frame, in the order in which they run; the selector is last.
STAGES = [item.name for item in dataclasses.fields(StageTiming) if item.name != "latency_ms"]


@dataclass(frozen=True, eq=False)
class Arrival:
    stamp_ns: int
    arrived_ns: int  # when it was recorded
    label: np.ndarray | None  # uint8 (H, W)


@dataclass(frozen=True, eq=False)
class Published:
    """A mask, for image ``index`` of the bag, and what its report says.

    The mask itself has no pixels, shape (0, 0), where nobody asks for it.
    """

    index: int
    published_ns: int
    segmentation: Segmentation
    timing: NodeTiming


@dataclass(frozen=True, eq=False)
class Recording:
    """A run; without labels only masks that are shown are in memory, as hours fit into a bag."""

    arrivals: tuple[Arrival, ...]  # in the order in which they were recorded, as are masks
    published: tuple[Published, ...]
    table: ClassTable  # of the masks
    counters: Counters | None  # the newest; None where the bag has none
    ledger: Ledger | None
    labelled: bool  # there are labels of the same classes
    shown: tuple[int, ...]  # the images that pictures are made of
    facts: dict[str, Any]
    notes: tuple[str, ...] = ()  # what is missing


def read(bag: BagReader, topics: Topics, table: ClassTable, pictures: int) -> Recording:
    """The whole run; ``table`` where the bag does not say its own.

    At most ``pictures`` images are to be shown, evenly spaced. DataError if a topic is missing, or
    if there is no mask.
    """
    bag.require(topics.image, (IMAGE, COMPRESSED), "--image-topic")
    bag.require(topics.mask, (IMAGE,), "--mask-topic")
    bag.require(topics.report, (REPORT,), "--report-topic")
    facts, notes = bag.facts, []
    if "mask_classes" in facts:
        names, colours = facts["mask_classes"], facts["mask_colours"]
        table = ClassTable("masks", tuple(names), tuple((r, g, b) for r, g, b in colours))
    labelled = bag.topics.get(topics.label) == IMAGE
    if labelled and facts.get("classes", list(table.names)) != list(table.names):
        labelled = False
        notes.append("The labels have other classes than the masks, so masks are not scored.")
    labels = {}
    if labelled:
        messages = (bag.decode(raw) for raw in bag.raw([topics.label]))
        labels = {stamp_ns(message.header.stamp): to_ids(message) for message in messages}
    arrivals = []
    for raw in bag.raw([topics.image]):
        stamp = stamp_ns(bag.decode(raw).header.stamp)
        arrivals.append(Arrival(stamp, raw.time_ns, labels.get(stamp)))
    count = len(arrivals)
    shown = sorted({round(i) for i in np.linspace(0, count - 1, min(pictures, count))})
    published = _published(bag, topics, arrivals, set(range(count) if labelled else shown))
    if not published:
        raise DataError(
            f"{bag.path} has no mask with a frame report for its images on {topics.image}; "
            "record both, or give the topic of the images that were segmented"
        )
    counters, ledger = _counts(bag, topics)
    if ledger is None:
        notes.append(
            f"The bag has no statistics on {topics.statistics}, so it is not known why an image "
            "has no mask; record that topic as well."
        )
    return Recording(
        tuple(arrivals), tuple(published), table, counters, ledger, labelled, tuple(shown), facts,
        tuple(notes),
    )  # fmt: skip


def _counts(bag: BagReader, topics: Topics) -> tuple[Counters | None, Ledger | None]:
    """What was counted, by the offline replay or in the newest message; None if it was not."""
    if "ledger" in bag.facts:
        return Counters(**bag.facts["counters"]), Ledger(**bag.facts["ledger"])
    newest = deque(bag.raw([topics.statistics]), maxlen=1)
    if not newest or newest[0].kind != STATISTICS:
        return None, None
    statistics = bag.decode(newest[0])
    return record_of(Counters, statistics.counters), record_of(Ledger, statistics.ledger)


def _published(
    bag: BagReader, topics: Topics, arrivals: list[Arrival], stored: set[int]
) -> list[Published]:
    """Masks of the images ``arrivals`` that have a report, with pixels if they are ``stored``.

    Where a looped bag was recorded, stamps come again and again: a mask is of the newest such image
    before it, and goes with the report that is nearest to it.
    """
    reports = defaultdict[int, list[tuple[int, Any]]](list)
    for raw in bag.raw([topics.report]):
        report = bag.decode(raw)
        reports[stamp_ns(report.header.stamp)].append((raw.time_ns, report))
    indices = defaultdict[int, list[int]](list)
    for index, arrival in enumerate(arrivals):
        indices[arrival.stamp_ns].append(index)
    found = []
    for raw in bag.raw([topics.mask]):
        message, now_ns = bag.decode(raw), raw.time_ns
        stamp = stamp_ns(message.header.stamp)
        if stamp in reports and stamp in indices:
            same = indices[stamp]
            before = [index for index in same if arrivals[index].arrived_ns <= now_ns]
            _, report = min(reports[stamp], key=lambda pair: abs(pair[0] - now_ns))
            # A recorder may get a mask before its image.
            index = before[-1] if before else same[0]
            mask = to_ids(message)
            result = segmentation(report, mask if index in stored else NO_MASK)
            found.append(Published(index, now_ns, result, record_of(NodeTiming, report)))
    return found


def figures(recording: Recording) -> dict[str, Any]:
    """For :func:`.write_json`; times in ms, rates in Hz, scores in [0, 1].

    The keys ``BasicPerformanceMetrics.*`` are those of ros2_benchmark, the others are our own.
    DataError where labels and masks do not fit together.
    """
    masks, ledger = recording.published, recording.ledger
    account = Account.of(len(recording.arrivals), len(masks), ledger or Ledger())
    if recording.counters is not None:
        keys = recording.counters.key_frames
    else:
        keys = sum(metrics.is_key_frame(mask.segmentation) for mask in masks)

    def latency(of: Callable[[Published], float]) -> Latency:
        return Latency.of([of(mask) for mask in masks])

    def stage(name: str) -> Latency:
        return latency(lambda mask: float(getattr(mask.segmentation.timing, name)))

    return {
        **basic_metrics(recording),
        "latency": {
            # Frame in to mask out; with conversion and publishing; waiting for the engine.
            "engine": stage("latency_ms"),
            "processing": latency(lambda mask: mask.timing.processing_ms),
            "waiting": latency(lambda mask: mask.timing.wait_ms),
            "age": latency(lambda mask: mask.timing.age_ms),  # stamp to mask published
        },
        "stages": {name: stage(name) for name in STAGES},
        "accuracy": score(recording) if recording.labelled else None,
        "account": account,
        "unaccounted": account.unaccounted,
        "ledger": ledger,
        "counters": recording.counters,
        "key_frames": keys,
        "key_share": keys / len(masks),
        "expected_accuracy": expected_accuracy(masks),
        "notes": list(recording.notes),
        "metadata": {k: v for k, v in recording.facts.items() if k not in ("ledger", "counters")},
    }


def expected_accuracy(masks: Sequence[Published]) -> dict[str, float]:
    """Mean and least share of pixels that are probably right, NaN where nobody says."""
    said = [mask.segmentation.expected_accuracy for mask in masks]
    known = [value for value in said if not math.isnan(value)] or [math.nan]
    return {"mean": sum(known) / len(known), "least": min(known)}


def basic_metrics(recording: Recording) -> dict[str, float]:
    """As BasicPerformanceCalculator of ros2_benchmark has them, by its names.

    A frame is sent when it was recorded and received when its mask was published. Metrics that need
    more frames than there are stay out.
    """
    sent = [arrival.arrived_ns / 1e6 for arrival in recording.arrivals]
    received = [mask.published_ns / 1e6 for mask in recording.published]
    latencies = [
        (mask.published_ns - recording.arrivals[mask.index].arrived_ns) / 1e6
        for mask in recording.published
    ]
    playing, receiving = sent[-1] - sent[0], received[-1] - received[0]
    found = {
        "RECEIVED_DURATION": receiving,
        "NUM_MISSED_FRAMES": len(sent) - len(received),
        "NUM_FRAMES_SENT": len(sent),
        "FIRST_SENT_RECEIVED_LATENCY": received[0] - sent[0],
        "LAST_SENT_RECEIVED_LATENCY": received[-1] - sent[-1],
        "FIRST_INPUT_LATENCY": latencies[0],
        "LAST_INPUT_LATENCY": latencies[-1],
        "MAX_LATENCY": max(latencies),
        "MIN_LATENCY": min(latencies),
        "MEAN_LATENCY": sum(latencies) / len(latencies),
    }
    if playing > 0:
        found["MEAN_PLAYBACK_FRAME_RATE"] = len(sent) / (playing / 1000)
    if receiving > 0:
        found["MEAN_FRAME_RATE"] = len(received) / (receiving / 1000)
    if len(received) > 2:
        jitter = np.abs(np.diff(received, n=2))
        for name, of in (("MAX", np.max), ("MIN", np.min), ("MEAN", np.mean), ("STD_DEV", np.std)):
            found[f"{name}_JITTER"] = float(of(jitter))
    return {f"BasicPerformanceMetrics.{name}": value for name, value in found.items()}


@dataclass(frozen=True)
class Scores:
    """Scores in [0, 1], NaN where nothing could be scored.

    ``own``: masks, as they were published, against the labels of their own frames.
    ``miou_at_publish``: each mask against the label of the newest frame that had come by the time
    it was published: what the world looked like when a consumer got it. ``miou_streaming``: at each
    frame's arrival, the newest mask published by then against that frame's label, and nothing
    before the first one (Li, Wang, Ramanan, ECCV 2020), so that dropped frames count as well.
    """

    own: metrics.Accuracy
    miou_at_publish: float
    miou_streaming: float


def score(recording: Recording) -> Scores:
    """Score all masks; DataError where labels and masks do not fit together."""
    labels = [arrival.label for arrival in recording.arrivals]
    classes = recording.table.names
    try:
        own = metrics.accuracy(
            [label if label is not None else NO_MASK for label in labels],
            [(p.index, p.segmentation.mask) for p in recording.published
             if labels[p.index] is not None],
            classes,
        )  # fmt: skip
        return Scores(own, _at_publish(recording).miou, _streaming(recording).miou)
    except ValueError as error:
        raise DataError(
            f"the labels do not fit the masks: {error}; give the topic of labels in the classes "
            f"{', '.join(classes)}"
        ) from error


def _at_publish(recording: Recording) -> Confusion:
    confusion = Confusion(len(recording.table))
    arrived = [arrival.arrived_ns for arrival in recording.arrivals]
    for published in recording.published:
        newest = bisect_right(arrived, published.published_ns) - 1
        # A recorder may get a mask before its image; the frame seen is not older than its own.
        label = recording.arrivals[max(newest, published.index)].label
        if label is not None:
            confusion.update(label, metrics.fitted(published.segmentation.mask, label))
    return confusion


def _streaming(recording: Recording) -> Confusion:
    confusion, published = Confusion(len(recording.table)), recording.published
    metrics.count_newest(
        confusion,
        ((a.arrived_ns, a.label) for a in recording.arrivals if a.label is not None),
        [mask.segmentation.mask for mask in published],
        [mask.published_ns for mask in published],
    )
    return confusion
