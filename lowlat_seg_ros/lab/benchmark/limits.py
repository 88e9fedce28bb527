"""What this machine can do at best: the lines of a roofline, measured."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from lowlat_seg_ros.engine.cpu_threads import single_threaded
from lowlat_seg_ros.lab.benchmark.timing import alternating, synchroniser

#: Bytes that are copied: much more than caches hold.
COPIED = {"cpu": 2**27, "cuda": 2**31}

#: Side of the matrices that are multiplied: enough to fill the device, few enough to be quick.
SIDE = {"cpu": 1024, "cuda": 8192}

#: Channels and side of the 3x3 convolution: on some CPUs convolutions reach twice what products do.
CONVOLVED = 256, 64


@dataclass(frozen=True)
class Limits:
    """Measured in float32 on one CPU thread, in bfloat16 on a GPU; the best of the repeats.

    ``memory_gb_per_s``: 1e9 bytes read or written per second when copying much more than caches
    hold. ``multiply_adds_g_per_s``: 1e9 multiply-adds per second in a matrix product or a 3x3
    convolution, whichever does more.
    """

    memory_gb_per_s: float
    multiply_adds_g_per_s: float

    def least_ms(self, bytes_moved: int, multiply_adds: int) -> float:
        """Milliseconds that such a work takes at least (roofline)."""
        memory = bytes_moved / self.memory_gb_per_s
        arithmetic = multiply_adds / self.multiply_adds_g_per_s
        return max(memory, arithmetic) / 1e6


def measure(device: torch.device, repeats: int) -> Limits:
    """The limits of ``device``; the fastest of ``repeats`` counts, as nothing beats a limit."""
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
    works = {
        "copy": lambda: target.copy_(source),
        "product": lambda: torch.mm(left, right, out=product),
        "convolution": lambda: convolution(features),
    }
    with single_threaded(), torch.inference_mode():
        taken = alternating(works, repeats, synchroniser(device))
    return Limits(
        memory_gb_per_s=2 * COPIED[device.type] / taken["copy"].min_ms / 1e6,
        multiply_adds_g_per_s=max(
            side**3 / taken["product"].min_ms,
            9 * (channels * size) ** 2 / taken["convolution"].min_ms,
        )
        / 1e6,
    )
