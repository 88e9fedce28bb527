"""How many CPU threads each frame gets, so that its threads never wait for a displaced one.

PyTorch shares a frame's layers out to a team of threads that meet after each of some hundred
steps. On two free cores that nearly halves the time. But where another process keeps one of them
busy, every step waits for the thread that lost its core: frames then take several times as long as
on one thread. So the team is as large as the cores that are free now.
"""

from __future__ import annotations

import math
import time
from pathlib import Path

from lowlat_seg_ros.config import EngineConfig
from lowlat_seg_ros.engine.device import cores, foreground_threads, gives_way, slow_threads
from lowlat_seg_ros.engine.neighbours import STAT, Neighbours

#: Shortest time over which other processes are looked at: Linux counts in steps of 10 ms.
LOOK_S = 0.1

#: Cores that they may use without taking one: a driver's few milliseconds for each frame.
TOLERANCE = 0.25

#: How long they must have used less before a core is taken back.
CALM_S = 1.0


class ForegroundThreads:
    """CPU threads for the frames of one engine; used by one thread.

    What the user has set stays. ``stat``: Linux' account of the cores, None to take all of them as
    free, so that threads do not depend on other processes.
    """

    def __init__(self, config: EngineConfig, stat: Path | None = STAT) -> None:
        self._most = foreground_threads(config)
        self._is_set = config.foreground_threads > 0
        self._slow = slow_threads(config)
        self._beside = self._is_set or not gives_way(config)
        self._stat = None if self._is_set or self._most == 1 else stat
        self._taken, self._calm_since = 0, 0.0
        self._count = self._most
        self._look()

    def count(self, *, starved: bool) -> int:
        """Threads of the next frame; a slow track that is ``starved`` is left its cores."""
        if self._is_set:
            return self._count
        if self._stat is not None and time.perf_counter() - self._looked >= LOOK_S:
            self._take(self._neighbours.cores())
            self._look()
        owed = self._slow if starved and not self._beside else 0
        self._count = max(1, self._most - self._taken - owed)
        return self._count

    def full(self) -> int:
        """Threads of Sh in the foreground: its own too, as the slow track has nothing to do."""
        return min(cores(), self._count + self._slow) if self._beside else self._count

    def _look(self) -> None:
        self._looked = time.perf_counter()
        if self._stat is not None:
            self._neighbours = Neighbours(self._stat)

    def _take(self, used: float) -> None:
        """Other processes ``used`` so many cores since the last look, NaN if nobody knows."""
        taken = 0 if math.isnan(used) else max(0, math.ceil(used - TOLERANCE))
        now = time.perf_counter()
        if taken >= self._taken:
            self._taken, self._calm_since = taken, now
        elif now - self._calm_since >= CALM_S:
            self._taken = taken
