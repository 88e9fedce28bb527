"""The slow track: one background thread that runs Sh, newest key frame first (rules 3, 5, 6)."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import torch

from lowlat_seg_ros.config import EngineConfig
from lowlat_seg_ros.engine.cache import KeyFrame
from lowlat_seg_ros.engine.device import use_threads
from lowlat_seg_ros.engine.gate import Gate
from lowlat_seg_ros.engine.ledger import Job, Ledger
from lowlat_seg_ros.engine.refine import Cancelled, Pause
from lowlat_seg_ros.frames import Outcome

logger = logging.getLogger(__name__)

#: Runs the job of one key frame and says where it ended, as :class:`refine.Refiner` does.
Refine = Callable[[KeyFrame, Pause], Outcome]


@dataclass(frozen=True)
class SlowTrackState:
    """What the slow track is doing, for diagnostics.

    ``running_ms`` is the age of the job that runs now, 0 when idle. ``last_ms`` is the time of the
    newest job that ran to its end. ``last_error`` is the message of the newest job if it failed.
    """

    running: bool = False
    waiting: bool = False  # a key frame is queued behind the running job
    running_ms: float = 0.0
    last_ms: float = 0.0
    last_error: str = ""
    alive: bool = True


class SlowTrack(Protocol):
    """What the engine asks of a slow track; :mod:`virtual` has the deterministic one."""

    def frame(self, index: int, stamp_ns: int) -> AbstractContextManager[None]:
        """Entered while a frame is in the foreground."""

    def submit(self, key: KeyFrame) -> None:
        """Hand over a key frame; it replaces one that still waits, which is counted."""

    def cancel(self) -> None:
        """Drop what waits: a reset made it stale."""

    def set_min_share(self, share: float) -> None:
        """Change ``EngineConfig.slow_track_min_share``."""

    def state(self) -> SlowTrackState:
        """A snapshot for diagnostics."""

    def close(self, timeout_s: float) -> bool:
        """Stop; False if a running job did not let itself be stopped in time."""


def run_job(refine: Refine, job: Job, pause: Pause, ledger: Ledger) -> str:
    """Run one job and book its end; returns the error's message, empty if it did not fail."""
    job, message = ledger.begin(job), ""
    try:
        outcome = refine(job.key, pause)
    except Cancelled:
        outcome = Outcome.STALE
    except Exception as error:
        # Rule 6: whatever Sh raises, masks go on with the provisional features.
        outcome = Outcome.FAILED
        message = f"Sh failed on frame {job.key.index}: {type(error).__name__}: {error}"
        logger.warning("%s", message)
        ledger.failure(message)
    ledger.settle(job, outcome, message)
    return message


class ThreadedSlowTrack:
    """The slow track of a live engine: one thread, at most one job waiting behind the running."""

    def __init__(self, refine: Refine, ledger: Ledger, config: EngineConfig) -> None:
        self._refine = refine
        self._ledger = ledger
        self._threads = config.slow_track_threads
        self._gate = Gate(config.slow_track_min_share)
        self._changed = threading.Condition()
        self._queued: Job | None = None
        self._started: float | None = None
        self._last_ms, self._last_error = 0.0, ""
        self._closed = False
        # A daemon, so that a job which cannot be stopped does not keep the process alive.
        self._thread = threading.Thread(target=self._loop, name="slow-track", daemon=True)
        self._thread.start()

    def frame(self, index: int, stamp_ns: int) -> AbstractContextManager[None]:
        """Sh waits between its blocks while this is entered (see :class:`Gate`)."""
        return self._gate.foreground()

    def submit(self, key: KeyFrame) -> None:
        """Queue ``key`` for the thread; a slow track that is closed drops it as stale."""
        job = self._ledger.submit(key)
        with self._changed:
            closed = self._closed  # close() may come while the frame is in the foreground
            replaced, self._queued = self._queued, None if closed else job
            self._changed.notify_all()
        if replaced is not None:
            self._ledger.settle(replaced, Outcome.SUPERSEDED)
        if closed:
            self._ledger.settle(job, Outcome.STALE)

    def cancel(self) -> None:
        """Drop the waiting job; a running one notices the new epoch at its next block."""
        with self._changed:
            dropped, self._queued = self._queued, None
        if dropped is not None:
            self._ledger.settle(dropped, Outcome.STALE)

    def set_min_share(self, share: float) -> None:
        """Takes effect at Sh's next block."""
        self._gate.min_share = share

    def state(self) -> SlowTrackState:
        """A snapshot for diagnostics."""
        with self._changed:
            running = self._started is not None
            age = (time.perf_counter() - self._started) * 1e3 if self._started is not None else 0.0
            waiting, alive = self._queued is not None, self._thread.is_alive()
            return SlowTrackState(running, waiting, age, self._last_ms, self._last_error, alive)

    def close(self, timeout_s: float) -> bool:
        """Stop at Sh's next block and join; False if the thread had to be abandoned."""
        with self._changed:
            self._closed = True
            dropped, self._queued = self._queued, None
            self._changed.notify_all()
        if dropped is not None:
            self._ledger.settle(dropped, Outcome.STALE)
        self._gate.release()
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _loop(self) -> None:
        use_threads(self._threads)
        with torch.inference_mode():
            while (job := self._take()) is not None:
                self._gate.begin_job()
                self._finish(run_job(self._refine, job, self._pause, self._ledger))
                del job  # an idle slow track must not keep features alive

    def _take(self) -> Job | None:
        with self._changed:
            self._changed.wait_for(lambda: self._queued is not None or self._closed)
            job, self._queued = self._queued, None
            self._started = time.perf_counter() if job is not None else None
            return job

    def _finish(self, error: str) -> None:
        with self._changed:
            if self._started is not None:
                self._last_ms = (time.perf_counter() - self._started) * 1e3
            self._started, self._last_error = None, error

    def _pause(self) -> None:
        if not self._closed:
            self._gate.wait()
        if self._closed:
            raise Cancelled
