"""A core of its own for frames, as long as other programs leave the cores free.

When a thread wakes, Linux may give it another core than last time, and then it finds nothing in the
caches. With a background network that works all the time, frames change cores often, since Linux
takes a core where only a thread of the lowest priority runs for a free one. So frames stay on one
core, and what runs beside them stays off it (docs/latency.md has the figures).
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

Cores = frozenset[int]


class Background:
    """The threads of this process that work beside frames, and the cores that they may use.

    Each adds itself when it begins and removes itself before it ends, as its number is another
    thread's then. Any thread may call :meth:`use`.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._threads: set[int] = set()
        self._cores: Cores | None = None  # None: those that each was started with

    def add(self) -> None:
        """The calling thread is one of them."""
        with self._lock:
            self._threads.add(threading.get_native_id())
            if self._cores is not None:
                _move(threading.get_native_id(), self._cores)

    def remove(self) -> None:
        """The calling thread is none of them any more."""
        with self._lock:
            self._threads.discard(threading.get_native_id())

    def use(self, cores: Cores) -> None:
        """Let all of them, and those that come later, run on these ``cores`` only."""
        if cores == self._cores:
            return
        with self._lock:
            self._cores = cores
            for thread in self._threads:
                _move(thread, cores)


#: Of this process: engines of several cameras share the slow track, and the thread of frames.
BACKGROUND = Background()


@contextmanager
def helpers_begin(cores: Cores) -> Iterator[None]:
    """Entered while a library starts threads that help with frames: on one of the other ``cores``.

    Linux would mostly give them the core of the frame that wakes them, where they wait until it
    looks for a better one, some milliseconds later. They stay there for good, so they must only be
    used while frames have their own core. A thread of somebody else's that begins meanwhile is
    taken for one of them. The calling thread, whose core libraries may ask for, has all ``cores``.
    """
    _move(0, cores)
    before = threads()
    try:
        yield
    finally:
        for thread in threads() - before:
            _move(thread, others(cores))


def threads() -> set[int]:
    """Those of this process."""
    return {int(path.name) for path in Path("/proc/self/task").iterdir()}


def others(cores: Cores) -> Cores:
    """All ``cores`` but that of frames, the lowest; that one, too, where there is no other."""
    return cores - {min(cores)} or cores


class OwnCore:
    """The core of the frames of one engine: the lowest that the process may use when it is made.

    Where cores differ, low numbers have the faster ones. Used by the thread that a frame is in.
    """

    def __init__(self) -> None:
        self._allowed: Cores = frozenset(os.sched_getaffinity(0))
        self._core = min(self._allowed)
        self._before: set[int] | None = None

    def enter(self) -> bool:
        """Keep the calling thread on the core until :meth:`leave`, and the background off it.

        False where the thread may not use the core.
        """
        BACKGROUND.use(others(self._allowed))
        before = os.sched_getaffinity(0)
        if self._core in before and _move(0, frozenset({self._core})):
            self._before = before
        return self._before is not None

    def leave(self) -> None:
        """Undo :meth:`enter` for the calling thread; the background stays where it is."""
        if self._before is not None:
            _move(0, frozenset(self._before))
            self._before = None

    def give_up(self) -> None:
        """Let the background use all cores, as other programs need some of them."""
        BACKGROUND.use(self._allowed)


def _move(thread: int, cores: Cores) -> bool:
    """Whether it was possible: a thread may have ended, and a container may lose cores."""
    with suppress(OSError):
        os.sched_setaffinity(thread, cores)
        return True
    return False
