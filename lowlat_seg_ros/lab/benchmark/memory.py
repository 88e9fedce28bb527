"""Memory that a run takes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from lowlat_seg_ros.network.layers import PackedConv2d

#: Linux keeps a process's account here.
STATUS = Path("/proc/self/status")


@dataclass(frozen=True)
class Memory:
    """Megabytes (1e6 bytes); NaN where the system does not tell.

    ``weights_mb``, ``ddrnet_weights_mb``: parameters and buffers of the two networks.
    ``before_mb``: the process with its libraries and images, before any network. ``peak_mb``: the
    most until all sides had run. ``gpu_peak_mb``: the same on the GPU, 0 without one.
    ``camera_mb``: what each further camera takes, NaN if that was not measured either.
    """

    weights_mb: float
    ddrnet_weights_mb: float
    before_mb: float
    peak_mb: float
    gpu_peak_mb: float
    camera_mb: float


def weights_mb(network: nn.Module) -> float:
    """Of parameters and buffers, and of convolutions that were packed."""
    tensors = network.state_dict().values()
    packed = [m.weight_bytes for m in network.modules() if isinstance(m, PackedConv2d)]
    return (sum(tensor.numel() * tensor.element_size() for tensor in tensors) + sum(packed)) / 1e6


def memory_mb(device: torch.device) -> float:
    """What this process holds now: on the GPU if that is ``device``, else in main memory."""
    if device.type == "cuda":
        torch.cuda.empty_cache()  # what is left includes the memory that CUDA graphs keep
        return torch.cuda.memory_reserved(device) / 1e6
    return resident_mb()


def gpu_peak_mb(device: torch.device) -> float:
    """The most that was held on the GPU so far."""
    return torch.cuda.max_memory_reserved(device) / 1e6 if device.type == "cuda" else 0.0


def resident_mb() -> float:
    """Main memory that this process holds now."""
    return _status("VmRSS")


def peak_mb() -> float:
    """The most main memory that this process ever held."""
    return _status("VmHWM")


def _status(name: str) -> float:
    lines = STATUS.read_text().splitlines() if STATUS.is_file() else []
    found = (line.split() for line in lines if line.startswith(f"{name}:"))
    return next((int(words[1]) * 1024 / 1e6 for words in found), float("nan"))
