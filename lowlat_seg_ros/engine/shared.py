"""The slow track: one background thread that runs Sh, for one engine or for several in turn."""

from __future__ import annotations

import dataclasses
import threading
import time
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial

import torch

from lowlat_seg_ros.config import EngineConfig
from lowlat_seg_ros.engine.cache import KeyFrame
from lowlat_seg_ros.engine.device import give_way, gives_way, use_threads
from lowlat_seg_ros.engine.gate import Gate
from lowlat_seg_ros.engine.ledger import Job, Ledger
from lowlat_seg_ros.engine.refine import Cancelled
from lowlat_seg_ros.engine.turns import Turns
from lowlat_seg_ros.engine.worker import Refine, SlowTrackState, run_job
from lowlat_seg_ros.frames import Outcome


@dataclass(frozen=True, eq=False)
class _Running:
    """The lane whose job runs, and since when."""

    lane: Lane
    began: float


class SharedSlowTrack:
    """One thread that runs Sh for the engines made with ``slow_track=shared.lane``.

    Each engine has at most one waiting job, its newest key frame; one engine's job never replaces
    another's. Engines are served in the order in which they began to wait, so each waits for at
    most one job of every other one. Their frames must be processed by one thread: while one of
    them is in the foreground, Sh waits between its blocks whoever it runs for.
    """

    def __init__(self, config: EngineConfig) -> None:
        self._threads, self._gives_way = config.slow_track_threads, gives_way(config)
        self.gate = Gate(config.slow_track_min_share)
        self._changed = threading.Condition()
        self._waiting: dict[Lane, Job] = {}  # the lane that began to wait first comes first
        self._running: _Running | None = None
        self._turns, self._idle_turns = Turns(), Turns()
        self._closed = False
        # A daemon, so that a job which cannot be stopped does not keep the process alive.
        self._thread = threading.Thread(target=self._loop, name="slow-track", daemon=True)
        self._thread.start()

    def lane(self, refine: Refine, ledger: Ledger, config: EngineConfig) -> Lane:
        """The slow track of one engine; ``config`` is that of all."""
        return Lane(self, refine, ledger)

    def close(self, timeout_s: float) -> bool:
        """Stop at Sh's next block and join; False if the thread had to be abandoned."""
        with self._changed:
            self._closed = True
            dropped, self._waiting = self._waiting, {}
            self._changed.notify_all()
        for lane, job in dropped.items():
            lane.settle(job, Outcome.STALE)
        self.gate.release()
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def put(self, lane: Lane, job: Job) -> Job | None:
        """Let ``job`` wait, at the place of the one that it replaces; that one, or ``job`` itself
        if nothing is run any more."""
        with self._changed:
            self._turns.forget(lane)
            if self._closed or lane.closed:
                return job
            replaced = self._waiting.get(lane)
            self._waiting[lane] = job
            self._changed.notify_all()
            return replaced

    def drop(self, lane: Lane) -> Job | None:
        """Take back the job that waits for ``lane``, if one does."""
        with self._changed:
            self._turns.forget(lane)
            return self._waiting.pop(lane, None)

    def admits(self, lane: Lane) -> bool:
        """Whether ``lane`` may add a job now (see :class:`Turns`)."""
        with self._changed:
            if lane in self._waiting:
                return True
            return self._turns.take(lane, free=not self._waiting, now_s=time.monotonic())

    def offers(self, lane: Lane) -> bool:
        """Whether nothing runs or waits, and ``lane`` asked first since it was last offered.

        Those that ask while a job runs keep their place, so one camera cannot take every gap.
        """
        with self._changed:
            idle = self._running is None and not self._waiting
            return self._idle_turns.take(lane, free=idle, now_s=time.monotonic())

    def state(self, lane: Lane) -> SlowTrackState:
        """What runs, whoever it is for, and whether a job of ``lane`` waits."""
        with self._changed:
            age_ms = (time.perf_counter() - self._running.began) * 1e3 if self._running else 0.0
            running, waiting = self._running is not None, lane in self._waiting
            return SlowTrackState(running, waiting, age_ms, alive=self._thread.is_alive())

    def wait_until_done(self, lane: Lane, timeout_s: float) -> bool:
        """Wait for the end of the job of ``lane``, if one runs; False if it takes longer."""

        def done() -> bool:
            running = self._running
            return running is None or running.lane is not lane or not self._thread.is_alive()

        with self._changed:
            return self._changed.wait_for(done, timeout_s)

    def _loop(self) -> None:
        if self._gives_way:
            give_way()  # before its first parallel work, whose threads inherit it
        use_threads(self._threads)
        with torch.inference_mode():
            while (taken := self._take()) is not None:
                lane, job = taken
                self.gate.begin_job()
                began = time.perf_counter()
                error = run_job(lane.refine, job, partial(self._pause, lane), lane.ledger)
                self.gate.end_job()
                lane.done((time.perf_counter() - began) * 1e3, error)
                del lane, job, taken  # an idle slow track must not keep features alive
                with self._changed:
                    self._running = None
                    self._changed.notify_all()

    def _take(self) -> tuple[Lane, Job] | None:
        with self._changed:
            self._changed.wait_for(lambda: bool(self._waiting) or self._closed)
            if self._closed:
                return None
            lane = next(iter(self._waiting))
            self._running = _Running(lane, time.perf_counter())
            return lane, self._waiting.pop(lane)

    def _pause(self, lane: Lane) -> None:
        if not (self._closed or lane.closed):
            self.gate.wait()
        if self._closed or lane.closed:
            raise Cancelled


