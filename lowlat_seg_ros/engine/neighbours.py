"""What other processes do on the cores that this one may use."""

from __future__ import annotations

import math
import os
import time
from pathlib import Path

#: Where Linux accounts for the time of each core.
STAT = Path("/proc/stat")


class Neighbours:
    """Cores that other processes keep busy, on average since this was made.

    Of the cores that this process may use, on Linux; NaN elsewhere. Time that a hypervisor takes
    counts as well.
    """

    def __init__(self, stat: Path = STAT) -> None:
        self._stat = stat
        self._begin = self._now()

    def cores(self) -> float:
        """0 on a quiet machine."""
        wall, busy, own = (now - then for now, then in zip(self._now(), self._begin, strict=True))
        if math.isnan(busy) or wall <= 0:
            return float("nan")
        return max(0.0, busy - own) / wall

    def _now(self) -> tuple[float, float, float]:
        """Seconds: on the clock, of work on the cores, of work of this process."""
        return time.perf_counter(), busy_s(self._stat), time.process_time()


def busy_s(stat: Path) -> float:
    """Seconds that the cores of this process have worked since the machine was started.

    ``stat``: Linux' ``/proc/stat``; NaN where there is none.
    """
    if not stat.is_file():
        return float("nan")
    mine = {f"cpu{core}" for core in os.sched_getaffinity(0)}
    ticks = 0
    for line in stat.read_text().splitlines():
        name, *fields = line.split()
        if name in mine:
            # user, nice, system, [idle, iowait,] irq, softirq, steal
            ticks += sum(map(int, fields[:3] + fields[5:8]))
    return ticks / os.sysconf("SC_CLK_TCK")
