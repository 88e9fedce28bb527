"""One frame on its way through the engine, and how it becomes the key frame after its mask."""

from __future__ import annotations

import dataclasses
import math
import threading
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from lowlat_seg_ros.config import EngineConfig
from lowlat_seg_ros.engine import schedule
from lowlat_seg_ros.engine.counters import LiveCounters
from lowlat_seg_ros.engine.key_frame import HighLevel, KeyFrame, KeyFrameCache
from lowlat_seg_ros.engine.postprocess import confidence_of
from lowlat_seg_ros.engine.preprocess import Geometry
from lowlat_seg_ros.engine.runner import Runner, Stopwatch
from lowlat_seg_ros.engine.virtual_slow_track import SlowTrack
from lowlat_seg_ros.frames import (
    Deadline,
    Frame,
    Look,
    MaskKind,
    Provenance,
    ResetReason,
    StageTiming,
)
from lowlat_seg_ros.network.expected_accuracy import (
    AccuracyModel,
    Looker,
    Observed,
    observe,
    temperature,
)
from lowlat_seg_ros.network.layers import single_threaded


@dataclass(frozen=True, eq=False)
class Arrival:
    """A frame that came in, the engine's ``index``-th, and what was decided about it.

    ``duplicate``: its stamp is that of the frame before. ``config``: the settings that hold for it.
    """

    frame: Frame
    index: int
    level: schedule.Level
    geometry: Geometry
    duplicate: bool
    config: EngineConfig


@dataclass(frozen=True, eq=False)
class Features:
    """What a mask is made from; tensors are at the network's size and on its device."""

    low: Tensor  # F_l (1, Cl, H/8, W/8)
    source: Tensor  # what Sh begins with
    luma: np.ndarray | None  # the frame's own, see warping.luma_of
    logits: Tensor  # (1, classes, r*H/8, r*W/8)
    high: HighLevel | None = None  # exact or propagated; None if degraded
    reduced: Tensor | None = None  # the predictor's reduction of F_l, if the predictor ran
    weights: Tensor | None = None  # W(k,t) (1, K*K, H/8, W/8) or at 1/16, if it ran
    trust: Tensor | None = None  # (1, 1, r*H/8, r*W/8) in the carried answer; None without a gate

    def provenance(
        self, arrival: Arrival, key: KeyFrame | None, epoch: int, reset: ResetReason | None
    ) -> Provenance:
        """Where the mask comes from; ``reset``: why the frame began its epoch, if it did."""
        now_ns, exact = arrival.frame.stamp_ns, self.high is not None
        if key is None or self.high is None:
            kind, age_ms = (MaskKind.FULL, 0.0) if exact else (MaskKind.DEGRADED, math.nan)
            return Provenance(kind, now_ns, 0, 0.0, exact, epoch, reset, age_ms)
        kind, age_ms = MaskKind.PROPAGATED, (now_ns - key.stamp_ns) / 1e6
        age_frames, seen_ms = arrival.index - key.index, (now_ns - self.high.stamp_ns) / 1e6
        return Provenance(
            kind, key.stamp_ns, age_frames, age_ms, key.exact, epoch, features_age_ms=seen_ms
        )

    def observed(self, arrival: Arrival, look: Look) -> Observed:
        """What is seen of the mask, with a ``look`` at its image."""
        frame = arrival.frame
        age_s = 0.0
        if self.high is not None and self.trust is not None:
            age_s = self.high.age_s(frame.stamp_ns, arrival.index)
        return observe(frame.image, look, self.logits, self.luma, self.trust, age_s)


@dataclass(frozen=True, eq=False)
class Judged:
    """What is thought of a mask: a ``look`` at its image, and its ``expected`` accuracy, or NaN.

    ``confidence``, uint8 (H, W), is each pixel's; None where nobody has asked for it.
    """

    look: Look
    expected: float = math.nan
    confidence: np.ndarray | None = None


class Judge:
    """Judges the masks of one camera, in order; used by the thread that a frame is in."""

    def __init__(self, model: AccuracyModel | None) -> None:
        self._model, self._looker = model, Looker()

    def __call__(self, arrival: Arrival, features: Features, *, confidence: bool) -> Judged:
        """Look at the image, and say how much of the mask is probably right.

        ``confidence`` asks for that of each pixel.
        """
        look = self._looker.look(arrival.frame.image, arrival.frame.stamp_ns)
        expected, divisor = math.nan, 1.0
        if self._model is not None:
            observed = features.observed(arrival, look)
            expected = self._model(observed.values, observed.bands)
            divisor = temperature(observed.logits, expected) if confidence else 1.0
        pixels = confidence_of(features.logits, arrival.geometry, divisor) if confidence else None
        return Judged(look, expected, pixels)


