"""What a time was measured on: milliseconds mean nothing without it."""

from __future__ import annotations

import math
import os
import platform
import time
from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass(frozen=True)
class Machine:
    """``cores`` counts those this process may use; ``gpu`` is empty for a run on the CPU."""

    cpu: str
    cores: int
    gpu: str
    python: str
    torch: str

    def __str__(self) -> str:
        where = self.gpu or f"{self.cores} cores of {self.cpu}"
        return f"{where}, torch {self.torch}, Python {self.python}"


def describe(device: str = "cpu") -> Machine:
    """This machine, with its GPU if ``device`` (``cpu``, ``cuda``, ``auto``) uses one."""
    on_gpu = device != "cpu" and torch.cuda.is_available()
    return Machine(
        cpu=_cpu_model(Path("/proc/cpuinfo")),
        cores=len(os.sched_getaffinity(0)),
        gpu=torch.cuda.get_device_name() if on_gpu else "",
        python=platform.python_version(),
        torch=torch.__version__,
    )


def _cpu_model(info: Path) -> str:
    """The name that Linux gives the processor, else its architecture."""
    lines = info.read_text().splitlines() if info.is_file() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


class Neighbours:
    """Cores that other processes keep busy, on average since this was made.

    Of the cores that this process may use, on Linux; NaN elsewhere. Time that a hypervisor takes
    counts as well.
    """

    def __init__(self, stat: Path = Path("/proc/stat")) -> None:
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
