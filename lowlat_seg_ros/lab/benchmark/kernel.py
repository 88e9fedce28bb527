"""The spatially variant convolution against other operators on the same features.

All are timed by ``torch.utils.benchmark``, which warms up, waits for the GPU and sets the number of
CPU threads.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.benchmark import Timer

from lowlat_seg_ros.network.propagation import spatially_variant_convolution

#: Seconds after which it is the next operator's turn, so that drifts hit all of them.
TURN_S = 0.5

#: Calls in one CUDA graph, as launching a graph takes longer than an operator of microseconds.
CALLS = 20

#: Bytes that are copied: much more than caches hold.
COPIED = {"cpu": 2**27, "cuda": 2**31}

#: Side of the matrices that are multiplied: enough to fill the device, few enough to be quick.
SIDE = {"cpu": 1024, "cuda": 8192}

#: Channels and side of the 3x3 convolution: on some CPUs convolutions reach twice what products do.
CONVOLVED = 256, 64

# It ends with its parent, however that ends.
_SPIN = "import os\nparent = os.getppid()\nwhile os.getppid() == parent: pass"


def take_turns(
    works: Mapping[str, tuple[Callable[[], object], int]], seconds: float, calls: int = 1
) -> dict[str, list[float]]:
    """Milliseconds of a call of each work, timed for ``seconds`` or a little more.

    ``works``: functions that make ``calls`` calls, each with the CPU threads that it uses.
    """
    timers = {
        name: Timer("work()", globals={"work": work}, num_threads=threads)
        for name, (work, threads) in works.items()
    }
    taken: dict[str, list[float]] = {name: [] for name in works}
    turns = max(1, round(seconds / TURN_S))
    for _ in range(turns):
        for name, timer in timers.items():
            measured = timer.blocked_autorange(min_run_time=seconds / turns)
            taken[name] += [1e3 * taken_s / calls for taken_s in measured.times]
    return taken


@dataclass(frozen=True)
class Limits:
    """What this machine can do at best: the lines of a roofline, measured.

    In float32 on one CPU thread, in bfloat16 on a GPU.
    """

    memory_gb_per_s: float  # 1e9 bytes read or written, copying much more than caches hold
    multiply_adds_g_per_s: float  # 1e9 in a matrix product or 3x3 convolution, whichever does more

    def least_ms(self, bytes_moved: int, multiply_adds: int) -> float:
        """Milliseconds that such a work takes at least (roofline)."""
        memory = bytes_moved / self.memory_gb_per_s
        arithmetic = multiply_adds / self.multiply_adds_g_per_s
        return max(memory, arithmetic) / 1e6


@torch.inference_mode()
def measure_limits(device: torch.device, seconds: float) -> Limits:
    """The limits of ``device``, each from its shortest time: nothing is faster than a limit."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    source = torch.ones(COPIED[device.type] // 4, device=device)
    target = torch.empty_like(source)
    side = SIDE[device.type]
    left, right = torch.rand(2, side, side, device=device).to(dtype)
    product = torch.empty_like(left)
    channels, size = CONVOLVED
    convolution = nn.Conv2d(channels, channels, 3, padding=1).to(device, dtype)
    convolution.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    features = torch.rand(1, channels, size, size).to(
        device, dtype, memory_format=torch.channels_last
    )
    taken = take_turns(
        {
            "copy": (partial(target.copy_, source), 1),
            "product": (partial(torch.mm, left, right, out=product), 1),
            "convolution": (partial(convolution, features), 1),
        },
        seconds,
    )
    least_ms = {name: min(times) for name, times in taken.items()}
    return Limits(
        memory_gb_per_s=2 * COPIED[device.type] / least_ms["copy"] / 1e6,
        multiply_adds_g_per_s=max(
            side**3 / least_ms["product"], 9 * (channels * size) ** 2 / least_ms["convolution"]
        )
        / 1e6,
    )


@dataclass(frozen=True)
class Shape:
    """Features (1, channels, height, width) and a kernel x kernel weight for each location."""

    channels: int
    height: int
    width: int
    kernel: int
    dtype: str = "float32"  # of both, by its name in torch

    @property
    def multiply_adds(self) -> int:
        """One for each tap, channel and location."""
        return self.kernel**2 * self.channels * self.height * self.width

    @property
    def bytes_moved(self) -> int:
        """Features in and out and weights, each touched once."""
        size: int = getattr(torch, self.dtype).itemsize
        return size * self.height * self.width * (2 * self.channels + self.kernel**2)

    def __str__(self) -> str:
        size = f"{self.height}x{self.width}"
        return f"C={self.channels}, {size}, {self.kernel}x{self.kernel} kernels, {self.dtype}"


