"""Stage times of one frame, and percentiles over the last ones."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from lowlat_seg_ros.frames import StageTiming

#: A monotonic clock in nanoseconds.
Clock = Callable[[], int]


class Stopwatch:
    """Collects one frame's stage times; starts when made."""

    def __init__(self, clock: Clock = time.perf_counter_ns) -> None:
        self._clock = clock
        self._start = clock()
        self._stages: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time spent inside to the StageTiming field ``name``."""
        start = self._clock()
        try:
            yield
        finally:
            spent_ms = (self._clock() - start) / 1e6
            self._stages[name] = self._stages.get(name, 0.0) + spent_ms

    def mask_out(self) -> None:
        """The mask is out: what has passed is the frame's latency."""
        self._stages["latency_ms"] = (self._clock() - self._start) / 1e6

    def timing(self) -> StageTiming:
        """What was measured so far."""
        return StageTiming(**self._stages)


@dataclass(frozen=True)
class Percentiles:
    """Of the newest ``count`` values of a tracker, in their unit; zeros while there is none."""

    count: int = 0
    p50: float = 0.0
    p95: float = 0.0
    p99: float = 0.0
    max: float = 0.0


class PercentileTracker:
    """Keeps the newest ``window`` values (one thread writes; a reader sees a consistent copy)."""

    def __init__(self, window: int = 1000) -> None:
        self._values: deque[float] = deque(maxlen=window)

    def add(self, value: float) -> None:
        """Take in one value."""
        self._values.append(value)

    def percentiles(self) -> Percentiles:
        """Summary of the values kept."""
        values = self._values.copy()  # atomic under the GIL, unlike iterating
        if not values:
            return Percentiles()
        p50, p95, p99, top = (float(v) for v in np.percentile(values, (50, 95, 99, 100)))
        return Percentiles(len(values), p50, p95, p99, top)
