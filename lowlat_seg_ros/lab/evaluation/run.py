"""One method over one piece of footage: masks scored as they come, times measured."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch

from lowlat_seg_ros.engine.cpu_threads import ExternalCpuLoad
from lowlat_seg_ros.frames import Counters, Frame, MaskKind, ResetReason, Segmentation
from lowlat_seg_ros.lab.evaluation.footage import Footage
from lowlat_seg_ros.lab.evaluation.metrics import Confusion, Consistency
from lowlat_seg_ros.lab.evaluation.summary import CONSISTENCY_FRAMES


class Method(Protocol):
    """What the engine and all baselines have in common."""

    @property
    def counters(self) -> Counters: ...

    def process(self, frame: Frame) -> Segmentation: ...

    def reset(self, reason: ResetReason = ResetReason.REQUESTED) -> None: ...


@dataclass(frozen=True)
class Moment:
    """One frame of a run: when its mask was out, and how it relates to its key frame.

    ``first`` of an epoch. ``key_index`` is the index of the key frame behind its mask, ``is_key``
    whether it became one itself. ``deviation`` and ``threshold`` are the selector's where it ran
    after the mask, else None.
    """

    index: int
    latency_ms: float
    first: bool
    key_index: int
    is_key: bool
    deviation: float | None
    threshold: float | None


@dataclass(frozen=True, eq=False)
class Result:
    """What a method achieved; scores in [0, 1], NaN where nothing could be scored.

    ``avg_ms`` and ``max_ms`` are latencies, frame in to mask out, of all frames but the first of
    each epoch, which runs the whole network whatever the method (and warms up the machine once);
    ``first_ms`` is the mean of those. With low-latency scheduling Sh runs beside the frames: here
    on a virtual clock, so that its load on the machine is not part of the times, as in the paper,
    whose 119 ms are a sum of parts. ``threads``: CPU threads that the method set itself to use.
    ``other_cores``: those that other processes kept busy meanwhile, see :class:`~.ExternalCpuLoad`.
    ``class_iou`` by name. ``by_distance``: mIoU by frames since the key frame.
    ``matrices``: the confusion of each frame, see :class:`~.metrics.Confusion`.
    """

    frames: int
    miou: float
    pixel_accuracy: float
    class_accuracy: float
    vc8: float
    key_share: float
    avg_ms: float
    max_ms: float
    first_ms: float
    threads: int
    other_cores: float
    class_iou: dict[str, float]
    by_distance: dict[int, float]
    moments: tuple[Moment, ...]
    matrices: tuple[np.ndarray, ...] = ()
    masks: dict[int, np.ndarray] = field(default_factory=dict)


class Scores:
    """Accuracy and steadiness of the masks given so far, pooled, and by distance."""

    def __init__(self, classes: int) -> None:
        self.pooled, self.steadiness = Confusion(classes), Consistency(CONSISTENCY_FRAMES)
        self.by_distance: dict[int, Confusion] = {}
        self.matrices: list[np.ndarray] = []
        self._classes = classes

    def update(self, label: np.ndarray, mask: np.ndarray, distance: int, *, first: bool) -> None:
        """Take the mask of the next frame; ``first`` begins a new drive."""
        if first:
            self.steadiness.reset()
        self.steadiness.update(label, mask)
        one = Confusion(self._classes)
        one.update(label, mask)
        self.matrices.append(one.matrix)
        self.pooled.matrix += one.matrix
        self.by_distance.setdefault(distance, Confusion(self._classes)).matrix += one.matrix


def measure(
    method: Method, footage: Footage, keep: Collection[int], progress: Callable[[int], object]
) -> Result:
    """Play ``footage`` to ``method``; the masks of the frames ``keep`` are kept.

    ``progress`` is told each frame. What the method raises comes through.
    """
    scores, moments, neighbours = Scores(len(footage.table)), [], ExternalCpuLoad()
    kept: dict[int, np.ndarray] = {}
    for index in range(len(footage)):
        first = footage.starts_drive(index)
        if first and index > 0:
            method.reset()
        answer = method.process(footage.frame(index))
        distance = answer.provenance.key_age_frames
        scores.update(footage.frames[index].label, answer.mask, distance, first=first)
        moments.append(_moment(index, answer))
        if index in keep:
            kept[index] = answer.mask
        progress(1)
    return _result(scores, moments, method.counters, footage, kept, neighbours.cores())


def _moment(index: int, answer: Segmentation) -> Moment:
    source, chosen = answer.provenance, answer.selection
    return Moment(
        index,
        answer.timing.latency_ms,
        first=source.reset is not None,
        key_index=index - source.key_age_frames,
        is_key=source.kind is MaskKind.FULL or (chosen is not None and chosen.is_key),
        deviation=chosen.deviation if chosen else None,
        threshold=chosen.threshold if chosen else None,
    )


def _result(
    scores: Scores,
    moments: list[Moment],
    counters: Counters,
    footage: Footage,
    masks: dict[int, np.ndarray],
    other_cores: float,
) -> Result:
    steady = [m.latency_ms for m in moments if not m.first]
    first = [m.latency_ms for m in moments if m.first]
    pooled = scores.pooled
    return Result(
        frames=len(moments),
        miou=pooled.miou,
        pixel_accuracy=pooled.pixel_accuracy,
        class_accuracy=pooled.class_accuracy,
        vc8=scores.steadiness.value,
        key_share=counters.key_frames / len(moments),
        avg_ms=float(np.mean(steady)) if steady else float("nan"),
        max_ms=max(steady, default=float("nan")),
        first_ms=float(np.mean(first)) if first else float("nan"),
        # A method sets its threads in the thread that calls it: this one.
        threads=torch.get_num_threads(),
        other_cores=other_cores,
        class_iou=dict(zip(footage.table.names, pooled.iou.tolist(), strict=True)),
        by_distance={age: scores.by_distance[age].miou for age in sorted(scores.by_distance)},
        moments=tuple(moments),
        matrices=tuple(scores.matrices),
        masks=masks,
    )
