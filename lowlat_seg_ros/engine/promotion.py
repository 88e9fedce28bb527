"""Which frames become the key frame, and how one does."""

from __future__ import annotations

import dataclasses
import math
import threading

from torch import Tensor

from lowlat_seg_ros.config import EngineConfig
from lowlat_seg_ros.engine import schedule
from lowlat_seg_ros.engine.counters import LiveCounters
from lowlat_seg_ros.engine.cpu_threads import single_threaded
from lowlat_seg_ros.engine.key_frame import KeyFrame, KeyFrameCache
from lowlat_seg_ros.engine.runner import Runner
from lowlat_seg_ros.engine.step import Step
from lowlat_seg_ros.engine.virtual_slow_track import SlowTrack


class Promotion:
    """Asked by the foreground after each mask; ``force`` may be called from any thread."""

    def __init__(
        self, network: Runner, cache: KeyFrameCache, counters: LiveCounters, slow_track: SlowTrack
    ) -> None:
        self._net, self._cache, self._counters = network, cache, counters
        self._slow = slow_track
        self._forced = threading.Event()

    def force(self) -> None:
        """Make the next frame the key frame, whatever the selector says."""
        self._forced.set()

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
        return key.resampled or step.arrival.duplicate or self._forced.is_set()

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
        self._counters.count(key_frames=1, forced=int(self._forced.is_set()))
        self._forced.clear()
        if submit:
            self._slow.submit(new)
        return True
