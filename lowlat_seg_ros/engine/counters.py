"""The engine's counters, each change of which preserves their identities (see frames.Counters)."""

from __future__ import annotations

import dataclasses
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from lowlat_seg_ros.engine.key_frame import KeyFrame
from lowlat_seg_ros.engine.runner import Clock
from lowlat_seg_ros.frames import Counters, Outcome, Refinement, ResetReason

logger = logging.getLogger(__name__)

#: Called with what became of each job of the slow track.
OnRefinement = Callable[[Refinement], None]


@dataclass(frozen=True, eq=False)
class Job:
    """A key frame that was handed to the slow track; times are of a monotonic clock."""

    key: KeyFrame
    submitted_ns: int
    began_ns: int | None = None


class LiveCounters:
    """Owner of the counters; any thread may change them, and every snapshot is consistent.

    ``on_refinement`` is called at the end of each job, after it was counted, in the thread that
    ends it; what it raises is logged.
    """

    def __init__(
        self, on_refinement: OnRefinement | None = None, clock: Clock = time.perf_counter_ns
    ) -> None:
        self._lock = threading.Lock()
        self._counters = Counters()
        self._on_refinement, self._clock = on_refinement, clock

    def snapshot(self) -> Counters:
        with self._lock:
            return self._counters

    def count(self, **increments: int) -> Counters:
        """Add to counters of frames, such as ``count(frames=1, degraded=1)``; the new counters."""
        with self._lock:
            values = {name: getattr(self._counters, name) + by for name, by in increments.items()}
            self._counters = dataclasses.replace(self._counters, **values)
            return self._counters

    def reset(self, reason: ResetReason) -> None:
        """Count an epoch after the first; ``ValueError`` for the reason of the first."""
        if reason is ResetReason.FIRST_FRAME:
            raise ValueError("the first epoch is no reset; give another reason")
        self.count(resets=1, **{f"resets_{reason.value}": 1})

    def failure(self, message: str) -> None:
        with self._lock:
            self._counters = dataclasses.replace(self._counters, last_failure=message)

    def submit(self, key: KeyFrame) -> Job:
        self.count(submitted=1, pending=1)
        return Job(key, self._clock())

    def begin(self, job: Job) -> Job:
        """The record of ``job``, which Sh begins now; pass it to :meth:`end`."""
        return dataclasses.replace(job, began_ns=self._clock())

    def end(self, job: Job, outcome: Outcome, error: str = "") -> None:
        """Count the end of a submitted job; ``error`` is the message if it failed."""
        self.count(**{outcome.value: 1, "pending": -1})
        if self._on_refinement is None:
            return
        now_ns = self._clock()
        began_ns = now_ns if job.began_ns is None else job.began_ns
        refinement = Refinement(
            job.key.stamp_ns,
            job.key.frame_id,
            job.key.epoch,
            outcome,
            wait_ms=(began_ns - job.submitted_ns) / 1e6,
            compute_ms=(now_ns - began_ns) / 1e6,
            error=error,
        )
        try:
            self._on_refinement(refinement)
        except Exception:
            # Whatever the listener raises must stop neither frames nor the slow track.
            logger.exception("Reporting a job of the slow track failed")
