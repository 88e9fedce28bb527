"""The sides that are compared: full network, DDRNet, and the engine with Sh idle and saturated."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable

from lowlat_seg_ros.config import EngineConfig
from lowlat_seg_ros.engine.cpu_threads import ExternalCpuLoad, run_in_temporary_thread
from lowlat_seg_ros.engine.engine import Engine
from lowlat_seg_ros.frames import Frame, MaskKind, Segmentation, StageTiming
from lowlat_seg_ros.lab.benchmark.camera import Camera, Pace
from lowlat_seg_ros.lab.evaluation.run import Method

#: Frames at the beginning of each block that are not counted: the first one of an engine is full,
#: and caches and threads are another side's.
WARM_UP = 3

#: Never a key frame: the deviation is a share, and stamps may jump between blocks.
IDLE = EngineConfig(
    key_frame_policy="deviation", deviation_threshold=1.0, max_key_interval=0, max_gap_ms=0.0
)

#: Every frame a key frame, as the engine has it when the scene changes fast: mostly a job waits
#: when one is done. Where Sh is faster than the camera, see :class:`~.saturation.EndlessSlowTrack`.
SATURATED = dataclasses.replace(IDLE, max_key_interval=1)


class Side:
    """``method``, frame by frame; ``rate_hz`` is the camera's, 0 for frames back to back.

    ``timings`` are those of all frames counted, ``other_cores`` what other processes kept busy.
    """

    def __init__(self, name: str, method: Method, threads: int, rate_hz: float = 0.0) -> None:
        self.name, self.threads = name, threads
        self._method, self._rate_hz = method, rate_hz
        self.forget()

    def forget(self) -> None:
        """Nothing has been counted."""
        self.timings: list[StageTiming] = []
        self._window_s = self._foreground_s = self._other_s = 0.0

    def block(self, camera: Camera, frames: int, progress: Callable[[int], object]) -> None:
        """Warm up, then count ``frames`` frames; ``progress`` is told of each.

        In a thread that ends, as one side's OpenMP team would slow down the next side's.
        """
        run_in_temporary_thread(lambda: self._block(camera, frames, progress))

    def _block(self, camera: Camera, frames: int, progress: Callable[[int], object]) -> None:
        self.enter()
        pace = Pace(self._rate_hz)
        for _ in range(WARM_UP):
            pace.wait()
            self.process(camera.frame())
        pace.wait()
        self.begin_window()
        neighbours, begin = ExternalCpuLoad(), time.perf_counter()
        for _ in range(frames):
            self.observe()
            started = time.perf_counter()
            self.timings.append(self.process(camera.frame()).timing)
            self._foreground_s += time.perf_counter() - started
            progress(1)
            pace.wait()  # also after the last one: its period is part of the window
        spent = time.perf_counter() - begin
        self._window_s += spent
        self._other_s += spent * neighbours.cores()
        self.end_window()
        self.leave()

    def process(self, frame: Frame) -> Segmentation:
        """One frame."""
        return self._method.process(frame)

    def enter(self) -> None:
        """Before a block."""

    def begin_window(self) -> None:
        """Before the first frame that counts."""

    def observe(self) -> None:
        """Before each frame that counts."""

    def end_window(self) -> None:
        """After the last frame that counts."""

    def leave(self) -> None:
        """After a block: nothing may go on behind the next side's back."""

    @property
    def latencies_ms(self) -> list[float]:
        """Frame in to mask out."""
        return [timing.latency_ms for timing in self.timings]

    @property
    def rate_hz(self) -> float:
        """Frames per second that were processed."""
        return len(self.timings) / self._window_s

    @property
    def window_s(self) -> float:
        """Seconds in which frames were counted."""
        return self._window_s

    @property
    def foreground_share(self) -> float:
        """Share of the time in which a frame was being processed."""
        return self._foreground_s / self._window_s

    @property
    def other_cores(self) -> float:
        """Cores that other processes kept busy meanwhile."""
        return self._other_s / self._window_s


class FastTrack(Side):
    """The engine in the state ``config`` of its slow track; see :data:`IDLE`.

    Raises ``RuntimeError`` if Sh fails, as masks without it cost less than they should.
    """

    def __init__(
        self, name: str, engine: Engine, config: EngineConfig, threads: int, rate_hz: float = 0.0
    ) -> None:
        super().__init__(name, engine, threads, rate_hz)
        self._engine, self._config = engine, config

    def process(self, frame: Frame) -> Segmentation:
        """One frame, whose mask must owe something to Sh."""
        answer = super().process(frame)
        if answer.provenance.kind is MaskKind.DEGRADED or answer.counters.failed:
            raise RuntimeError(f"Sh failed, so times mean nothing: {answer.counters.last_failure}")
        return answer

    def enter(self) -> None:
        """Take over the engine."""
        self._engine.reconfigure(self._config)

    def leave(self) -> None:
        """Wait for Sh to finish."""
        drain(self._engine)


class Saturated(FastTrack):
    """The engine with Sh always busy; counts ``refinements``, and the frames that found it busy.

    ``endless`` is the switch of the engine's :class:`~.saturation.EndlessSlowTrack`.
    """

    def __init__(
        self, name: str, engine: Engine, endless: threading.Event, threads: int, rate_hz: float
    ) -> None:
        super().__init__(name, engine, SATURATED, threads, rate_hz)
        self._endless = endless

    def forget(self) -> None:
        """Nothing has been counted."""
        super().forget()
        self.refinements = self._found_busy = 0

    def enter(self) -> None:
        """Take over the engine."""
        super().enter()
        self._endless.set()

    def begin_window(self) -> None:
        """Refinements before it do not count."""
        self.refinements -= refined(self._engine)

    def observe(self) -> None:
        """Look at what Sh does when a frame comes."""
        state = self._engine.slow_track()
        self._found_busy += state.running or state.waiting

    def end_window(self) -> None:
        """Refinements after it do not count."""
        self.refinements += refined(self._engine)

    def leave(self) -> None:
        """Let Sh come to rest."""
        self._endless.clear()
        super().leave()

    @property
    def busy_share(self) -> float:
        """Share of the frames that came while Sh was busy: 1 if it was saturated."""
        return self._found_busy / len(self.timings)


def job_ms(engine: Engine, camera: Camera) -> float:
    """Milliseconds that Sh takes for a key frame while no frame is in the foreground.

    ``engine`` has segmented frames of ``camera`` before.
    """
    engine.reconfigure(SATURATED)
    run_in_temporary_thread(lambda: engine.process(camera.frame()))
    drain(engine)
    return engine.slow_track().last_ms


def refined(engine: Engine) -> int:
    """Jobs that Sh has done: used on their own key frame or carried to a newer one, or too late."""
    counters = engine.counters
    return counters.refined + counters.carried + counters.dropped_late


def drain(engine: Engine) -> None:
    """Wait until the slow track has nothing left to do; RuntimeError if its thread has ended."""
    while engine.counters.pending or engine.slow_track().running:
        if not engine.slow_track().alive:
            raise RuntimeError("the slow track's thread has ended before its work")
        time.sleep(0.001)
