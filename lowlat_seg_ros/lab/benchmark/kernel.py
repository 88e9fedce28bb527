"""The spatially variant convolution against what else one could do with the same features."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lowlat_seg_ros.engine.cpu_threads import single_threaded
from lowlat_seg_ros.lab.benchmark.limits import Limits
from lowlat_seg_ros.lab.benchmark.timing import (
    CALLS,
    Latency,
    alternating,
    busy_core,
    many,
    synchroniser,
)
from lowlat_seg_ros.network.propagation import spatially_variant_convolution


@dataclass(frozen=True)
class Shape:
    """Features (1, channels, height, width) and a kernel x kernel weight for each location.

    ``dtype``: of both, by its name in torch.
    """

    channels: int
    height: int
    width: int
    kernel: int
    dtype: str = "float32"

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
    """Medians in ms; ``vs_unfold``, ``vs_conv3x3``: how many times as fast as the other."""

    ms: float
    unfold_ms: float
    conv3x3_ms: float
    vs_unfold: float
    vs_conv3x3: float

    @classmethod
    def of(cls, taken: dict[str, Latency]) -> Times:
        """From the times of the three works."""
        ms, unfold, conv = (taken[name].p50_ms for name in ("ours", "unfold", "conv3x3"))
        return cls(ms, unfold, conv, unfold / ms, conv / ms)


@dataclass(frozen=True)
class Kernel:
    """Propagation of one ``shape``, on a machine that is idle but for what others do.

    ``roofline_ms``: what it takes at least, by the machine's measured limits;
    ``roofline_fraction``: share of what the machine allows that is reached.
    ``largest_difference``: between its answer and unfold's.
    """

    shape: Shape
    alone: Times
    beside_busy_core: Times
    roofline_ms: float
    roofline_fraction: float
    largest_difference: float


def propagate(features: Tensor, weights: Tensor) -> Tensor:
    """Eq. (1) as the fast track runs it: on one CPU thread."""
    with single_threaded():
        return spatially_variant_convolution(features, weights)


def propagate_by_unfold(features: Tensor, weights: Tensor) -> Tensor:
    """The same with ``F.unfold`` and a weighted sum, the textbook's way."""
    batch, channels, height, width = features.shape
    taps = weights.shape[1]
    kernel = round(taps**0.5)
    padded = F.pad(features, (kernel // 2,) * 4, mode="replicate")
    columns = F.unfold(padded, kernel).view(batch, channels, taps, height, width)
    # Eq. (1) has -u and -v: its first weight is that of the last location.
    return (columns * weights.flip(1).unsqueeze(1)).sum(dim=2)


@torch.inference_mode()
def measure(shape: Shape, device: torch.device, limits: Limits, repeats: int) -> Kernel:
    """Time ``shape`` on ``device``; rivals use the CPU threads that the calling thread has."""
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
    works = {
        "ours": lambda: propagate(features, weights),
        "unfold": lambda: propagate_by_unfold(features, weights),
        "conv3x3": lambda: convolution(features),
    }
    turns, calls, wait = works, 1, synchroniser(device)
    if device.type == "cuda":
        turns, calls = {name: many(work, device) for name, work in works.items()}, CALLS
    alone = Times.of(alternating(turns, repeats, wait, calls))
    with busy_core():
        beside = Times.of(alternating(turns, repeats, wait, calls))
    least_ms = limits.least_ms(shape.bytes_moved, shape.multiply_adds)
    return Kernel(
        shape=shape,
        alone=alone,
        beside_busy_core=beside,
        roofline_ms=least_ms,
        roofline_fraction=least_ms / alone.ms,
        largest_difference=float((works["ours"]() - works["unfold"]()).abs().max().float()),
    )
