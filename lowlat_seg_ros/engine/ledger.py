"""The engine's counters, each change of which keeps their identity (see frames.Counters)."""

from __future__ import annotations

import dataclasses
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from lowlat_seg_ros.engine.cache import KeyFrame
from lowlat_seg_ros.engine.latency import Clock
from lowlat_seg_ros.frames import Counters, Outcome, Refinement, ResetReason

logger = logging.getLogger(__name__)

#: Told what became of each job of the slow track.
OnRefinement = Callable[[Refinement], None]


@dataclass(frozen=True, eq=False)
class Job:
    """A key frame in the hands of the slow track; times on a monotonic clock."""

    key: KeyFrame
    submitted_ns: int
    began_ns: int | None = None


class Ledger:
    """Owner of the counters; any thread may book, every snapshot is consistent.

    ``on_refinement`` is called at the end of each job, by the thread that ends it, when it is in
    the counters; what it raises is logged.
    """

    def __init__(
        self, on_refinement: OnRefinement | None = None, clock: Clock = time.perf_counter_ns
    ) -> None:
        self._lock = threading.Lock()
        self._counters = Counters()
        self._on_refinement, self._clock = on_refinement, clock

    @property
    def counters(self) -> Counters:
        """A snapshot."""
        with self._lock:
            return self._counters

    def count(self, **increments: int) -> None:
        """Add to counters of frames, such as ``count(frames=1, degraded=1)``."""
        with self._lock:
            self._add(**increments)

    def reset(self, reason: ResetReason) -> None:
        """An epoch after the first began; ValueError for the reason of the first."""
        if reason is ResetReason.FIRST_FRAME:
            raise ValueError("the first epoch is no reset; give another reason")
        self.count(resets=1, **{f"resets_{reason.value}": 1})

    def submit(self, key: KeyFrame) -> Job:
        """A key frame was handed to the slow track."""
        with self._lock:
            self._add(submitted=1, pending=1)
        return Job(key, self._clock())

    def begin(self, job: Job) -> Job:
        """Sh begins on ``job``; the record to settle."""
        return dataclasses.replace(job, began_ns=self._clock())

    def settle(self, job: Job, outcome: Outcome, error: str = "") -> None:
        """A submitted job ended; ``error`` is the message if it failed."""
        with self._lock:
            self._add(**{outcome.value: 1, "pending": -1})
        if self._on_refinement is None:
            return
        try:
            self._on_refinement(self._refinement(job, outcome, error))
        except Exception:
            # Others' code: whatever it raises must stop neither frames nor the slow track.
            logger.exception("Telling of a job of the slow track failed")

    def failure(self, message: str) -> None:
        """Remember the message of the newest failure."""
        with self._lock:
            self._counters = dataclasses.replace(self._counters, last_failure=message)

    def _refinement(self, job: Job, outcome: Outcome, error: str) -> Refinement:
        now_ns = self._clock()
        began_ns = now_ns if job.began_ns is None else job.began_ns
        return Refinement(
            job.key.stamp_ns,
            job.key.frame_id,
            job.key.epoch,
            outcome,
            wait_ms=(began_ns - job.submitted_ns) / 1e6,
            compute_ms=(now_ns - began_ns) / 1e6,
            error=error,
        )

    def _add(self, **increments: int) -> None:
        values = {name: getattr(self._counters, name) + by for name, by in increments.items()}
        self._counters = dataclasses.replace(self._counters, **values)
