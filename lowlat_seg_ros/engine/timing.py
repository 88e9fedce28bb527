"""Stage times of one frame, and percentiles over the last ones."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from lowlat_seg_ros.frames import StageTiming

#: A monotonic clock in nanoseconds.
Clock = Callable[[], int]


def _ms_between(start_ns: int, end_ns: int) -> float:
    return (end_ns - start_ns) / 1e6


class Stopwatch:
    """Collects one frame's stage times; starts when it is made.

    ``mark`` and ``ms_between`` measure stages in another way than by ``clock``, as a GPU does.
    """

    def __init__(
        self,
        clock: Clock = time.perf_counter_ns,
        mark: Callable[[], Any] | None = None,
        ms_between: Callable[[Any, Any], float] = _ms_between,
    ) -> None:
        self._clock, self._mark, self._ms_between = clock, mark or clock, ms_between
        self._start = clock()
        self._latency_ms = 0.0
        self._stages: list[tuple[str, Any, Any]] = []

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time spent inside to the StageTiming field ``name``."""
        start = self._mark()
        try:
            yield
        finally:
            self._stages.append((name, start, self._mark()))

    def mask_out(self) -> None:
        self._latency_ms = _ms_between(self._start, self._clock())

    def timing(self) -> StageTiming:
        spent_ms = dict.fromkeys((name for name, _, _ in self._stages), 0.0)
        for name, start, end in self._stages:
            spent_ms[name] += self._ms_between(start, end)
        return StageTiming(latency_ms=self._latency_ms, **spent_ms)


@dataclass(frozen=True)
class Percentiles:
    """Of the newest ``count`` values of a tracker, in their unit; zeros while there is none."""

    count: int = 0
    p50: float = 0.0
    p95: float = 0.0
    p99: float = 0.0
    max: float = 0.0


class PercentileTracker:
    """Holds the newest ``window`` values; one thread writes, a reader sees a consistent copy."""

    def __init__(self, window: int = 1000) -> None:
        self._values: deque[float] = deque(maxlen=window)

    def add(self, value: float) -> None:
        self._values.append(value)

    def percentiles(self) -> Percentiles:
        values = self._values.copy()  # atomic under the GIL, unlike iterating
        if not values:
            return Percentiles()
        p50, p95, p99, top = (float(v) for v in np.percentile(values, (50, 95, 99, 100)))
        return Percentiles(len(values), p50, p95, p99, top)
