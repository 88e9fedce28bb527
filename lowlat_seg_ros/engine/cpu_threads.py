"""CPU threads of the network: how many a frame gets, and who comes first on the cores.

PyTorch splits each layer of a frame over a pool of threads, which meet after each of some hundred
steps. On two free cores that nearly halves the time. But where another process keeps one of them
busy, every step waits for the thread that lost its core: a frame then takes many times as long as
on one thread. So the pool is as large as the number of cores that were free lately, and a frame
that finds itself waiting nevertheless continues on one thread.
"""

from __future__ import annotations

import functools
import math
import os
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import TypeVar

import torch

from lowlat_seg_ros.config import EngineConfig
from lowlat_seg_ros.engine.own_core import OwnCore
from lowlat_seg_ros.network.layers import num_threads, single_threaded

Result = TypeVar("Result")

#: Priority among real-time threads, 1 to 99: all others come first, as control loops should.
URGENCY = 1

#: A frame that has waited so long, for others of its pool or for a core, continues on one thread.
WAITED_S = 0.01

#: A frame that takes longer than this loses its priority, so that other programs get their share.
URGENT_S = 0.1

#: Shortest time over which the load of other processes is measured. Linux counts in steps of 10 ms
#: and may be wrong by some of them on each core: over 0.1 s that looked like half a core of load.
LOOK_S = 0.5

#: Cores that other processes may use without taking one: a driver's few milliseconds per frame.
TOLERANCE = 0.25

#: How long they must have used less before a core is taken back.
CALM_S = 1.0

#: Frames with each number of threads before the better one is chosen, after those of the warm-up;
#: and so few with more than one where these are no faster at all.
TRIAL, WARM_UP, HOPELESS = 6, 3, 2

#: More than one thread must take less than this share of the time of one: it occupies cores that
#: the slow track could use, and waits whenever one of them is taken.
WORTH_IT = 0.85

#: Where Linux accounts for the time of each core.
STAT = Path("/proc/stat")


def cores() -> int:
    return len(os.sched_getaffinity(0))


def foreground_threads(config: EngineConfig) -> int:
    """Most CPU threads of the fast track: as set, or the cores that the slow track leaves."""
    leaves = cores() if gives_way(config) else max(1, cores() - slow_threads(config))
    return config.foreground_threads or leaves


def slow_threads(config: EngineConfig) -> int:
    return config.slow_track_threads or cores()


def gives_way(config: EngineConfig) -> bool:
    """Whether the slow track calls :func:`give_way`."""
    # On a single core the foreground would leave nothing to it.
    return config.slow_track_priority == "idle" and cores() > 1 and _can_give_way()


def give_way() -> None:
    """Let the calling thread, and those that it starts, run only where nothing else wants to.

    Undoing this needs privileges. Raises ``OSError`` where the system does not allow it and
    ``AttributeError`` where it is not Linux.
    """
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))  # 0: of the calling thread


@functools.cache
def _can_give_way() -> bool:
    def attempt() -> bool:
        with suppress(AttributeError, OSError):
            give_way()
            return True
        return False

    return run_in_temporary_thread(attempt)  # it cannot be undone in this one


def raise_priority() -> bool:
    """Let nothing of normal priority take a core from the calling thread, or from those it starts.

    Returns False, having changed nothing, where the system does not allow it and where the thread
    is of another class than the normal one.
    """
    policy = getattr(os, "SCHED_RR", None)
    if policy is None or os.sched_getscheduler(0) != os.SCHED_OTHER:
        return False
    try:
        os.sched_setscheduler(0, policy, os.sched_param(URGENCY))
    except OSError:
        return False
    return True


@functools.cache
def realtime_allowed() -> bool:
    return run_in_temporary_thread(raise_priority)


def frame_priority(config: EngineConfig) -> str:
    """The priority that frames have, for people: a real-time one may be refused."""
    if config.foreground_priority == "normal" or realtime_allowed():
        return config.foreground_priority
    return "normal, as realtime is refused"


def lower_priority() -> None:
    """Undo :func:`raise_priority`; threads that were started in between stay as they are."""
    os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))  # the nice value stays


def use_threads(count: int) -> None:
    """Let the calling thread's CPU work use ``count`` threads, 0 for :func:`cores`.

    PyTorch holds this per calling thread. Other threads that have begun are not affected, but the
    newest call is the default of threads to come, so each track calls this in its own thread.
    """
    # A thread's first parallel work adopts the newest default, whatever was set before. Asking for
    # the number counts as such work.
    torch.get_num_threads()
    torch.set_num_threads(count or cores())


