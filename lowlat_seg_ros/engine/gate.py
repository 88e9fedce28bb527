"""Lets the slow track yield to the foreground without being starved by it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

#: A job that is younger may just have come at a bad moment.
STARVED_S = 1.0


class _Job:
    """The running job's time: on the clock, and of work on a core.

    ``began`` as ``time.perf_counter()``, ``core``: clock of its thread's work.
    """

    def __init__(self, began: float, core: int) -> None:
        self._began, self._core = began, core
        self._worked = time.clock_gettime(core)

    def starved(self, share: float) -> bool:
        past = time.perf_counter() - self._began
        return past > STARVED_S and time.clock_gettime(self._core) - self._worked < share * past


class Gate:
    """Closed while a frame is in the foreground; Sh waits at it between its blocks.

    However busy the foreground is, the waits of one job never take more than ``1 - min_share`` of
    its time: with 0 Sh runs in the gaps between frames only, with 1 it never waits.
    """

    def __init__(self, min_share: float) -> None:
        self.min_share = min_share
        self._changed = threading.Condition()
        self._foreground = False
        self._released = False
        self._began = self._waited = 0.0
        self._job: _Job | None = None

    @contextmanager
    def foreground(self) -> Iterator[None]:
        """Hold the gate closed while a frame is being segmented."""
        with self._changed:
            self._foreground = True
        try:
            yield
        finally:
            with self._changed:
                self._foreground = False
                self._changed.notify_all()

    def begin_job(self) -> None:
        """Start the account of a new job (slow track only)."""
        self._began, self._waited = time.perf_counter(), 0.0
        self._job = _Job(self._began, time.pthread_getcpuclockid(threading.get_ident()))

    def end_job(self) -> None:
        """Close the account (slow track only)."""
        self._job = None

    def starved(self) -> bool:
        """Whether the running job has had less than ``min_share`` of a core; from any thread.

        The waits at the gate are bounded, but a slow track that gives way gets no time either while
        the foreground uses all cores. Only a job of at least ``STARVED_S`` says so.
        """
        job = self._job
        return job is not None and job.starved(self.min_share)

    def wait(self) -> None:
        """Wait for the foreground to be idle, or until the job's share of waiting is used up."""
        with self._changed:
            while self._foreground and not self._released:
                start = time.perf_counter()
                left_s = self._patience_s(start)
                if left_s <= 0:
                    return
                self._changed.wait(min(left_s, threading.TIMEOUT_MAX))
                self._waited += time.perf_counter() - start

    def release(self) -> None:
        """Let everyone through from now on (shutdown)."""
        with self._changed:
            self._released = True
            self._changed.notify_all()

    def _patience_s(self, now: float) -> float:
        if self.min_share <= 0:
            return threading.TIMEOUT_MAX
        ran = now - self._began - self._waited
        return ran * (1 - self.min_share) / self.min_share - self._waited
