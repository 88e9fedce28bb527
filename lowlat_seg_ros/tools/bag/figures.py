"""The figures of a recording: latencies, what became of each image, and how good masks are.

As one JSON object, which tools for ros2_benchmark read as well.
"""

from __future__ import annotations

import dataclasses
import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lowlat_seg_ros.frames import IGNORE_LABEL, MaskKind, Segmentation, StageTiming
from lowlat_seg_ros.images import Ledger
from lowlat_seg_ros.lab.data.sequence import DataError
from lowlat_seg_ros.lab.evaluation.metrics import Confusion
from lowlat_seg_ros.lab.evaluation.summary import Account, Accuracy, Latency, accuracy
from lowlat_seg_ros.tools.bag.recording import Published, Recording


@dataclass(frozen=True)
class Scores:
    """Scores in [0, 1], NaN where nothing could be scored.

    ``own``: masks, as they were published, against the labels of their own frames.
    ``miou_at_publish``: each mask against the label of the newest frame that had come by the time
    it was published: what the world looked like when a consumer got it. ``miou_streaming``: at each
    frame's arrival, the newest mask published by then against that frame's label, and nothing
    before the first one (Li, Wang, Ramanan, ECCV 2020), so that dropped frames count as well.
    """

    own: Accuracy
    miou_at_publish: float
    miou_streaming: float


def as_json(recording: Recording, scores: Scores | None) -> dict[str, Any]:
    """For :func:`~.summary.write_json`; times in ms, rates in Hz, scores in [0, 1].

    The keys ``BasicPerformanceMetrics.*`` are those of ros2_benchmark, the others are our own.
    """
    masks = recording.published
    balance, keys = account(recording), key_frames(recording)
    return {
        **basic_metrics(recording),
        "latency": {name: latency(masks, of) for name, of in _TIMES.items()},
        "stages": {name: latency(masks, _stage(name)) for name in stages()},
        "accuracy": scores,
        "account": balance,
        "unaccounted": balance.unaccounted,
        "ledger": recording.ledger,
        "counters": recording.counters,
        "key_frames": keys,
        "key_share": keys / len(masks),
        "expected_accuracy": expected_accuracy(masks),
        "notes": list(recording.notes),
        "metadata": {k: v for k, v in recording.facts.items() if k not in ("ledger", "counters")},
    }


def basic_metrics(recording: Recording) -> dict[str, float]:
    """As BasicPerformanceCalculator of ros2_benchmark has them, by its names.

    A frame is sent when it was recorded and received when its mask was published. Metrics that need
    more frames than there are stay out.
    """
    sent = [arrival.arrived_ns / 1e6 for arrival in recording.arrivals]
    received = [mask.published_ns / 1e6 for mask in recording.published]
    latencies = [_latency_ms(recording, mask) for mask in recording.published]
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


def account(recording: Recording) -> Account:
    """What became of every image of the bag, as far as it says."""
    books = recording.ledger or Ledger()
    return Account(
        len(recording.arrivals), len(recording.published), books.superseded, books.rejected,
        books.failed,
    )  # fmt: skip


def key_frames(recording: Recording) -> int:
    """How many frames became the key frame; of those with a mask, where it was not counted."""
    if recording.counters is not None:
        return recording.counters.key_frames
    return sum(is_key_frame(mask.segmentation) for mask in recording.published)


def expected_accuracy(masks: Sequence[Published]) -> dict[str, float]:
    """Mean and least share of pixels that are probably right, NaN where nobody says."""
    said = [mask.segmentation.expected_accuracy for mask in masks]
    known = [value for value in said if not math.isnan(value)] or [math.nan]
    return {"mean": sum(known) / len(known), "least": min(known)}


def is_key_frame(result: Segmentation) -> bool:
    """Whether the frame became the key frame; that of a full mask is it from the start."""
    chosen = result.selection
    return result.provenance.kind is MaskKind.FULL or (chosen is not None and chosen.is_key)


def latency(masks: Sequence[Published], of: Callable[[Published], float]) -> Latency:
    """Of the first mask, and percentiles of those after it."""
    return Latency.of([of(mask) for mask in masks])


def stages() -> list[str]:
    """Stages of a frame, in the order in which they run; the selector is last."""
    names = [item.name for item in dataclasses.fields(StageTiming)]
    return [name for name in names if name != "latency_ms"]


def _latency_ms(recording: Recording, mask: Published) -> float:
    return (mask.published_ns - recording.arrivals[mask.index].arrived_ns) / 1e6


def _stage(name: str) -> Callable[[Published], float]:
    return lambda mask: float(getattr(mask.segmentation.timing, name))


#: ``engine``: frame in to mask out. ``processing``: with conversion and publishing. ``waiting``:
#: for the engine. ``age``: image's stamp to mask published.
_TIMES: dict[str, Callable[[Published], float]] = {
    "engine": _stage("latency_ms"),
    "processing": lambda mask: mask.timing.processing_ms,
    "waiting": lambda mask: mask.timing.wait_ms,
    "age": lambda mask: mask.timing.age_ms,
}


def score(recording: Recording) -> Scores:
    """Score all masks; DataError where labels and masks do not fit together."""
    labels = [arrival.label for arrival in recording.arrivals]
    classes = recording.table.names
    try:
        own = accuracy(
            [label if label is not None else np.zeros((0, 0), np.uint8) for label in labels],
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
            confusion.update(label, _sized(published.segmentation.mask, label))
    return confusion


def _streaming(recording: Recording) -> Confusion:
    confusion = Confusion(len(recording.table))
    times = [published.published_ns for published in recording.published]
    for arrival in recording.arrivals:
        if arrival.label is None:
            continue
        newest = bisect_right(times, arrival.arrived_ns) - 1
        mask = recording.published[newest].segmentation.mask if newest >= 0 else None
        confusion.update(arrival.label, _sized(mask, arrival.label))
    return confusion


def _sized(mask: np.ndarray | None, label: np.ndarray) -> np.ndarray:
    """``mask``, or nothing in all pixels where there is none or the camera's size has changed."""
    if mask is None or mask.shape != label.shape:
        return np.full_like(label, IGNORE_LABEL)
    return mask
