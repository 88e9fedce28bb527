"""Key frames in full, all others carried over, everything in the foreground (paper Sec. 3)."""

from __future__ import annotations

import time

from torch import Tensor

from lowlat_seg_ros.config import EngineConfig
from lowlat_seg_ros.engine.device import serial
from lowlat_seg_ros.engine.latency import Clock, Stopwatch
from lowlat_seg_ros.frames import MaskKind
from lowlat_seg_ros.lab.baselines.carry import CarriedSegmenter, Key
from lowlat_seg_ros.lab.baselines.schedules import Schedule
from lowlat_seg_ros.lab.baselines.stream import Stream


class KeyedEngine(Stream):
    """Without low-latency scheduling: the frames that ``schedule`` chooses wait for Sh.

    So the worst latency is the full network's, plus the schedule's own cost, which comes before
    the mask and is part of ``predictor_ms`` here.
    """

    def __init__(
        self,
        network: CarriedSegmenter,
        schedule: Schedule,
        config: EngineConfig = EngineConfig(),  # noqa: B008 - frozen
        *,
        clock: Clock = time.perf_counter_ns,
    ) -> None:
        super().__init__(network.base, config, clock=clock)
        self._network, self._schedule = network, schedule
        self._state: Key | None = None

    def step(self, image: Tensor, key_age: int | None, watch: Stopwatch) -> tuple[Tensor, MaskKind]:
        """The full mask of a key frame, the carried one of all others."""
        image = image.float()  # carriers average it, and should not round means
        needs_low = self._schedule.needs_low or self._network.needs_low
        low = self._low(image, watch) if needs_low else None
        if self._state is not None and key_age is not None:
            with watch.stage("predictor_ms"):
                chosen = self._schedule.is_key(key_age, low)
            if not chosen:
                return self._carried(self._state, image, low, watch), MaskKind.PROPAGATED
        low = self._low(image, watch) if low is None else low
        return self._full(image, low, watch), MaskKind.FULL

    def forget(self) -> None:
        """The next frame is a key frame."""
        self._state = None

    def _low(self, image: Tensor, watch: Stopwatch) -> Tensor:
        with watch.stage("lower_ms"):
            return self.segmenter.lower(image)

    def _full(self, image: Tensor, low: Tensor, watch: Stopwatch) -> Tensor:
        with watch.stage("higher_ms"):
            high = self.segmenter.higher(self.segmenter.source(image, low))
        with watch.stage("predictor_ms"):
            self._state = self._network.key(image, low, high)
            self._schedule.keep(low)
        with watch.stage("fusion_ms"):
            return self.segmenter.classify_high(high)

    def _carried(self, key: Key, image: Tensor, low: Tensor | None, watch: Stopwatch) -> Tensor:
        with watch.stage("predictor_ms"):
            motion = self._network.carrier.motion(key.kept, image, low)
        with watch.stage("propagation_ms"), serial():
            carried = self._network.carrier.move(key.high, motion)
        with watch.stage("fusion_ms"):
            return self._network.classify(key, carried, low, image, self.key_age_s)
