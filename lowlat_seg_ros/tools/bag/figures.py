"""The figures of a recording as one JSON object, which tools for ros2_benchmark read as well."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from lowlat_seg_ros.frames import StageTiming
from lowlat_seg_ros.lab.evaluation.summary import Account, Latency
from lowlat_seg_ros.tools.bag.recording import Published, Recording
from lowlat_seg_ros.tools.bag.scores import Scores


def as_json(recording: Recording, scores: Scores | None) -> dict[str, Any]:
    """For :func:`~.summary.write_json`; times in ms, rates in Hz, scores in [0, 1].

    The keys ``BasicPerformanceMetrics.*`` are those of ros2_benchmark, the others are our own.
    """
    masks = recording.published
    last, balance = masks[-1].segmentation, account(recording)
    return {
        **basic_metrics(recording),
        "latency": {name: latency(masks, of) for name, of in _TIMES.items()},
        "stages": {name: latency(masks, _stage(name)) for name in stages()},
        "accuracy": scores,
        "account": balance,
        "unaccounted": balance.unaccounted,
        "ledger": recording.ledger,
        "counters": recording.facts.get("counters", last.counters),
        "key_frames": last.counters.key_frames,
        "key_share": last.counters.key_frames / len(masks),
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
    """What became of every image of the bag."""
    books = recording.ledger
    return Account(
        len(recording.arrivals), len(recording.published), books.superseded, books.rejected,
        books.failed,
    )  # fmt: skip


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
