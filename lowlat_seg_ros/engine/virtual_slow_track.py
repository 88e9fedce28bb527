"""A slow track on a virtual clock: masks depend on the input alone, not on the machine's speed."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from lowlat_seg_ros.config import ConfigError, EngineConfig
from lowlat_seg_ros.engine.counters import Job, LiveCounters, run_job
from lowlat_seg_ros.engine.key_frame import KeyFrame, Refine
from lowlat_seg_ros.engine.slow_track import CameraQueue, SlowTrackState
from lowlat_seg_ros.frames import Outcome


@dataclass(frozen=True)
class Delay:
    """How long Sh takes: a number of frames, or milliseconds between frame stamps."""

    frames: int | None = None
    ms: float | None = None

    def __post_init__(self) -> None:
        given = [value for value in (self.frames, self.ms) if value is not None]
        if len(given) != 1 or not 0 <= given[0] < math.inf:
            raise ConfigError(
                f"Sh's delay is {self.frames} frames, {self.ms} ms; give one of them, >= 0"
            )

    def clock(self, index: int, stamp_ns: int) -> int:
        """The virtual time of a frame, in this delay's ticks (frames or nanoseconds)."""
        return index if self.frames is not None else stamp_ns

    @property
    def ticks(self) -> int:
        return self.frames if self.frames is not None else round((self.ms or 0.0) * 1e6)


class VirtualSlowTrack:
    """Runs each job in the caller's thread, at the first frame by which it would have been done.

    The result of a job submitted at time s shows at the first later frame with time >= s + delay.
    Meanwhile one more job may wait, the newest; it begins when the running one ends."""

    def __init__(
        self, refine: Refine, counters: LiveCounters, config: EngineConfig, delay: Delay
    ) -> None:
        self._refine, self._counters, self._delay = refine, counters, delay
        self._now = 0
        self._running: tuple[Job, int] | None = None  # and the time at which it ends
        self._queued: Job | None = None
        self._last_error = ""

    def begin_frame(self, index: int, stamp_ns: int) -> None:
        """Deliver what is due by this frame."""
        self._now = self._delay.clock(index, stamp_ns)
        while self._running is not None and self._running[1] <= self._now:
            job, end = self._running
            self._running = None
            error = run_job(self._refine, job, lambda: None, self._counters)
            self._last_error = self._last_error if error is None else error
            if self._queued is not None:
                self._running = (self._queued, end + self._delay.ticks)
                self._queued = None

    def ran_in_foreground(self, error: str) -> None:
        self._last_error = error

    def end_frame(self) -> None:
        """Nothing waits for it."""

    def take_turn(self) -> bool:
        return True

    def take_idle_turn(self) -> bool:
        return self._running is None and self._queued is None

    def submit(self, key: KeyFrame) -> None:
        """Start ``key`` now, or let it wait behind the running job; newest wins."""
        job = self._counters.submit(key)
        if self._running is None:
            self._running = (job, self._now + self._delay.ticks)
            return
        replaced, self._queued = self._queued, job
        if replaced is not None:
            self._counters.end(replaced, Outcome.SUPERSEDED)

    def cancel(self) -> None:
        dropped = [self._running[0]] if self._running is not None else []
        dropped += [self._queued] if self._queued is not None else []
        self._running = self._queued = None
        for job in dropped:
            self._counters.end(job, Outcome.STALE)

    def starved(self) -> bool:
        """The virtual clock knows no contention."""
        return False

    def set_min_share(self, share: float) -> None:
        """The virtual clock knows no contention."""

    def state(self) -> SlowTrackState:
        """A snapshot; durations are virtual and not reported."""
        running, waiting = self._running is not None, self._queued is not None
        return SlowTrackState(running, waiting, last_error=self._last_error)

    def close(self, timeout_s: float) -> bool:
        self.cancel()
        return True


#: What an engine may have as its slow track, and what makes it.
SlowTrack = CameraQueue | VirtualSlowTrack
SlowTrackFactory = Callable[[Refine, LiveCounters, EngineConfig], SlowTrack]
