"""How long frames take: the newest ones, and before the first comes what they will cost."""

from __future__ import annotations

import dataclasses
import itertools
import math
import statistics
import time
from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass

import numpy as np

from lowlat_seg_ros.config import EngineConfig
from lowlat_seg_ros.engine.cpu_threads import TRIAL, WARM_UP
from lowlat_seg_ros.engine.engine import Engine
from lowlat_seg_ros.frames import Frame
from lowlat_seg_ros.network.segmenter import Segmenter

#: Frames of the fast track that are measured, after two that are not: as many as it takes to find
#: the better number of threads, which then holds for all engines of the network.
FRAMES = WARM_UP + 2 * TRIAL - 2


@dataclass(frozen=True)
class Percentiles:
    """Of ``count`` values, such as the newest of a tracker; zeros while there is none."""

    count: int = 0
    p50: float = 0.0
    p95: float = 0.0
    p99: float = 0.0
    max: float = 0.0

    @classmethod
    def of(cls, values: Collection[float]) -> Percentiles:
        if not values:
            return cls()
        p50, p95, p99, top = (float(v) for v in np.percentile([*values], (50, 95, 99, 100)))
        return cls(len(values), p50, p95, p99, top)


class PercentileTracker:
    """Holds the newest ``window`` values; one thread writes, a reader sees a consistent copy."""

    def __init__(self, window: int = 1000) -> None:
        self._values: deque[float] = deque(maxlen=window)

    def add(self, value: float) -> None:
        self._values.append(value)

    def percentiles(self) -> Percentiles:
        return Percentiles.of(self._values.copy())  # atomic under the GIL, unlike iterating


@dataclass(frozen=True)
class FrameCost:
    """Milliseconds at images of ``width`` x ``height``, other work on the machine included.

    ``fast_track_ms``: a frame from image to mask at the camera's pace while Sh is idle, p50.
    ``slow_track_ms``: Sh in the background while no frame is in the foreground. ``full_frame_ms``:
    the first frame of an epoch, Sl and Sh in the foreground.
    """

    width: int
    height: int
    fast_track_ms: float
    slow_track_ms: float
    full_frame_ms: float

    def rate_hz(self, cameras: int) -> float:
        """Frames a second of each of ``cameras`` that share one thread, Sh idle."""
        return 1e3 / (cameras * self.fast_track_ms)


def measure(
    segmenter: Segmenter,
    config: EngineConfig,
    size: tuple[int, int],
    rate_hz: float = math.inf,
    sleep: Callable[[float], None] = time.sleep,
) -> FrameCost:
    """Run every stage at ``size`` (height, width) until allocators are warm, and time it.

    Frames come at ``rate_hz``, as from a camera: in the pauses caches grow cold and cores slow
    down, so that a frame takes longer than back to back. An engine of its own is used, so that its
    frames appear in no counter. Takes two full frames, some fast ones and one Sh; more on a GPU,
    where CUDA graphs are captured meanwhile.
    """
    # The second time a part runs on a GPU it is captured, and only the third time tells its cost.
    repeats = 3 if next(segmenter.parameters()).is_cuda else 1
    quiet = dataclasses.replace(
        config,
        key_frame_policy="deviation",
        deviation_threshold=1.0,
        max_key_interval=0,
        max_gap_ms=0.0,
        max_latency_ms=0.0,
    )
    image = np.zeros((*size, 3), np.uint8)
    frames = (Frame(image, stamp_ns) for stamp_ns in itertools.count())
    with Engine(segmenter, quiet, threshold=1.0) as engine:

        def latency_ms() -> float:
            return engine.process(next(frames)).timing.latency_ms

        latency_ms()
        latency_ms()
        paced = []
        for _ in range(FRAMES):
            due = time.perf_counter() + 1 / rate_hz
            paced.append(latency_ms())
            sleep(max(0.0, due - time.perf_counter()))
        fast_ms = statistics.median(paced)
        for _ in range(repeats):
            engine.reset()
            full_ms = latency_ms()
        engine.reconfigure(dataclasses.replace(quiet, max_key_interval=1))
        for _ in range(repeats):
            latency_ms()  # becomes the key frame
            while (track := engine.slow_track()).alive and (
                engine.counters.pending or track.running
            ):
                time.sleep(0.001)
        height, width = size
        return FrameCost(width, height, fast_ms, engine.slow_track().last_ms, full_ms)
