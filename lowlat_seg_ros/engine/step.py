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
from lowlat_seg_ros.engine.cpu_threads import single_threaded
from lowlat_seg_ros.engine.key_frame import KeyFrame, KeyFrameCache, Seen
from lowlat_seg_ros.engine.preprocess import Geometry
from lowlat_seg_ros.engine.runner import Runner
from lowlat_seg_ros.engine.timing import Stopwatch
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


@dataclass(frozen=True, eq=False)
class Features:
    """What a mask is made from; tensors are at the network's size and on its device."""

    low: Tensor  # F_l (1, Cl, H/8, W/8)
    source: Tensor  # what Sh begins with
    luma: np.ndarray | None  # the frame's own, see warping.luma_of
    logits: Tensor  # (1, classes, r*H/8, r*W/8)
    high: Tensor | None = None  # F_h (1, Ch, H/8, W/8), exact or propagated; None if degraded
    seen: Seen | None = None  # the frame that Sh has seen for it
    reduced: Tensor | None = None  # the predictor's reduction of F_l, if the predictor ran
    weights: Tensor | None = None  # W(k,t) (1, K*K, H/8, W/8), if it ran
    trust: Tensor | None = None  # (1, 1, r*H/8, r*W/8) in the carried answer; None without a gate

    def provenance(
        self, frame: Frame, index: int, key: KeyFrame | None, epoch: int, reset: ResetReason | None
    ) -> Provenance:
        """Where the mask comes from; ``reset``: why the ``index``-th frame began its epoch."""
        if key is not None and self.high is not None:
            kind, age_ms = MaskKind.PROPAGATED, (frame.stamp_ns - key.stamp_ns) / 1e6
            return Provenance(kind, key.stamp_ns, index - key.index, age_ms, key.exact, epoch)
        exact = self.high is not None
        kind = MaskKind.FULL if exact else MaskKind.DEGRADED
        return Provenance(kind, frame.stamp_ns, 0, 0.0, exact, epoch, reset)


@dataclass(frozen=True, eq=False)
class Arrival:
    """What was decided when a frame came in; ``duplicate``: its stamp is the one before's."""

    index: int
    level: schedule.Level
    geometry: Geometry
    duplicate: bool


@dataclass(frozen=True, eq=False)
class Judged:
    """What is thought of a mask: a ``look`` at its image, and its ``expected`` accuracy, or NaN.

    The logits are divided by ``temperature`` before they give the confidence of each pixel.
    """

    look: Look
    expected: float = math.nan
    temperature: float = 1.0


@dataclass(frozen=True, eq=False)
class Step:
    """A frame whose mask is out, for :meth:`Engine.finish`.

    ``mask`` is uint8 (H, W) class ids, and ``timing`` that of the stages up to it. What comes below
    ``deadline`` is the engine's.
    """

    frame: Frame
    mask: np.ndarray
    provenance: Provenance
    timing: StageTiming
    deadline: Deadline
    arrival: Arrival
    features: Features
    key: KeyFrame | None  # that the mask was made with, of the same geometry
    watch: Stopwatch
    judged: Judged | None = None  # these two where the mask itself depends on them
    confidence: np.ndarray | None = None  # uint8 (H, W)

    def as_key_frame(self, net: Runner, selector_reduced: Tensor | None) -> KeyFrame:
        features = self.features
        reduced = net.reduce(features.low) if features.reduced is None else features.reduced
        reduced = net.clone(reduced)
        if selector_reduced is None:
            selector_reduced = net.selector_reduce(features.low)
        return KeyFrame(
            source=net.clone(features.source),
            reduced=reduced,
            remembered=net.remember(reduced),
            selector_reduced=net.clone(selector_reduced),
            high=None if features.high is None else net.clone(features.high),
            geometry=self.arrival.geometry,
            stamp_ns=self.frame.stamp_ns,
            index=self.arrival.index,
            epoch=self.provenance.epoch,
            exact=self.provenance.kind is MaskKind.FULL,
            seen=features.seen,
            luma=features.luma,
            frame_id=self.frame.frame_id,
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
        return (deviates and self._slow.admits()) or (fills and self._slow.offers())

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
                high = net.clone(net.propagate(expected.high, features.weights))
            new = dataclasses.replace(new, high=high, seen=expected.seen)
        self._counters.count(key_frames=1, forced=int(self.forced.is_set()))
        self.forced.clear()
        if submit:
            self._slow.submit(new)
        return True
