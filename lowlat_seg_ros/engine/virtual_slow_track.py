"""A slow track on a virtual clock: masks depend on the input alone, not on the machine's speed."""

from __future__ import annotations

from collections.abc import Callable

from lowlat_seg_ros.config import ConfigError, EngineConfig
from lowlat_seg_ros.engine.counters import Job, LiveCounters, run_job
from lowlat_seg_ros.engine.key_frame import KeyFrame, Refine
from lowlat_seg_ros.engine.slow_track import CameraQueue, SlowTrackState
from lowlat_seg_ros.frames import Outcome


class VirtualSlowTrack:
    """Runs each job in the caller's thread, at the first frame by which it would have been done.

    A job takes ``delay`` frames: the result of one that was submitted after frame n shows at frame
    n + delay, or at the next one if that is 0. Meanwhile one more job may wait, the newest; it
    begins when the running one ends. Raises ``ConfigError`` for a negative ``delay``.
    """

    def __init__(
        self, refine: Refine, counters: LiveCounters, config: EngineConfig, delay: int
    ) -> None:
        if delay < 0:
            raise ConfigError(f"Sh's delay is {delay} frames; it must be 0 or more")
        self._refine, self._counters, self._delay = refine, counters, delay
        self._now = 0  # the newest frame
        self._running: tuple[Job, int] | None = None  # and the frame at which it ends
        self._queued: Job | None = None
        self._last_error = ""

    def begin_frame(self, index: int, stamp_ns: int) -> None:
        """Deliver what is due by this frame."""
        self._now = index
        while self._running is not None and self._running[1] <= self._now:
            job, end = self._running
            self._running = None
            error = run_job(self._refine, job, lambda: None, self._counters)
            self._last_error = self._last_error if error is None else error
            if self._queued is not None:
                self._running = (self._queued, end + self._delay)
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
            self._running = (job, self._now + self._delay)
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
