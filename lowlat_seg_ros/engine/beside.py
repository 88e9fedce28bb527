"""Work of a frame that needs nothing of Sl, done on another core while Sl runs."""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

import torch

from lowlat_seg_ros.engine.cpu_threads import lower_priority, raise_priority

Result = TypeVar("Result")


class Job(Generic[Result]):
    """Work that whoever comes first does: the thread beside the frame, or the frame itself.

    So a frame waits for another thread only while that one is at work, never for it to get a core.
    """

    def __init__(self, work: Callable[[], Result]) -> None:
        self._work = work
        self._claim, self._done = threading.Lock(), threading.Event()
        self._results: list[Result] = []
        self._error: BaseException | None = None

    def run(self) -> None:
        """Do the work, unless somebody has begun it."""
        if not self._claim.acquire(blocking=False):
            return
        try:
            self._results.append(self._work())
        except BaseException as error:
            self._error = error
        finally:
            self._done.set()

    def result(self) -> Result:
        """What the work returned, or raise what it raised."""
        self.run()
        self._done.wait()
        if self._error is not None:
            raise self._error
        return self._results[0]


class Beside:
    """One thread, started when it is first needed, that runs jobs of the frames of an engine."""

    def __init__(self) -> None:
        self._jobs: SimpleQueue[tuple[Job[Any], bool] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None

    def start(self, work: Callable[[], Result], *, urgent: bool) -> Job[Result]:
        """Begin ``work`` on another core; ``urgent``: with the priority of a frame that has one."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._serve, name="beside", daemon=True)
            self._thread.start()
        job = Job(work)
        self._jobs.put((job, urgent))
        return job

    def close(self) -> None:
        """End the thread after the job at hand."""
        if self._thread is not None:
            self._jobs.put(None)
            self._thread.join()
            self._thread = None

    def _serve(self) -> None:
        torch.set_num_threads(1)
        with torch.inference_mode():
            while (order := self._jobs.get()) is not None:
                job, urgent = order
                raised = urgent and raise_priority()
                job.run()
                if raised:
                    lower_priority()
