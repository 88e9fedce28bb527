"""Key frames in full, all others carried over, everything in the foreground (paper Sec. 3).

A schedule decides before a frame is segmented whether it becomes a key frame: at fixed intervals,
or when a measure of change says so (the three schedules of the paper's Fig. 5).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from torch import Tensor

from lowlat_seg_ros.config import EngineConfig
from lowlat_seg_ros.engine.runner import Runner
from lowlat_seg_ros.frames import MaskKind
from lowlat_seg_ros.lab.baselines.carry import Adaptive, Carrier, Head
from lowlat_seg_ros.lab.baselines.stream import Now, Stream
from lowlat_seg_ros.network.layers import single_threaded
from lowlat_seg_ros.network.segmenter import Segmenter


class Measure(Protocol):
    """How far a frame is from the key frame, by their low-level features F_l."""

    def reduce(self, runner: Runner, low: Tensor) -> Tensor:
        """What is compared of a frame."""

    def change(self, runner: Runner, reduced_key: Tensor, reduced: Tensor) -> float:
        """A number that grows with the distance."""


class FeatureChange:
    """Relative change of F_l, mean |F_l(t) - F_l(k)| / mean |F_l(k)|: nothing is learned."""

    def reduce(self, runner: Runner, low: Tensor) -> Tensor:
        return low

    def change(self, runner: Runner, reduced_key: Tensor, reduced: Tensor) -> float:
        return runner.run(_relative_change, _relative_change, reduced_key, reduced).item()


def _relative_change(key: Tensor, now: Tensor) -> Tensor:
    key, now = key.float(), now.float()
    return (now - key).abs().mean() / key.abs().mean().clamp(min=1e-6)


class PredictedDeviation:
    """The learned selector's deviation, a share of pixels (paper Sec. 3.2)."""

    def reduce(self, runner: Runner, low: Tensor) -> Tensor:
        return runner.selector_reduce(low)

    def change(self, runner: Runner, reduced_key: Tensor, reduced: Tensor) -> float:
        return runner.deviation(reduced_key, reduced)


class Fixed:
    """A key frame every ``interval`` frames."""

    needs_low = False

    def __init__(self, interval: int) -> None:
        if interval < 1:
            raise ValueError(f"interval is {interval}; it must be at least 1 frame")
        self.interval = interval

    def is_key(self, runner: Runner, key_age: int, low: Tensor | None) -> bool:
        return key_age >= self.interval

    def promote(self, runner: Runner, low: Tensor) -> None:
        pass


class Threshold:
    """A key frame where ``measure`` exceeds ``threshold``; needs F_l of every frame."""

    needs_low = True

    def __init__(self, measure: Measure, threshold: float) -> None:
        self.measure, self.threshold = measure, threshold
        self._key: Tensor | None = None
        self._chosen: Tensor | None = None  # of the frame that is about to become the key frame

    def is_key(self, runner: Runner, key_age: int, low: Tensor | None) -> bool:
        """Whether a frame ``key_age`` frames after the key frame becomes the next one."""
        assert low is not None
        assert self._key is not None
        reduced = self.measure.reduce(runner, low)
        chosen = self.measure.change(runner, self._key, reduced) > self.threshold
        self._chosen = reduced if chosen else None
        return chosen

    def promote(self, runner: Runner, low: Tensor) -> None:
        """The frame with these features is the key frame from now on."""
        reduced = self.measure.reduce(runner, low) if self._chosen is None else self._chosen
        self._key, self._chosen = runner.clone(reduced), None


Schedule = Fixed | Threshold


@dataclass(frozen=True, eq=False)
class Key:
    """What is kept of a key frame: F_h, the carrier's view, and what is made of both once."""

    high: Tensor  # (1, Ch, H/8, W/8), or at 1/16 what the segmenter carries of it
    view: Tensor
    remembered: Tensor
    answers: Tensor | None  # (1, classes, r*H/8, r*W/8)
    luma: np.ndarray | None  # uint8 (H/2, W/2)


class KeyedEngine(Stream):
    """Without low-latency scheduling: the frames that ``schedule`` chooses wait for Sh.

    So the worst latency is the full network's, plus the schedule's own cost, which comes before
    the mask and is part of ``predictor_ms`` here. ``head``: None for the segmenter's own fusion,
    with ensemble or gate, as the engine's fast track has it.
    """

    def __init__(
        self,
        segmenter: Segmenter,
        carrier: Carrier,
        head: Head | None,
        schedule: Schedule,
        config: EngineConfig = EngineConfig(),  # noqa: B008 - frozen
    ) -> None:
        super().__init__(segmenter, config)
        self._carrier, self._head, self._schedule = carrier, head, schedule
        head_needs_low = head is None or head.needs_low
        self._needs_low = schedule.needs_low or carrier.needs_low or head_needs_low
        self._key: Key | None = None

    def step(self, now: Now) -> tuple[Tensor, MaskKind]:
        runner, carrier, head, key, low = self.runner, self._carrier, self._head, self._key, None
        if self._needs_low:
            with now.watch.stage("lower_ms"):
                low = runner.lower(now.image)
        if key is not None:
            with now.watch.stage("predictor_ms"):
                is_key = self._schedule.is_key(runner, now.key_age, low)
        if key is None or is_key:
            return self._full(now, low), MaskKind.FULL

        with now.watch.stage("predictor_ms"):
            view = self.run("view", carrier.view, now.image, low)
            motion = self.run("motion", carrier.motion, key.remembered, view)
        with now.watch.stage("propagation_ms"), single_threaded():
            carried = self.run("move", carrier.move, key.high, motion)
            answers, residual = runner.carry_answers(key.answers, key.luma, now.luma)
        with now.watch.stage("fusion_ms"):
            if head is not None:
                return self.run("head", head, carried, low), MaskKind.PROPAGATED
            assert low is not None
            evidence = runner.evidence(key.view, view, now.key_age_s, residual)
            logits, _ = runner.fuse(carried, low, view, evidence, answers)
        return logits, MaskKind.PROPAGATED

    def _full(self, now: Now, low: Tensor | None) -> Tensor:
        """Logits of a frame that becomes the key frame."""
        runner, carrier = self.runner, self._carrier
        if low is None:
            with now.watch.stage("lower_ms"):
                low = runner.lower(now.image)
        with now.watch.stage("higher_ms"):
            high = runner.higher(runner.source(now.image, low))
        with now.watch.stage("predictor_ms"):
            # What the runner gives is overwritten by the next frame; a key frame outlives that.
            view = runner.clone(self.run("view", carrier.view, now.image, low))
            remembered = runner.clone(self.run("remember", carrier.remember, view))
            answers = runner.answers(high) if self._head is None else None
            # The segmenter's own fusion reads what the segmenter carries.
            moved = runner.carried_cells(high) if self._head is None else high
            self._key = Key(moved, view, remembered, answers, now.luma)
            self._schedule.promote(runner, low)
        with now.watch.stage("fusion_ms"):
            return runner.classify_high(high)

    def forget(self) -> None:
        self._key = None


def adaptive(
    segmenter: Segmenter,
    schedule: Schedule,
    config: EngineConfig = EngineConfig(),  # noqa: B008 - frozen
) -> KeyedEngine:
    """The paper's propagation and fusion, with the segmenter's own modules."""
    engine = KeyedEngine(segmenter, Adaptive(segmenter.predictor), None, schedule, config)
    engine.name = "adaptive"  # the parts are the segmenter's own: all schedules share their graphs
    return engine
