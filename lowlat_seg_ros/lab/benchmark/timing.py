"""Frames from a camera, the one runner for all that is timed over frames, and records of times."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import cv2
import numpy as np
import torch

from lowlat_seg_ros.engine.cpu_threads import (
    ExternalCpuLoad,
    run_in_temporary_thread,
    single_threaded,
)
from lowlat_seg_ros.frames import Frame

Answer = TypeVar("Answer")

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
