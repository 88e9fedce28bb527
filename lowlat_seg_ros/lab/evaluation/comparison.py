"""Runs methods over a clip: their masks are scored as they come, their times are measured."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from tqdm import tqdm

from lowlat_seg_ros.engine.cpu_threads import ExternalCpuLoad
from lowlat_seg_ros.frames import (
    Counters,
    Frame,
    ResetReason,
    Segmentation,
    StageTiming,
)
from lowlat_seg_ros.lab.data.clip import Clip
from lowlat_seg_ros.lab.evaluation.catalogue import Spec
from lowlat_seg_ros.lab.metrics import (
    Confusion,
    Consistency,
    count_newest,
    is_key_frame,
    mious,
)

if TYPE_CHECKING:
    from lowlat_seg_ros.lab.evaluation.methods import MethodFactory

#: Rows of the grid of images that charts show.
GRID_ROWS = 4


class Method(Protocol):
    """What the engine and all baselines have in common."""

    @property
    def counters(self) -> Counters: ...

    def process(self, frame: Frame) -> Segmentation: ...

    def reset(self, reason: ResetReason = ResetReason.REQUESTED) -> None: ...


class Unavailable(Exception):
    """A method cannot be built from what was given; the message says why."""


@dataclass(frozen=True)
class Moment:
    """One frame of a run: when its mask was out, and how it relates to its key frame."""

    index: int
    latency_ms: float
    first: bool  # of an epoch
    key_index: int  # of the key frame behind its mask
    is_key: bool  # whether it became one itself
    deviation: float | None  # the selector's, where it ran after the mask
    threshold: float | None

    @classmethod
    def of(cls, index: int, answer: Segmentation) -> Moment:
        source, selection = answer.provenance, answer.selection
        return cls(
            index,
            answer.timing.latency_ms,
            first=source.reset is not None,
            key_index=index - source.key_age_frames,
            is_key=is_key_frame(answer),
            deviation=selection.deviation if selection else None,
            threshold=selection.threshold if selection else None,
        )


@dataclass(frozen=True, eq=False)
class Result:
    """What a method achieved; scores in [0, 1], NaN where nothing could be scored.

    Latencies are frame in to mask out. With low-latency scheduling Sh runs beside the frames. In an
    evaluation it runs on a virtual clock, so its load on the machine is not part of the times, as
    in the paper, whose 119 ms are a sum of parts.
    """

    frames: int
    miou: float
    pixel_accuracy: float
    class_accuracy: float
    vc8: float
    key_share: float
    avg_ms: float  # of all frames but the first of each epoch, as is max_ms
    max_ms: float
    first_ms: float  # mean of the first of each epoch, on which every method runs the whole network
    threads: int  # CPU threads that the method set itself to use
    other_cores: float  # those that other processes kept busy meanwhile
    class_iou: dict[str, float]
    by_distance: dict[int, float]  # mIoU by frames since the key frame
    moments: tuple[Moment, ...]
    matrices: tuple[np.ndarray, ...] = ()  # the confusion matrix of each frame
    masks: dict[int, np.ndarray] = field(default_factory=dict)

    @cached_property
    def draws(self) -> np.ndarray:
        """The mIoU in every draw of a bootstrap; all methods have the same draws."""
        return mious(self.matrices)


def measure(
    method: Method, clip: Clip, kept: Collection[int], progress: Callable[[int], object]
) -> Result:
    """Run ``method`` over ``clip``; the result has the masks of the frames ``kept``.

    ``progress`` is called with 1 for each frame. What the method raises comes through.
    """
    consistency, other_work = Consistency(), ExternalCpuLoad()
    moments: list[Moment] = []
    matrices: list[np.ndarray] = []
    by_distance: dict[int, list[np.ndarray]] = {}
    masks: dict[int, np.ndarray] = {}
    for index in range(len(clip)):
        if clip.starts_drive(index) and index > 0:
            method.reset()
            consistency.reset()
        answer = method.process(clip.frame(index))
        label, confusion = clip.frames[index].label, Confusion(len(clip.table))
        consistency.update(label, answer.mask)
        confusion.update(label, answer.mask)
        matrices.append(confusion.matrix)
        distance = answer.provenance.key_age_frames
        by_distance.setdefault(distance, []).append(confusion.matrix)
        moments.append(Moment.of(index, answer))
        if index in kept:
            masks[index] = answer.mask
        progress(1)
    first = [moment.latency_ms for moment in moments if moment.first]
    others = [moment.latency_ms for moment in moments if not moment.first]
    pooled, nan = Confusion.of(*matrices), float("nan")
    return Result(
        frames=len(clip),
        miou=pooled.miou,
        pixel_accuracy=pooled.pixel_accuracy,
        class_accuracy=pooled.class_accuracy,
        vc8=consistency.value,
        key_share=method.counters.key_frames / len(clip),
        avg_ms=float(np.mean(others)) if others else nan,
        max_ms=max(others, default=nan),
        first_ms=float(np.mean(first)) if first else nan,
        # A method sets its threads in the thread that calls it, which is this one.
        threads=torch.get_num_threads(),
        other_cores=other_work.cores(),
        class_iou=dict(zip(clip.table.names, pooled.iou.tolist(), strict=True)),
        by_distance={age: Confusion.of(*by_distance[age]).miou for age in sorted(by_distance)},
        moments=tuple(moments),
        matrices=tuple(matrices),
        masks=masks,
    )


#: From the measured stages of a frame to (ms until its mask is out, ms until the next can begin).
Cost = Callable[[StageTiming], tuple[float, float]]


def measured(speed: float = 1.0) -> Cost:
    """What was measured, as on a machine ``speed`` times as fast.

    The selector runs after the mask, but before the next frame.
    """

    def cost(timing: StageTiming) -> tuple[float, float]:
        return timing.latency_ms / speed, (timing.latency_ms + timing.selector_ms) / speed

    return cost


def assumed(milliseconds: float) -> Cost:
    """The same time for every frame, for tests and for other machines."""
    return lambda timing: (milliseconds, milliseconds)


def stream(method: Method, clip: Clip, cost: Cost, progress: Callable[[int], object]) -> float:
    """Streaming mIoU: at each instant, that of the newest mask that is out by then.

    Frames arrive at the camera's rate; a method that is busy takes the newest one when it is done
    and never sees the others; see :func:`.count_newest` for the score. So latency costs
    accuracy. ``progress`` is called with the arrivals of each drive.
    """
    confusion = Confusion(len(clip.table))
    for number, drive in enumerate(clip.ranges()):
        if number > 0:
            method.reset()
        arrivals_ms = [clip.frames[index].stamp_ns / 1e6 for index in drive]
        masks: list[np.ndarray] = []
        out_ms: list[float] = []  # when each of the masks is out
        free_ms, frame = arrivals_ms[0], 0
        while frame < len(drive):
            begin_ms = max(free_ms, arrivals_ms[frame])
            frame = bisect_right(arrivals_ms, begin_ms) - 1  # the newest one by then
            answer = method.process(clip.frame(drive[frame]))
            until_out_ms, until_free_ms = cost(answer.timing)
            masks.append(answer.mask)
            out_ms.append(begin_ms + until_out_ms)
            free_ms, frame = begin_ms + until_free_ms, frame + 1
        labels = [clip.frames[index].label for index in drive]
        count_newest(confusion, zip(arrivals_ms, labels, strict=True), masks, out_ms)
        progress(len(drive))
    return confusion.miou


@dataclass(frozen=True)
class Comparison:
    """Of ``specs``, by name: results, reasons of the methods left out, streaming mIoU if asked."""

    specs: tuple[Spec, ...]
    results: dict[str, Result] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    streaming: dict[str, float] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        return len(self.results) + len(self.left_out) == len(self.specs)

    @property
    def reasons(self) -> dict[str, list[str]]:
        """Why methods were left out, each reason with the names of the methods."""
        reasons: dict[str, list[str]] = {}
        for name, reason in self.left_out.items():
            reasons.setdefault(reason, []).append(name)
        return reasons

    @property
    def threads(self) -> set[int]:
        """The numbers of CPU threads that the methods used."""
        return {result.threads for result in self.results.values()}


def compare(
    factory: MethodFactory,
    specs: list[Spec],
    clip: Clip,
    *,
    pictures: bool = False,
    streaming: Cost | None = None,
    after_each: Callable[[Comparison], object] = lambda done: None,
) -> Comparison:
    """Measure those of ``specs`` that can be built; with a progress bar on standard error.

    ``pictures``: keep the masks that the charts need. ``streaming``: run each method once more, in
    simulated time at this cost. ``after_each`` is called with what is done after each method.
    """
    done = Comparison(tuple(specs))
    steps = len(clip) * (1 if streaming is None else 2)
    with tqdm(total=steps * len(specs), unit="frame") as bar:
        for number, spec in enumerate(specs, start=1):
            bar.set_description(f"method {number} of {len(specs)}, {spec.name}")
            try:
                method = factory.build(spec)
            except Unavailable as reason:
                done.left_out[spec.name] = str(reason)
                bar.update(steps)
            else:
                # Deviations are measured between the masks of the full network.
                kept = range(len(clip)) if spec.name == "full" else grid_rows(clip)
                result = measure(method, clip, kept if pictures else (), bar.update)
                if streaming is not None:
                    again = factory.build(spec, skips_frames=True)
                    done.streaming[spec.name] = stream(again, clip, streaming, bar.update)
                done.results[spec.name] = result
            after_each(done)
    return done


def grid_rows(clip: Clip) -> list[int]:
    """Frames spread over the clip, for the grid of images."""
    rows = min(GRID_ROWS, len(clip))
    return [round((row + 0.5) * len(clip) / rows - 0.5) for row in range(rows)]
