"""The node with a Sh that fails on demand: ``python scripts/faulty_node.py FILE --ros-args ...``.

FILE names the fault, and may change at any time; an empty one heals. The node itself is as it is:
what fails is put around its Sh from outside, for tests (test/ros) and ``make soak``.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lowlat_seg_ros.engine.runner import Runner

#: A hanging Sh goes on after so long, or as soon as it is healed.
HANG_S = 30.0

FAULTS = ("raise", "hang", "nan", "memory", "end_thread")


def install(file: Path) -> None:
    """From now on each run of Sh in this process does what ``file`` says."""
    higher = Runner.higher

    def faulty(runner: Runner, source: Tensor, *pause: Callable[[], None]) -> Tensor:
        high, fault = higher(runner, source, *pause), file.read_text().strip()
        if fault == "raise":
            raise RuntimeError("injected: the accelerator is gone")
        if fault == "hang":
            end = time.monotonic() + HANG_S
            while time.monotonic() < end and file.read_text().strip() == "hang":
                time.sleep(0.05)
        if fault == "nan":
            return high * float("nan")
        if fault == "memory":
            torch.empty(2**55)  # which no machine has
        if fault == "end_thread" and threading.current_thread().name == "slow-track":
            raise SystemExit("injected: the thread ends")
        return high

    patched: Any = Runner
    patched.higher = faulty


if __name__ == "__main__":
    # Its imports take seconds, so it follows lowlat_seg_ros/ros/__main__.py in all else.
    install(Path(sys.argv.pop(1)))
    from lowlat_seg_ros.ros.node import main

    sys.exit(main())
