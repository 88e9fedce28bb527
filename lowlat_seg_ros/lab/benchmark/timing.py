"""Times of calls and frames: percentiles, works in turns, and a core that somebody else uses."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch

#: Calls of each work that are not counted: memory and threads are not there yet.
WARM_UP = 2

#: Calls of a work of microseconds that are timed together on a GPU.
CALLS = 20

# It ends with its parent, however that ends.
_SPIN = "import os\nparent = os.getppid()\nwhile os.getppid() == parent: pass"


@dataclass(frozen=True)
class Latency:
    """Milliseconds of ``count`` frames or calls, at least one."""

    count: int
    min_ms: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    max_ms: float

    @classmethod
    def of(cls, milliseconds: Sequence[float]) -> Latency:
        """The percentiles of ``milliseconds``."""
        points = np.percentile(milliseconds, (0, 50, 95, 99, 100))
        return cls(len(milliseconds), *(float(point) for point in points))


def synchroniser(device: torch.device) -> Callable[[], None]:
    """What waits until ``device`` has done all that it was given; nothing to do on a CPU."""
    if device.type == "cpu":
        return lambda: None
    return lambda: torch.cuda.synchronize(device)


def many(work: Callable[[], object], device: torch.device) -> Callable[[], object]:
    """:data:`CALLS` calls of ``work`` in one CUDA graph, else launching them would be timed.

    What ``work`` reads is then in the caches, as far as it fits there.
    """
    stream = torch.cuda.Stream(device)
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP):
            work()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        for _ in range(CALLS):
            work()
    return graph.replay


def alternating(
    works: Mapping[str, Callable[[], object]],
    repeats: int,
    wait: Callable[[], None],
    calls: int = 1,
) -> dict[str, Latency]:
    """Time each of ``works`` ``repeats`` times, in turns, so that drifts hit all of them.

    ``wait`` is called before each reading of the clock, see :func:`synchroniser`. Each work makes
    ``calls`` calls, of which one's share of the time is told.
    """
    taken: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(WARM_UP + repeats):
        for name, work in works.items():
            wait()
            begin = time.perf_counter()
            work()
            wait()
            if turn >= WARM_UP:
                taken[name].append((time.perf_counter() - begin) * 1e3 / calls)
    return {name: Latency.of(values) for name, values in taken.items()}


@contextmanager
def busy_core() -> Iterator[subprocess.Popen[bytes]]:
    """Inside, another process, which is returned, keeps one core busy."""
    process = subprocess.Popen([sys.executable, "-c", _SPIN])
    try:
        yield process
    finally:
        process.kill()
        process.wait()
