"""What a time was measured on: milliseconds mean nothing without it."""

from __future__ import annotations

import os
import platform
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
