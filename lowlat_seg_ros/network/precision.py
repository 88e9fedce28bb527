"""The number format that convolutions run in, by name."""

from __future__ import annotations

from pathlib import Path

import torch


def precision_of(name: str, device: torch.device) -> torch.dtype:
    """One of :data:`~lowlat_seg_ros.config.PRECISIONS` -> dtype.

    bf16 by request, or for ``auto`` where the hardware multiplies it fast.
    """
    fast = _gpu_has_bf16(device) if device.type == "cuda" else _cpu_has_bf16()
    return torch.bfloat16 if name == "bf16" or (name == "auto" and fast) else torch.float32


def _gpu_has_bf16(device: torch.device) -> bool:
    # torch.cuda.is_bf16_supported also says yes where it is emulated.
    return torch.cuda.get_device_capability(device) >= (8, 0)


def _cpu_has_bf16() -> bool:
    flags = _cpu_flags()
    return "avx512_bf16" in flags or "amx_bf16" in flags


def _cpu_flags() -> str:
    path = Path("/proc/cpuinfo")
    return path.read_text() if path.exists() else ""
