"""What is timed and how: a camera, the one runner over its frames, the fast track, and records."""

from __future__ import annotations

import dataclasses
import itertools
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType
from typing import Any, Generic, TypeVar

import cv2
import numpy as np
import torch

from lowlat_seg_ros.config import EngineConfig
from lowlat_seg_ros.engine.counters import LiveCounters
from lowlat_seg_ros.engine.cpu_threads import ExternalCpuLoad, run_in_temporary_thread
from lowlat_seg_ros.engine.engine import Engine
from lowlat_seg_ros.engine.key_frame import KeyFrame, Pause, Refine
from lowlat_seg_ros.engine.slow_track import ThreadedSlowTrack
from lowlat_seg_ros.frames import Frame, MaskKind, Outcome, StageTiming
from lowlat_seg_ros.network.layers import single_threaded
from lowlat_seg_ros.network.segmenter import Segmenter

Answer = TypeVar("Answer")

Progress = Callable[[int], object]

#: Of ``EngineConfig``, by name.
Settings = Mapping[str, Any]

#: Never a key frame: the deviation is a share, and stamps may jump between blocks.
IDLE = EngineConfig(
    key_frame_policy="deviation", deviation_threshold=1.0, max_key_interval=0, max_gap_ms=0.0,
    inference_height=0,
)  # fmt: skip

#: Every frame a key frame, as the engine has it when the scene changes fast: mostly a job waits
#: when one is done. Where Sh is faster than the camera, see :class:`EndlessSlowTrack`.
SATURATED = dataclasses.replace(IDLE, max_key_interval=1)

#: Frames of a method before it is the next one's turn; long enough for several jobs of Sh.
BLOCK = 40

#: Steps at the beginning of each run that are not counted: the first frame of an engine is full,
#: and caches and threads are those of another method.
WARM_UP = 3


@dataclass(frozen=True)
class Latency:
    """Milliseconds of ``count`` frames or calls, at least one."""

    count: int
    min_ms: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    max_ms: float

    @classmethod
    def of(cls, milliseconds: Sequence[float]) -> Latency:
        points = np.percentile(milliseconds, (0, 50, 95, 99, 100))
        return cls(len(milliseconds), *(float(point) for point in points))


class Camera:
    """Cycles through ``images``, uint8 (H, W, 3) of one size; stamps are the machine's time."""

    def __init__(self, images: Sequence[np.ndarray]) -> None:
        self.images = tuple(images)
        self._next = itertools.cycle(self.images)

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) in pixels."""
        height, width = self.images[0].shape[:2]
        return height, width

    def frame(self) -> Frame:
        """The next frame, taken now."""
        return Frame(next(self._next), time.perf_counter_ns())

    def resized(self, height: int, width: int) -> Camera:
        return Camera([cv2.resize(image, (width, height)) for image in self.images])


@torch.inference_mode()
def control_ms() -> float:
    """Milliseconds of a fixed convolution on one thread: always the same work, of 27 M products."""
    with single_threaded():
        begin = time.perf_counter()
        torch.conv2d(torch.ones(1, 32, 56, 56), torch.ones(32, 32, 3, 3))
        return (time.perf_counter() - begin) * 1e3


@dataclass
class Run(Generic[Answer]):
    """What the counted steps gave and took."""

    answers: list[Answer] = field(default_factory=list)
    spent_ms: list[float] = field(default_factory=list)  # of each step
    window_s: float = 0.0  # from the first one's beginning to the end of the last one's period
    other_work_s: float = 0.0  # core seconds of other processes meanwhile
    # Of a fixed convolution after each step, which tells the machine's bad spells from ours.
    control_ms: list[float] = field(default_factory=list)

    def add(self, other: Run[Answer]) -> None:
        self.answers += other.answers
        self.spent_ms += other.spent_ms
        self.control_ms += other.control_ms
        self.window_s += other.window_s
        self.other_work_s += other.other_work_s


def play(
    step: Callable[[], Answer],
    steps: int,
    rate_hz: float = 0.0,
    *,
    progress: Callable[[int], object] = lambda count: None,
    begin: Callable[[], object] = lambda: None,
    warm_up: int = WARM_UP,
) -> Run[Answer]:
    """Call ``step``, which processes a frame or several, ``warm_up`` and ``steps`` times.

    ``rate_hz`` of the camera; 0 for frames back to back. A step that comes late does not make those
    after it come early: as with a real camera and a queue of one, what was missed is gone.
    ``begin`` is called before the first step that counts, ``progress`` with 1 after each.

    All of it runs in a thread that has ended when this returns, as the OpenMP threads of one method
    would slow down the next one's.
    """

    def body() -> Run[Answer]:
        run: Run[Answer] = Run()
        period_s, due = 1 / rate_hz if rate_hz else 0.0, time.perf_counter()

        def wait() -> None:
            nonlocal due
            now = time.perf_counter()
            if now < due:
                time.sleep(due - now)
            due = max(now, due) + period_s

        for _ in range(warm_up):
            wait()
            step()
        wait()
        begin()
        other_work, started = ExternalCpuLoad(), time.perf_counter()
        for _ in range(steps):
            before = time.perf_counter()
            run.answers.append(step())
            run.spent_ms.append((time.perf_counter() - before) * 1e3)
            run.control_ms.append(control_ms())
            progress(1)
            wait()  # also after the last one, whose period is part of the window
        run.window_s = time.perf_counter() - started
        run.other_work_s = run.window_s * other_work.cores()
        return run

    return run_in_temporary_thread(body)


@dataclass(frozen=True)
class EndToEnd:
    """``masks`` of ``frames`` images of ``height`` x ``width`` at ``rate_hz``, in ms.

    ``engine``: frame in to mask out. ``published``: from the begin of the image callback to the
    mask published, and ``received``: from the image's stamp to the mask in the subscriber's
    callback, both without the engine's time; ``total``: ``received`` with it.
    """

    height: int
    width: int
    rate_hz: float
    frames: int
    masks: int
    engine: Latency
    published: Latency
    received: Latency
    total: Latency

    @classmethod
    def of(
        cls,
        size: tuple[int, int],
        rate_hz: float,
        frames: int,
        times: Sequence[tuple[float, float, float]],
    ) -> EndToEnd:
        """``times``: for each mask the engine's, callback to published, and stamp to received."""
        engine, published, received = zip(*times, strict=True)
        return cls(
            *size, rate_hz, frames, len(times), Latency.of(engine),
            Latency.of([a - b for a, b in zip(published, engine, strict=True)]),
            Latency.of([a - b for a, b in zip(received, engine, strict=True)]),
            Latency.of(received),
        )  # fmt: skip


