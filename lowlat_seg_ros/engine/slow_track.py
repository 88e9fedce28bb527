"""The slow track: one background thread that runs Sh, for one engine or for several.

Read it from :class:`SharedSlowTrack`. Each camera has one slot, in which the newest key frame wins;
the thread serves the slots in the order in which they were filled. Between two slices of Sh it
waits at the :class:`Gate` while a frame is in the foreground, but never for more than its share.
A job ends in one :class:`~lowlat_seg_ros.frames.Outcome`, which is counted, whatever Sh raises.
"""

from __future__ import annotations

import atexit
import threading
import time
import weakref
from collections.abc import Callable, Hashable
from dataclasses import dataclass

import torch

from lowlat_seg_ros.config import EngineConfig
from lowlat_seg_ros.engine.counters import Job, LiveCounters, failed, run_job
from lowlat_seg_ros.engine.cpu_threads import give_way, gives_way, use_threads
from lowlat_seg_ros.engine.key_frame import Cancelled, KeyFrame, Refine
from lowlat_seg_ros.engine.own_core import BACKGROUND
from lowlat_seg_ros.frames import Outcome

#: A job that is younger than this may just have come at a bad moment.
STARVED_S = 1.0

#: A camera that has not asked again for so long is not waited for: its stream has stopped, or its
#: frames no longer deviate.
PATIENCE_S = 1.0

#: How long the interpreter, before it ends, waits for slow tracks that nobody has closed.
EXIT_S = 5.0


@dataclass(frozen=True)
class SlowTrackState:
    """What the slow track is doing, for diagnostics.

    ``running_ms`` is the age of the job that runs now, 0 when idle; where cameras share the slow
    track it may be another one's. ``last_ms`` is the time of the newest job that ran to its end,
    ``last_error`` the message of the newest run of Sh, in the foreground or as a job, if it failed.
    """

    running: bool = False
    waiting: bool = False  # a key frame is queued behind the running job
    running_ms: float = 0.0
    last_ms: float = 0.0
    last_error: str = ""
    alive: bool = True