class Lane:
    """The slow track of one engine among several; see :class:`SharedSlowTrack`."""

    def __init__(self, track: SharedSlowTrack, refine: Refine, ledger: Ledger) -> None:
        self._track, self.refine, self.ledger = track, refine, ledger
        self.closed = False
        self._last: tuple[float, str] = 0.0, ""  # milliseconds and error; swapped whole

    def frame(self, index: int, stamp_ns: int) -> AbstractContextManager[None]:
        """Sh waits between its blocks while this is entered (see :class:`Gate`)."""
        return self._track.gate.foreground()

    def admits(self) -> bool:
        """Whether a frame may become the key frame now, or another camera comes first."""
        return self._track.admits(self)

    def offers(self) -> bool:
        """Whether nothing runs or waits and it is this lane's turn to fill the time."""
        return self._track.offers(self)

    def submit(self, key: KeyFrame) -> None:
        """Queue ``key``; it replaces the one of this lane that still waits, which is counted."""
        job = self.ledger.submit(key)
        ended = self._track.put(self, job)
        if ended is not None:
            self.settle(ended, Outcome.STALE if ended is job else Outcome.SUPERSEDED)

    def cancel(self) -> None:
        """Drop the waiting job; a running one notices the new epoch at its next block."""
        dropped = self._track.drop(self)
        if dropped is not None:
            self.settle(dropped, Outcome.STALE)

    def starved(self) -> bool:
        """Whether the running job, of whichever lane, gets less than its share."""
        return self._track.gate.starved()

    def set_min_share(self, share: float) -> None:
        """Takes effect at Sh's next block, whoever it runs for: this lane's frame comes next."""
        self._track.gate.min_share = share

    def state(self) -> SlowTrackState:
        """A snapshot: what runs may be another lane's job; what waits and ended last is its own."""
        last_ms, error = self._last
        return dataclasses.replace(self._track.state(self), last_ms=last_ms, last_error=error)

    def close(self, timeout_s: float) -> bool:
        """End this lane alone; False if its running job did not let itself be stopped in time."""
        self.closed = True
        self.cancel()
        return self._track.wait_until_done(self, timeout_s)

    def settle(self, job: Job, outcome: Outcome) -> None:
        """Book the end of a job that did not run."""
        self.ledger.settle(job, outcome)

    def done(self, took_ms: float, error: str) -> None:
        """A job of this lane has ended."""
        self._last = took_ms, error


class ThreadedSlowTrack(Lane):
    """The slow track of a live engine that shares it with none."""

    def __init__(self, refine: Refine, ledger: Ledger, config: EngineConfig) -> None:
        super().__init__(SharedSlowTrack(config), refine, ledger)

    def close(self, timeout_s: float) -> bool:
        """Stop at Sh's next block and join; False if the thread had to be abandoned."""
        return self._track.close(timeout_s)
