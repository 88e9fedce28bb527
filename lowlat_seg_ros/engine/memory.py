"""Giving memory back to the system once a network is no longer needed."""

from __future__ import annotations

import ctypes
import gc
import sys

import torch


def release_unused() -> None:
    """Give back what nothing refers to any more.

    The allocators of PyTorch and glibc keep freed memory for later; a process that stays without a
    network, as a node that was cleaned up, has no use for it.
    """
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc has it, musl does not
        if trim is not None:
            trim(0)