class EndlessSlowTrack(ThreadedSlowTrack):
    """The engine's own thread, which does a job again while ``endless`` is set and none waits.

    So it is busy however fast Sh is and however seldom the camera brings a key frame. Each job is
    counted and gated as any other.
    """

    def __init__(
        self, endless: threading.Event, refine: Refine, ledger: LiveCounters, config: EngineConfig
    ) -> None:
        def again(key: KeyFrame, pause: Pause) -> Outcome:
            outcome = refine(key, pause)
            # A key frame that comes at this very instant is superseded: the load is the same.
            if endless.is_set() and not self.state().waiting:
                self.submit(key)
            return outcome

        super().__init__(again, ledger, config)


class FastTrack:
    """The engine with its slow track idle or saturated, by ``network``.

    ``jobs`` and ``found_busy`` belong to the frames of :meth:`busy`: jobs that Sh did meanwhile,
    and whether each frame found Sh busy. Raises ``RuntimeError`` if Sh fails, as masks without it
    cost less than they should.
    """

    def __init__(
        self,
        network: Segmenter,
        camera: Camera,
        rate_hz: float = 0.0,
        settings: Settings = MappingProxyType({}),
    ) -> None:
        self.camera, self.rate_hz = camera, rate_hz
        self._idle, self._saturated = (
            dataclasses.replace(config, **settings) for config in (IDLE, SATURATED)
        )
        self.jobs, self.found_busy = 0, list[bool]()
        self._endless = threading.Event()
        track = partial(EndlessSlowTrack, self._endless)
        self.engine = Engine(network, self._idle, threshold=1.0, slow_track=track)

    def __enter__(self) -> FastTrack:
        return self

    def __exit__(self, *_: object) -> None:
        self.engine.close()

    def process(self) -> StageTiming:
        """One frame, whose mask must owe something to Sh. The mask itself is not kept."""
        answer = self.engine.process(self.camera.frame())
        if answer.provenance.kind is MaskKind.DEGRADED or answer.counters.failed:
            raise RuntimeError(f"Sh failed, so times mean nothing: {answer.counters.last_failure}")
        return answer.timing

    def idle(self, frames: int, progress: Progress = lambda count: None) -> Run[StageTiming]:
        """Sh has nothing to do."""
        self.engine.reconfigure(self._idle)
        run = play(self.process, frames, self.rate_hz, progress=progress)
        self.drain()
        return run

    def busy(self, frames: int, progress: Progress = lambda count: None) -> Run[StageTiming]:
        """Sh never rests."""
        found: list[bool] = []
        before = 0

        def begin() -> None:
            nonlocal before
            before = self._jobs_done()
            found.clear()

        def step() -> StageTiming:
            state = self.engine.slow_track()
            found.append(state.running or state.waiting)
            return self.process()

        self.engine.reconfigure(self._saturated)
        self._endless.set()
        try:
            run = play(step, frames, self.rate_hz, progress=progress, begin=begin)
            self.jobs += self._jobs_done() - before
            self.found_busy += found
        finally:
            self._endless.clear()
        self.drain()
        return run

    def job_ms(self) -> float:
        """Milliseconds that Sh takes for a key frame while no frame is in the foreground.

        The engine has segmented frames before.
        """
        self.engine.reconfigure(self._saturated)
        run_in_temporary_thread(self.process)
        self.drain()
        return self.engine.slow_track().last_ms

    def drain(self) -> None:
        """Wait until Sh has nothing to do, so that it does not run beside the next method."""
        while self.engine.counters.pending or self.engine.slow_track().running:
            if not self.engine.slow_track().alive:
                raise RuntimeError("the slow track's thread has ended before its work")
            time.sleep(0.001)

    def _jobs_done(self) -> int:
        """Used on their own key frame or carried to a newer one, or too late."""
        counters = self.engine.counters
        return counters.refined + counters.carried + counters.dropped_late
