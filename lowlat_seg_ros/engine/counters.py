"""What any thread may count, and how a job of the slow track is counted from begin to end."""

from __future__ import annotations

import dataclasses
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch

from lowlat_seg_ros.engine.key_frame import Cancelled, KeyFrame, NonFiniteError, Pause, Refine
from lowlat_seg_ros.engine.runner import Clock
from lowlat_seg_ros.frames import Counters, Ledger, Outcome, Refinement, ResetReason

logger = logging.getLogger(__name__)

Record = TypeVar("Record", Counters, Ledger)

#: Called with what became of each job of the slow track.
OnRefinement = Callable[[Refinement], None]


@dataclass(frozen=True, eq=False)
class Job:
    """A key frame that was handed to the slow track; times are of a monotonic clock."""

    key: KeyFrame
    submitted_ns: int
    began_ns: int | None = None


class Counted(Generic[Record]):
    """Owner of a record of counts; any thread may change them, and every snapshot is consistent."""

    def __init__(self, record: Record) -> None:
        self._lock = threading.Lock()
        self._record: Record = record

    def snapshot(self) -> Record:
        with self._lock:
            return self._record

    def count(self, **increments: int) -> None:
        """Add to all of these at once, such as ``count(frames=1, degraded=1)``."""
        with self._lock:
            values = {name: getattr(self._record, name) + by for name, by in increments.items()}
            self._record = dataclasses.replace(self._record, **values)


class LiveCounters(Counted[Counters]):
    """The engine's counters, each change of which preserves their identities.

    ``on_refinement`` is called at the end of each job, after it was counted, in the thread that
    ends it; what it raises is logged.
    """

    def __init__(
        self, on_refinement: OnRefinement | None = None, clock: Clock = time.perf_counter_ns
    ) -> None:
        super().__init__(Counters())
        self._on_refinement, self._clock = on_refinement, clock

    def reset(self, reason: ResetReason) -> None:
        """Count an epoch after the first; ``ValueError`` for the reason of the first."""
        if reason is ResetReason.FIRST_FRAME:
            raise ValueError("the first epoch is no reset; give another reason")
        self.count(resets=1, **{f"resets_{reason.value}": 1})

    def failure(self, message: str) -> None:
        with self._lock:
            self._record = dataclasses.replace(self._record, last_failure=message)

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


def run_job(refine: Refine, job: Job, pause: Pause, counters: LiveCounters) -> str | None:
    """Run one job and count its end; its error's message, empty for none, or None if cancelled."""
    job, message = counters.begin(job), ""
    try:
        outcome = refine(job.key, pause)
    except Cancelled:
        counters.end(job, Outcome.STALE)
        return None
    except Exception as error:
        # Failures never stop masks: frames go on with the provisional features.
        outcome = Outcome.FAILED
        message = failed(f"on frame {job.key.index}", error, counters)
    counters.end(job, outcome, message)
    return message


def failed(where: str, error: BaseException, counters: LiveCounters) -> str:
    """Log that Sh has raised ``error`` and keep it as ``last_failure``; returns the message.

    It says what to do about it. The caller counts the job, if there is one.
    """
    message = f"Sh failed {where}: {type(error).__name__}: {error}"
    memory = isinstance(error, MemoryError | torch.OutOfMemoryError) or "memory" in str(error)
    if memory:
        message += "; set a smaller inference_height, or end what else uses the device's memory"
    elif not isinstance(error, NonFiniteError):
        message += "; where it fails again, report it with the traceback in the log"
    logger.warning("%s", message, exc_info=None if memory else error)
    counters.failure(message)
    return message
