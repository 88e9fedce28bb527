"""A second thread for parts of a frame, where a core is free for it."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, TypeVar

import torch

from lowlat_seg_ros.engine.cpu_threads import lower_priority, raise_priority
from lowlat_seg_ros.engine.own_core import BACKGROUND

Result = TypeVar("Result")


class Helper(Protocol):
    """Begins work on another core; call the answer for its result."""

    def __call__(self, work: Callable[[], Result], /) -> Callable[[], Result]: ...


class Beside:
    """One thread for what a frame needs beside what its own thread does, such as optical flow."""

    def __init__(self) -> None:
        self._pool, self._began = ThreadPoolExecutor(1, "beside", self._begin), False

    def start(self, work: Callable[[], Result], *, urgent: bool) -> Callable[[], Result]:
        """Begin ``work``, ``urgent`` with the priority of a frame; call the answer for its result.

        Whoever comes first does it: a frame waits for the thread only while that is at work, never
        for it to get a core. Raises ``RuntimeError`` after :meth:`close`.
        """

        @torch.inference_mode()
        def run() -> Result:
            raised = urgent and raise_priority()
            try:
                return work()
            finally:
                if raised:
                    lower_priority()

        self._began = True
        future = self._pool.submit(run)
        return lambda: work() if future.cancel() else future.result()

    def close(self) -> None:
        began, self._began = self._began, False
        if began:
            self._pool.submit(BACKGROUND.remove)
        self._pool.shutdown()

    @staticmethod
    def _begin() -> None:
        torch.set_num_threads(1)
        BACKGROUND.add()
