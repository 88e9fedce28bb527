"""CPU threads that the network runs on."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch

from lowlat_seg_ros.config import EngineConfig


def cores() -> int:
    """CPU cores that this process may run on."""
    return len(os.sched_getaffinity(0))


def foreground_threads(config: EngineConfig) -> int:
    """CPU threads of the fast track: as set, or the cores that the slow track leaves.

    More threads than free cores are worse than one: the team waits for the displaced thread.
    """
    slow = config.slow_track_threads or cores()
    return config.foreground_threads or max(1, cores() - slow)


def use_threads(count: int) -> None:
    """Let the calling thread's CPU work use ``count`` threads, 0 for :func:`cores`.

    PyTorch keeps this per calling thread; other threads that have begun are not affected, but the
    newest call is the default of threads to come. So each track calls this in its own thread.
    """
    # A thread's first parallel work takes over the newest default, whatever was set before: asking
    # counts as such.
    torch.get_num_threads()
    torch.set_num_threads(count or cores())


def both_tracks_threads(config: EngineConfig) -> int:
    """CPU threads of a frame that runs Sh itself, when the slow track has nothing to do."""
    return min(cores(), foreground_threads(config) + (config.slow_track_threads or cores()))


def serial() -> AbstractContextManager[None]:
    """One CPU thread inside, what the calling thread had before afterwards.

    For work made of many tiny parallel regions: each of them would wait for a thread that another
    process may have displaced (propagation: 4 ms alone, over 600 ms so on a busy machine).
    """
    return threads(1)


@contextmanager
def threads(count: int) -> Iterator[None]:
    """``count`` CPU threads inside, what the calling thread had before afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
