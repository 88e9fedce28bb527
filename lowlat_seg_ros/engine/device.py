"""CPU threads that the network runs on."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import cache
from typing import TypeVar

import torch

from lowlat_seg_ros.config import EngineConfig

Result = TypeVar("Result")

#: Priority among real-time threads, 1 to 99: all others come first, as control loops should.
URGENCY = 1


def cores() -> int:
    """CPU cores that this process may run on."""
    return len(os.sched_getaffinity(0))


def foreground_threads(config: EngineConfig) -> int:
    """CPU threads of the fast track at most: as set, or the cores that the slow track leaves.

    More threads than free cores are worse than one: the team waits for the displaced thread. One
    that gives way displaces none.
    """
    leaves = cores() if gives_way(config) else max(1, cores() - slow_threads(config))
    return config.foreground_threads or leaves


def slow_threads(config: EngineConfig) -> int:
    """CPU threads of the slow track."""
    return config.slow_track_threads or cores()


def gives_way(config: EngineConfig) -> bool:
    """Whether the slow track is to call :func:`give_way`.

    Not on a single core, which the foreground would leave it nothing of.
    """
    return config.slow_track_priority == "idle" and cores() > 1 and _can_give_way()


def give_way() -> None:
    """Let the calling thread, and those that it starts, run only where nothing else wants to.

    Another thread that wants its core gets it at once, even in the middle of a convolution. There
    may be no way back: that takes privileges. Raises ``OSError`` where the system does not allow
    it, ``AttributeError`` where it is not Linux.
    """
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))  # 0: of the calling thread


def raise_priority() -> bool:
    """Let nothing of normal priority take a core from the calling thread, or from those it starts.

    False where the system does not allow it, or where the thread is of another class than the
    normal one: then nothing has changed.
    """
    policy = getattr(os, "SCHED_RR", None)
    if policy is None or os.sched_getscheduler(0) != os.SCHED_OTHER:
        return False
    try:
        os.sched_setscheduler(0, policy, os.sched_param(URGENCY))
    except OSError:
        return False
    return True


def lower_priority() -> None:
    """Undo :func:`raise_priority`; threads that were started in between stay as they are."""
    os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))  # the nice value stays


@cache
def _can_give_way() -> bool:
    """Tried by a thread of its own, as it cannot be undone."""
    allowed: list[bool] = []

    def attempt() -> None:
        with suppress(AttributeError, OSError):
            give_way()
            allowed.append(True)

    thread = threading.Thread(target=attempt)
    thread.start()
    thread.join()
    return bool(allowed)


def use_threads(count: int) -> None:
    """Let the calling thread's CPU work use ``count`` threads, 0 for :func:`cores`.

    PyTorch keeps this per calling thread; other threads that have begun are not affected, but the
    newest call is the default of threads to come. So each track calls this in its own thread.
    """
    # A thread's first parallel work takes over the newest default, whatever was set before: asking
    # counts as such.
    torch.get_num_threads()
    torch.set_num_threads(count or cores())


def apart(function: Callable[[], Result]) -> Result:
    """Run ``function`` in a thread that has ended when this returns or raises what it raised.

    A thread keeps the OpenMP team of its parallel work, and while all teams together have more
    threads than there are cores, OpenMP does not let them spin: frames then take half as long
    again. So what is run once, such as loading, must not leave a team with a thread that stays.
    """
    done: Future[Result] = Future()

    def body() -> None:
        try:
            done.set_result(function())
        except BaseException as error:
            done.set_exception(error)

    thread = threading.Thread(target=body, name="apart", daemon=True)
    thread.start()
    try:
        return done.result()
    finally:  # also of a KeyboardInterrupt: Python cannot end under a thread in PyTorch
        thread.join()


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
