"""How many CPU threads each frame gets, so that its threads never wait for a displaced one.

PyTorch shares a frame's layers out to a team of threads that meet after each of some hundred
steps. On two free cores that nearly halves the time. But where another process keeps one of them
busy, every step waits for the thread that lost its core: frames then take many times as long as on
one thread. So the team is as large as the cores that were free lately, and a frame that finds
itself waiting nevertheless goes on with one thread.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from lowlat_seg_ros.config import EngineConfig
from lowlat_seg_ros.engine.device import (
    cores,
    foreground_threads,
    gives_way,
    lower_priority,
    raise_priority,
    slow_threads,
)
from lowlat_seg_ros.engine.neighbours import STAT, Neighbours

#: A frame that has waited so long, for others of its team or for a core, goes on alone.
WAITED_S = 0.01

#: A frame that takes longer is not to keep everything else from all cores.
URGENT_S = 0.1

#: Shortest time over which other processes are looked at. Linux counts in steps of 10 ms, and may
#: be some of them off on each core: over 0.1 s that alone looked like half a core of other work.
LOOK_S = 0.5

#: Cores that they may use without taking one: a driver's few milliseconds for each frame.
TOLERANCE = 0.25

#: How long they must have used less before a core is taken back.
CALM_S = 1.0


class ForegroundThreads:
    """CPU threads for the frames of one engine; used by the thread that the frame is in.

    What the user has set stays. ``stat``: Linux' account of the cores.
    """

    def __init__(self, config: EngineConfig, stat: Path = STAT) -> None:
        self._most = foreground_threads(config)
        self._is_set = config.foreground_threads > 0
        self._urgent = config.foreground_priority == "realtime"
        self._slow = slow_threads(config)
        self._beside = self._is_set or not gives_way(config)
        self._adapts = not self._is_set and self._most > 1
        self._stat = stat
        self._comes_first = self._raised = False
        self._team = 0  # threads that the frame had until its mask was out
        self._taken, self._calm_since, self._used = 0, 0.0, 0.0
        self._count = self._most
        self._look()
        self._begin()

    def ignore_others(self) -> None:
        """Let threads depend on no other process from now on: equal work on every run."""
        self._adapts = False

    @contextmanager
    def priority(self) -> Iterator[None]:
        """Entered by the frame's thread while it works: it and its team come before other programs.

        As far as the system allows it, and for :data:`URGENT_S` of a frame.
        """
        self._begin()
        self._comes_first = self._raised = self._urgent and raise_priority()
        try:
            yield
        finally:
            self._lower()
            if self._team:
                torch.set_num_threads(self._team)
                self._team = 0

    def count(self, *, starved: bool) -> int:
        """Threads of the frame that begins now; a ``starved`` slow track is left its cores."""
        if self._is_set:
            return self._count
        if self._adapts and time.perf_counter() - self._looked >= LOOK_S:
            self._take(self._neighbours.cores())
            self._look()
        owed = self._slow if starved and not self._beside else 0
        self._count = max(1, self._most - self._taken - owed)
        self._begin()
        return self._count

    def relieve(self) -> None:
        """Between two layers: if the frame waits for displaced threads, go on without them.

        Until its end: the next frame asks :meth:`count` again. A frame that takes long also leaves
        other programs their share from here on.
        """
        past = time.perf_counter() - self._began
        if past > URGENT_S:
            self._lower()
        if self._adapts and torch.get_num_threads() > 1:
            waited = past - (time.thread_time() - self._worked)
            if waited > WAITED_S:
                torch.set_num_threads(1)

    def mask_out(self) -> None:
        """What is left of the frame is not urgent, and leaves who delivers the mask a core."""
        self._lower()
        if not self._is_set:
            self._team = torch.get_num_threads()
            torch.set_num_threads(1)

    def full(self) -> int:
        """Threads of Sh in the foreground: its own too, as the slow track has nothing to do."""
        return min(cores(), self._count + self._slow) if self._beside else self._count

    def _lower(self) -> None:
        if self._raised:
            lower_priority()
            self._raised = False

    def _begin(self) -> None:
        self._began, self._worked = time.perf_counter(), time.thread_time()

    def _look(self) -> None:
        self._looked, self._neighbours = time.perf_counter(), Neighbours(self._stat)

    def _take(self, used: float) -> None:
        """Other processes ``used`` so many cores since the last look, NaN if nobody knows."""
        # A burst takes no core from a frame that comes first; what lasts is left its own.
        lasting = min(used, self._used) if self._comes_first else used
        self._used = used
        taken = 0 if math.isnan(lasting) else max(0, math.ceil(lasting - TOLERANCE))
        now = time.perf_counter()
        if taken >= self._taken:
            self._taken, self._calm_since = taken, now
        elif now - self._calm_since >= CALM_S:
            self._taken = taken