@dataclass(frozen=True, eq=False)
class Step:
    """A frame whose mask is out, for :meth:`Engine.finish`.

    ``mask`` is uint8 (H, W) class ids, and ``timing`` that of the stages up to it. What comes below
    ``deadline`` is the engine's.
    """

    mask: np.ndarray
    provenance: Provenance
    timing: StageTiming
    deadline: Deadline
    arrival: Arrival
    features: Features
    key: KeyFrame | None  # that the mask was made with, of the same geometry
    watch: Stopwatch
    judged: Judged | None = None  # where the mask itself depends on it

    def as_key_frame(self, net: Runner, selector_reduced: Tensor | None) -> KeyFrame:
        features, high = self.features, self.features.high
        reduced = net.reduce(features.low) if features.reduced is None else features.reduced
        reduced = net.clone(reduced)
        if high is not None:
            high = dataclasses.replace(high, features=net.clone(high.features))
        if selector_reduced is None:
            selector_reduced = net.selector_reduce(features.low)
        return KeyFrame(
            source=net.clone(features.source),
            reduced=reduced,
            remembered=net.remember(reduced),
            selector_reduced=net.clone(selector_reduced),
            high=high,
            geometry=self.arrival.geometry,
            stamp_ns=self.arrival.frame.stamp_ns,
            index=self.arrival.index,
            epoch=self.provenance.epoch,
            exact=self.provenance.kind is MaskKind.FULL,
            luma=features.luma,
            stride=net.propagation_stride,
            frame_id=self.arrival.frame.frame_id,
        )


class Promotion:
    """Which frames become the key frame, and how; asked by the foreground after each mask."""

    def __init__(
        self, network: Runner, cache: KeyFrameCache, counters: LiveCounters, slow_track: SlowTrack
    ) -> None:
        self._net, self._cache, self._counters = network, cache, counters
        self._slow = slow_track
        self.forced = threading.Event()  # any thread sets it: the next frame becomes the key frame

    def selector_is_due(self, step: Step, key: KeyFrame, config: EngineConfig) -> bool:
        """Whether the selector runs on the frame: not on each while load is shed."""
        age_frames, every = step.arrival.index - key.index, step.arrival.level.selector_every
        return self._must(step, key) or schedule.selects(age_frames, every, config)

    def is_chosen(
        self, step: Step, key: KeyFrame, deviation: float, threshold: float, config: EngineConfig
    ) -> bool:
        """Whether the frame is to become the key frame, by the selector's ``deviation``."""
        if self._must(step, key):
            return True
        last_error, age_frames = self._slow.state().last_error, step.arrival.index - key.index
        fills = schedule.fills_idle_time(last_error, age_frames, step.arrival.level, config)
        # While Sh is busy, a frame that deviates would only wait for it, with features that are
        # propagated once more; so where frames fill Sh's idle time, the deviation does not count.
        limit = math.inf if fills else threshold
        deviates = schedule.is_key(deviation, limit, age_frames, config)
        # Fairness: a shared slow track serves one camera after another. A newer frame asks again.
        return (deviates and self._slow.take_turn()) or (fills and self._slow.take_idle_turn())

    def _must(self, step: Step, key: KeyFrame) -> bool:
        # Resampled features are only a substitute: the first frame of the new size replaces them.
        return key.resampled or step.arrival.duplicate or self.forced.is_set()

    def promote(
        self, step: Step, selector_reduced: Tensor | None = None, *, submit: bool = True
    ) -> bool:
        """Propagated at once, exact later: the frame is the key frame from here on.

        ``submit`` hands it to the slow track. False if a reset came in between.
        """
        expected, features, net = step.key, step.features, self._net
        new = step.as_key_frame(net, selector_reduced)
        while not self._cache.replace(expected, new):
            # Sh has refined the key frame since. What it found is propagated, not lost.
            expected, epoch = self._cache.snapshot()
            if expected is None or expected.high is None or epoch != new.epoch:
                return False
            if features.weights is None:  # the mask was degraded: there was no F_h
                return False
            with single_threaded():
                propagated = net.clone(net.propagate(expected.high.features, features.weights))
            new = dataclasses.replace(
                new, high=dataclasses.replace(expected.high, features=propagated)
            )
        self._counters.count(key_frames=1, forced=int(self.forced.is_set()))
        self.forced.clear()
        if submit:
            self._slow.submit(new)
        return True