class SharedSlowTrack:
    """One thread that runs Sh for the engines made with ``slow_track=shared.camera_queue``.

    One engine's job never replaces another's, and each waits for at most one job of every other
    one. The frames of all engines must be processed by one thread: while one of them is in the
    foreground, Sh waits between its slices, whichever engine it runs for. ``clock``: seconds,
    monotonic, for fairness.
    """

    def __init__(self, config: EngineConfig, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self._threads, self._gives_way = config.slow_track_threads, gives_way(config)
        self.gate = Gate(config.slow_track_min_share)
        self.changed = threading.Condition()  # guards the rest
        self.waiting: dict[CameraQueue, Job] = {}  # the longest waiting one comes first
        self.running: tuple[CameraQueue, Job, float] | None = None  # it began then, in seconds
        self.requests, self.idle_requests = RequestOrder(), RequestOrder()
        self.closed = False
        _open.add(self)
        self._start_thread()

    def camera_queue(
        self, refine: Refine, counters: LiveCounters, config: EngineConfig
    ) -> CameraQueue:
        return CameraQueue(self, refine, counters)

    def close(self, timeout_s: float) -> bool:
        """Stop at Sh's next slice and join; False if the thread had to be abandoned."""
        with self.changed:
            self.closed = True
            dropped, self.waiting = self.waiting, {}
            self.changed.notify_all()
        for queue, job in dropped.items():
            queue.counters.end(job, Outcome.STALE)
        self.gate.release()
        self.thread.join(timeout_s)
        _open.discard(self)  # a thread that does not end is not waited for twice
        return not self.thread.is_alive()

    def _start_thread(self) -> None:
        # It is a daemon, so that a job which cannot be stopped does not keep the process alive.
        self.thread = threading.Thread(target=self._loop, name="slow-track", daemon=True)
        self.thread.start()

    def _loop(self) -> None:
        if self._gives_way:
            give_way()  # before the first parallel work, whose threads inherit it
        use_threads(self._threads)
        BACKGROUND.add()
        try:
            with torch.inference_mode():
                while self._run_next():
                    pass
        except BaseException as error:  # no Exception of Sh, which is the end of its job alone
            self._hand_over(error)
            raise
        finally:
            BACKGROUND.remove()

    def _run_next(self) -> bool:
        """Wait for a job and run it; False once the track is closed."""
        taken = self._take()
        if taken is None:
            return False
        queue, job, began = taken
        self.gate.begin_job()
        try:
            error = run_job(queue.refine, job, queue.pause, queue.counters)
        finally:
            self.gate.end_job()
        with self.changed:
            queue.last_ms = (time.perf_counter() - began) * 1e3
            if error is not None:
                queue.last_error = error
            self.running = None  # an idle slow track must not keep features alive
            self.changed.notify_all()
        return True

    def _hand_over(self, error: BaseException) -> None:
        """This thread ends because of ``error``: its job has failed, and another one goes on."""
        running, message = self.running, ""  # which no other thread sets
        if running is not None:
            queue, job, _ = running
            where = f"on frame {job.key.index} and ended its thread"
            message = failed(where, error, queue.counters)
        with self.changed:
            if running is not None:
                queue.last_error = message
            self.running = None
            if not self.closed:
                self._start_thread()
            self.changed.notify_all()
        if running is not None:
            queue.counters.end(job, Outcome.FAILED, message)

    def _take(self) -> tuple[CameraQueue, Job, float] | None:
        with self.changed:
            self.changed.wait_for(lambda: bool(self.waiting) or self.closed)
            if self.closed:
                return None
            queue = next(iter(self.waiting))
            self.running = queue, self.waiting.pop(queue), time.perf_counter()
            return self.running


#: Slow tracks that may still have a thread.
_open: weakref.WeakSet[SharedSlowTrack] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    """End those threads: the interpreter cannot end one that is inside PyTorch, and would abort."""
    for track in list(_open):
        track.close(EXIT_S)


class CameraQueue:
    """The slow track as one engine sees it: a slot for its newest key frame.

    :class:`~.virtual_slow_track.VirtualSlowTrack` has the same methods.
    """

    def __init__(self, track: SharedSlowTrack, refine: Refine, counters: LiveCounters) -> None:
        self._track, self.refine, self.counters = track, refine, counters
        self._closed = False
        self.last_ms, self.last_error = 0.0, ""  # as in SlowTrackState; track.changed guards them

    def begin_frame(self, index: int, stamp_ns: int) -> None:
        """Foreground first: Sh waits between its slices."""
        self._track.gate.set_foreground(True)

    def ran_in_foreground(self, error: str) -> None:
        """Sh has run on a first frame, in the foreground; ``error`` is empty if it succeeded."""
        with self._track.changed:
            self.last_error = error

    def end_frame(self) -> None:
        self._track.gate.set_foreground(False)

    def take_turn(self) -> bool:
        """Ask for a turn; whether this camera may submit: it waits already, or it is the next.

        A camera that may not keeps its place among those that asked.
        """
        track = self._track
        with track.changed:
            if self in track.waiting:
                return True
            return track.requests.grant(self, free=not track.waiting, now_s=track.clock())

    def take_idle_turn(self) -> bool:
        """Ask for a turn while Sh is idle; whether it is, and this camera is the next.

        Those that ask while a job runs hold their place, so one camera cannot take every gap.
        """
        track = self._track
        with track.changed:
            idle = track.running is None and not track.waiting
            return track.idle_requests.grant(self, free=idle, now_s=track.clock())

    def submit(self, key: KeyFrame) -> None:
        """Newest wins: ``key`` takes the slot, at the place of the one that it replaces."""
        job, track = self.counters.submit(key), self._track
        with track.changed:
            track.requests.forget(self)
            closed = track.closed or self._closed
            replaced = None if closed else track.waiting.get(self)
            if not closed:
                track.waiting[self] = job
                track.changed.notify_all()
        if closed:
            self.counters.end(job, Outcome.STALE)
        elif replaced is not None:
            self.counters.end(replaced, Outcome.SUPERSEDED)

    def cancel(self) -> None:
        """Drop the waiting job; a running one notices the new epoch at its next slice."""
        with self._track.changed:
            self._track.requests.forget(self)
            dropped = self._track.waiting.pop(self, None)
        if dropped is not None:
            self.counters.end(dropped, Outcome.STALE)

    def pause(self) -> None:
        """Called between two slices of Sh, by its thread: wait at the gate, or end the job."""
        if not (self._track.closed or self._closed):
            self._track.gate.wait()
        if self._track.closed or self._closed:
            raise Cancelled

    def starved(self) -> bool:
        """Whether the running job, of whichever camera, gets less than its share."""
        return self._track.gate.starved()

    def set_min_share(self, share: float) -> None:
        """Takes effect at Sh's next slice, whoever it runs for: this camera's frame comes next."""
        self._track.gate.min_share = share

    def state(self) -> SlowTrackState:
        """What runs may be another camera's job; what waits and ended last is its own."""
        track = self._track
        with track.changed:
            age_ms = (time.perf_counter() - track.running[2]) * 1e3 if track.running else 0.0
            running, waiting = track.running is not None, self in track.waiting
            newest = self.last_ms, self.last_error
        return SlowTrackState(running, waiting, age_ms, *newest, track.thread.is_alive())

    def close(self, timeout_s: float) -> bool:
        """End this camera alone; False if its running job could not be stopped in time."""
        self._closed = True
        self.cancel()
        track = self._track

        def ended() -> bool:
            running = track.running
            return running is None or running[0] is not self or not track.thread.is_alive()

        with track.changed:
            return track.changed.wait_for(ended, timeout_s)


class ThreadedSlowTrack(CameraQueue):
    """The slow track of a live engine that shares it with none."""

    def __init__(self, refine: Refine, counters: LiveCounters, config: EngineConfig) -> None:
        super().__init__(SharedSlowTrack(config), refine, counters)

    def close(self, timeout_s: float) -> bool:
        return self._track.close(timeout_s)


class RequestOrder:
    """Fairness: grants one camera at a time, in the order in which they began to ask.

    A camera that turns, or a common interval, makes the frames of all cameras deviate at once. If
    all of them were handed to the slow track, the last would be old when Sh came to it; a camera
    that is refused hands over a newer frame when it is granted.
    """

    def __init__(self) -> None:
        self._asked_s: dict[Hashable, float] = {}  # last time by camera, the first to ask first

    def grant(self, camera: Hashable, *, free: bool, now_s: float) -> bool:
        """Whether ``camera`` may go on; if not, it holds its place.

        ``free``: whether anyone may. ``now_s`` is monotonic.
        """
        recent = now_s - PATIENCE_S
        self._asked_s = {who: at for who, at in self._asked_s.items() if at >= recent}
        first = next(iter(self._asked_s), camera)
        if free and first == camera:
            self.forget(camera)
            return True
        self._asked_s[camera] = now_s
        return False

    def forget(self, camera: Hashable) -> None:
        self._asked_s.pop(camera, None)


class Gate:
    """Closed while a frame is in the foreground; Sh waits at it between its slices.

    However busy the foreground is, the waits of one job never take more than ``1 - min_share`` of
    its time: with 0 Sh runs in the gaps between frames only, with 1 it never waits.
    """

    def __init__(self, min_share: float, clock: Callable[[], float] = time.perf_counter) -> None:
        self.min_share, self._clock = min_share, clock
        self._changed = threading.Condition()
        self._foreground = self._released = False
        self._began = self._waited = 0.0  # seconds, of the running job
        self._worked: tuple[float, int, float] | None = None  # begin, CPU clock, its begin

    def set_foreground(self, busy: bool) -> None:
        with self._changed:
            self._foreground = busy
            self._changed.notify_all()

    def begin_job(self) -> None:
        """Start the account of a new job (called by the slow track's thread)."""
        clock = time.pthread_getcpuclockid(threading.get_ident())
        self._began, self._waited = self._clock(), 0.0
        self._worked = self._began, clock, time.clock_gettime(clock)

    def end_job(self) -> None:
        """Close the account (called by the slow track's thread)."""
        self._worked = None

    def starved(self) -> bool:
        """Whether the running job has had less than ``min_share`` of a core; from any thread.

        The waits at the gate are bounded, but a slow track that gives way gets no time either while
        the foreground uses all cores. Only a job of at least ``STARVED_S`` counts.
        """
        job = self._worked
        if job is None:
            return False
        past = self._clock() - job[0]
        try:
            worked = time.clock_gettime(job[1]) - job[2]
        except OSError:  # its thread has just ended
            return False
        return past > STARVED_S and worked < self.min_share * past

    def wait(self) -> None:
        """Wait for the foreground to be idle, or until the job's share of waiting is used up."""
        with self._changed:
            while self._foreground and not self._released:
                start = self._clock()
                left_s = threading.TIMEOUT_MAX
                if self.min_share > 0:
                    ran = start - self._began - self._waited
                    left_s = ran * (1 - self.min_share) / self.min_share - self._waited
                if left_s <= 0:
                    return
                self._changed.wait(min(left_s, threading.TIMEOUT_MAX))
                self._waited += self._clock() - start

    def release(self) -> None:
        """Let everyone through from now on (shutdown)."""
        with self._changed:
            self._released = True
            self._changed.notify_all()
