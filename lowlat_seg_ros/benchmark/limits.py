"""What this machine can do at best: the lines of a roofline, measured."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from lowlat_seg_ros.benchmark.timing import alternating, synchroniser
from lowlat_seg_ros.engine.device import serial

#: Bytes that are copied: much more than caches hold.
COPIED = {"cpu": 2**27, "cuda": 2**31}

#: Side of the matrices that are multiplied: enough to fill the device, few enough to be quick.
SIDE = {"cpu": 1024, "cuda": 8192}


@dataclass(frozen=True)
class Limits:
    """Measured in float32 on one CPU thread, in bfloat16 on a GPU; the best of the repeats.

    ``memory_gb_per_s``: 1e9 bytes read or written per second when copying much more than caches
    hold. ``multiply_adds_g_per_s``: 1e9 multiply-adds per second in a matrix product.
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
    works = {
        "copy": lambda: target.copy_(source),
        "product": lambda: torch.mm(left, right, out=product),
    }
    with serial(), torch.inference_mode():
        taken = alternating(works, repeats, synchroniser(device))
    return Limits(
        memory_gb_per_s=2 * COPIED[device.type] / taken["copy"].min_ms / 1e6,
        multiply_adds_g_per_s=side**3 / taken["product"].min_ms / 1e6,
    )