def run_in_temporary_thread(
    function: Callable[[], Result], *, interruptible: bool = False
) -> Result:
    """Run ``function`` in a thread that has ended when this returns, or raises what it raised.

    A thread keeps the OpenMP pool of its parallel work, and while all pools together have more
    threads than there are cores, OpenMP does not let them spin: frames then take half as long
    again. So what runs once, such as loading, must not leave a pool with a thread that stays.
    ``interruptible``: after a ``KeyboardInterrupt`` it is not waited for; the process must then
    leave by ``os._exit``, as Python cannot end under a thread in PyTorch.
    """
    pool = ThreadPoolExecutor(1, "temporary")
    done = pool.submit(function)
    try:
        return done.result()
    finally:
        pool.shutdown(wait=done.done() or not interruptible)


class ExternalCpuLoad:
    """How many cores other processes use on average, since this object was made.

    It counts the cores that this process may use, on Linux; elsewhere the answer is NaN. Time that
    a hypervisor takes counts as well. ``stat``: Linux' account of the cores; ``clock``: seconds.
    """

    def __init__(self, stat: Path = STAT, clock: Callable[[], float] = time.perf_counter) -> None:
        self._stat, self._clock = stat, clock
        self._begin = self._now()

    def cores(self) -> float:
        """0 on a quiet machine."""
        wall, busy, own = (now - then for now, then in zip(self._now(), self._begin, strict=True))
        if math.isnan(busy) or wall <= 0:
            return float("nan")
        return max(0.0, busy - own) / wall

    def _now(self) -> tuple[float, float, float]:
        return self._clock(), busy_s(self._stat), time.process_time()


def busy_s(stat: Path) -> float:
    """Seconds that the cores of this process have worked since the machine was started.

    ``stat``: Linux' ``/proc/stat``; the answer is NaN where there is none.
    """
    if not stat.is_file():
        return float("nan")
    mine = {f"cpu{core}" for core in os.sched_getaffinity(0)}
    ticks = 0
    for line in stat.read_text().splitlines():
        name, *fields = line.split()
        if name in mine:
            # The fields are user, nice, system, [idle, iowait,] irq, softirq, steal.
            ticks += sum(map(int, fields[:3] + fields[5:8]))
    return ticks / os.sysconf("SC_CLK_TCK")


class Trial:
    """Whether ``most`` threads serve frames better than one, found on the frames themselves.

    So it is measured at the camera's own rate and size, and beside what else the machine does: a
    light network on a processor that is fast at it is slower on two threads than on one.
    """

    def __init__(self, most: int) -> None:
        self._most, self._seconds = most, dict[int, list[float]]({most: [], 1: []})
        self._found = 1

    @property
    def threads(self) -> int:
        """Those of the next frame."""
        return self._found

    def add(self, threads: int, seconds: float) -> None:
        seen = self._seconds.get(threads, [])
        if len(seen) < TRIAL + (WARM_UP if threads == 1 else 0):
            seen.append(seconds)
            self._found = self._verdict()

    def _verdict(self) -> int:
        many, one = self._seconds[self._most], self._seconds[1][WARM_UP:]
        if self._most == 1 or len(one) < TRIAL:
            return 1
        if len(many) < HOPELESS:
            return self._most
        # The mean, as frames that wait for a thread of theirs are rare and take twice as long.
        limit = statistics.mean(one) * (WORTH_IT if len(many) >= TRIAL else 1)
        return self._most if statistics.mean(many) < limit else 1


#: By the height at which the network runs, and by most threads.
Trials = dict[tuple[int, int], Trial]