#: The paper's channels on a frame of 360x480.
PAPER = Shape(256, 45, 60, 9)

#: On a GPU: the paper's channels on a frame of 1024x2048.
PAPER_GPU = Shape(256, 128, 256, 9, "bfloat16")


@dataclass(frozen=True)
class Times:
    """Medians in ms, and how many times as fast as the other operators ours is."""

    ms: float
    unfold_ms: float
    conv3x3_ms: float
    vs_unfold: float
    vs_conv3x3: float

    @classmethod
    def of(cls, taken: Mapping[str, list[float]]) -> Times:
        """From the times of the three operators."""
        ms, unfold, conv = (float(np.median(taken[n])) for n in ("ours", "unfold", "conv3x3"))
        return cls(ms, unfold, conv, unfold / ms, conv / ms)


@dataclass(frozen=True)
class Kernel:
    shape: Shape
    alone: Times
    beside_busy_core: Times  # beside another process that keeps a core busy
    roofline_ms: float  # what it takes at least, by the machine's measured limits
    roofline_fraction: float  # share of what the machine allows that is reached
    largest_difference: float  # between its answer and unfold's


@torch.inference_mode()
def measure_kernel(
    shape: Shape, device: torch.device, limits: Limits, threads: int, seconds: float
) -> Kernel:
    """Time ``shape`` on ``device`` for ``seconds`` each; the others use ``threads`` CPU threads.

    Propagation uses one, as in the fast track.
    """
    channels, taps, size = shape.channels, shape.kernel**2, (shape.height, shape.width)
    generator = torch.Generator().manual_seed(0)
    layout = torch.channels_last  # that of the network's features
    features = torch.randn(1, channels, *size, generator=generator)
    dtype: torch.dtype = getattr(torch, shape.dtype)
    features = features.to(device, dtype, memory_format=layout)
    weights = torch.randn(1, taps, *size, generator=generator).softmax(dim=1)
    weights = weights.to(device, dtype, memory_format=layout)
    convolution = nn.Conv2d(channels, channels, 3, padding=1, device=device, dtype=dtype)
    convolution.weight.data = convolution.weight.data.contiguous(memory_format=layout)

    ours = partial(spatially_variant_convolution, features, weights)
    unfold = partial(propagate_by_unfold, features, weights)
    works: dict[str, tuple[Callable[[], object], int]] = {
        "ours": (ours, 1),
        "unfold": (unfold, threads),
        "conv3x3": (partial(convolution, features), threads),
    }
    calls = 1
    if device.type == "cuda":
        calls = CALLS
        works = {name: (as_graph(work, device), count) for name, (work, count) in works.items()}
    alone = Times.of(take_turns(works, seconds, calls))
    with busy_core():
        beside = Times.of(take_turns(works, seconds, calls))
    least_ms = limits.least_ms(shape.bytes_moved, shape.multiply_adds)
    return Kernel(
        shape=shape,
        alone=alone,
        beside_busy_core=beside,
        roofline_ms=least_ms,
        roofline_fraction=least_ms / alone.ms,
        largest_difference=float((ours() - unfold()).abs().max().float()),
    )


def propagate_by_unfold(features: Tensor, weights: Tensor) -> Tensor:
    """Eq. (1) with ``F.unfold`` and a weighted sum, the textbook's way."""
    batch, channels, height, width = features.shape
    taps = weights.shape[1]
    kernel = round(taps**0.5)
    padded = F.pad(features, (kernel // 2,) * 4, mode="replicate")
    columns = F.unfold(padded, kernel).view(batch, channels, taps, height, width)
    # Eq. (1) has -u and -v: its first weight is that of the last location.
    return (columns * weights.flip(1).unsqueeze(1)).sum(dim=2)


def as_graph(work: Callable[[], object], device: torch.device) -> Callable[[], object]:
    """:data:`CALLS` calls of ``work`` in one CUDA graph; else the time to launch it would count.

    What ``work`` reads is then in the caches, as far as it fits there.
    """
    stream = torch.cuda.Stream(device)
    with torch.cuda.stream(stream):
        for _ in range(2):  # memory and libraries are there afterwards
            work()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        for _ in range(CALLS):
            work()
    return graph.replay


@contextmanager
def busy_core() -> Iterator[subprocess.Popen[bytes]]:
    """Inside, another process, which is returned, keeps one core busy."""
    process = subprocess.Popen([sys.executable, "-c", _SPIN])
    try:
        yield process
    finally:
        process.kill()
        process.wait()