class ForegroundThreads:
    """CPU threads of the frames of one engine; used by the thread that a frame is in.

    A number that the user has set stays as it is. ``trials`` are shared by all engines of a
    network, so that the one which measures at the start spares the others. ``stat``: Linux' account
    of the cores; ``clock``: seconds, monotonic.
    """

    def __init__(
        self,
        config: EngineConfig,
        stat: Path = STAT,
        clock: Callable[[], float] = time.perf_counter,
        trials: Trials | None = None,
    ) -> None:
        self._most = foreground_threads(config)
        self._is_set = config.foreground_threads > 0
        self._urgent = config.foreground_priority == "realtime"
        self._slow = slow_threads(config)
        self._slow_has_cores = self._is_set or not gives_way(config)
        self._adapts = not self._is_set and self._most > 1
        # Threads that Sh starts itself could not be moved away.
        self._own_core = OwnCore() if self._slow == 1 and gives_way(config) else None
        self._stat, self._clock = stat, clock
        self._comes_first = self._raised = False
        self._taken, self._calm_since, self._used = 0, 0.0, 0.0
        self._count = self._most
        self._trials = {} if trials is None else trials
        self._trial = Trial(self._most)
        self._began, self._worked = clock(), time.thread_time()
        self._look()

    @property
    def leave_a_core(self) -> bool:
        """Whether the frame at hand has one thread, and a core is free for work beside it."""
        return self._adapts and self._count == 1 and self._most - self._taken > 1

    @property
    def raised(self) -> bool:
        return self._raised

    def at_height(self, height: int) -> None:
        """The network runs at this height from now on; others were measured by themselves."""
        self._trial = self._trials.setdefault((height, self._most), Trial(self._most))

    def ignore_others(self) -> None:
        """Let the number of threads depend on no other process: equal work on every run."""
        self._adapts = False

    @contextmanager
    def until_mask(self, *, starved: bool) -> Iterator[None]:
        """Entered until a frame's mask is out: choose its threads, and let them come first.

        They come before other programs as far as the system allows, for :data:`URGENT_S`.
        ``starved``: whether the slow track gets too little, see :meth:`count`.
        """
        # Setting it costs nothing, and the caller may be another thread than last time.
        count = self.count(starved=starved)
        use_threads(count)
        self._began, self._worked = self._clock(), time.thread_time()
        self._comes_first = self._raised = self._urgent and raise_priority()
        try:
            yield
            if self._adapts:
                self._trial.add(count, self._clock() - self._began)
        finally:
            self._lower()
            if self._own_core is not None:
                self._own_core.leave()

    def settle(self) -> bool:
        """Called early in a frame without Sh: stay on one core until the mask is out.

        That is for frames of one thread while no other program needs a core, see :mod:`.own_core`;
        False for others.
        """
        if self._own_core is None:
            return False
        if self._adapts and self._count == 1 and self._taken == 0:
            return self._own_core.enter()
        self._own_core.give_up()
        return False

    def after_mask(self) -> AbstractContextManager[None]:
        """Entered for what is left of a frame: it is not urgent, so it leaves cores to others.

        One of them is whoever delivers the mask.
        """
        return num_threads(torch.get_num_threads()) if self._is_set else single_threaded()

    def count(self, *, starved: bool) -> int:
        """Threads of the frame that begins now; a ``starved`` slow track is left its cores."""
        if self._is_set:
            return self._count
        if self._adapts and self._clock() - self._looked >= LOOK_S:
            self._take(self._load.cores())
            self._look()
        reserved = self._slow if starved and not self._slow_has_cores else 0
        most = self._trial.threads if self._adapts else self._most
        self._count = max(1, most - self._taken - reserved)
        return self._count

    def relieve(self) -> None:
        """Called between two layers: continue on one thread if the frame waits for displaced ones.

        That holds until the frame's end. A frame that takes long also loses its priority.
        """
        past = self._clock() - self._began
        if past > URGENT_S:
            self._lower()
        if self._adapts and torch.get_num_threads() > 1:
            waited = past - (time.thread_time() - self._worked)
            if waited > WAITED_S:
                torch.set_num_threads(1)

    def full(self) -> int:
        """Threads of Sh in the foreground: those of the slow track too, which has nothing to do."""
        theirs = self._slow if self._slow_has_cores else 0
        return min(cores(), max(self._count, self._most - self._taken) + theirs)

    def _lower(self) -> None:
        if self._raised:
            lower_priority()
            self._raised = False

    def _look(self) -> None:
        self._looked, self._load = self._clock(), ExternalCpuLoad(self._stat, self._clock)

    def _take(self, used: float) -> None:
        """Other processes ``used`` so many cores since the last look, NaN if nobody knows."""
        # A short burst takes no core from a frame that has priority; lasting load gets its own.
        lasting = min(used, self._used) if self._comes_first else used
        self._used = used
        taken = 0 if math.isnan(lasting) else max(0, math.ceil(lasting - TOLERANCE))
        now = self._clock()
        if taken >= self._taken:
            self._taken, self._calm_since = taken, now
        elif now - self._calm_since >= CALM_S:
            self._taken = taken
