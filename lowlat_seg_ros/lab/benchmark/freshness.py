"""How old exact features are when they arrive, and how many arrive, at a camera's rate.

What a mask is worth depends on the age of the features behind it more than on what computed them.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from lowlat_seg_ros.config import EngineConfig
from lowlat_seg_ros.engine.cpu_threads import run_in_temporary_thread
from lowlat_seg_ros.engine.engine import Engine
from lowlat_seg_ros.frames import Outcome, Refinement
from lowlat_seg_ros.lab.benchmark.camera import Camera, Pace
from lowlat_seg_ros.network.segmenter import Segmenter

#: Frames at the beginning that are not counted: the first one is full, and Sh warms up.
WARM_UP = 10


@dataclass(frozen=True)
class Freshness:
    """Of a run at ``rate_hz``, the engine as it is by default.

    ``per_s``: exact results of Sh a second, those that were used. ``age_frames``: mean and largest
    number of frames from the one that Sh has seen to the first that may use the result.
    ``compute_ms``: median time of Sh beside the frames, what it yields to them included.
    """

    rate_hz: float
    frames: int
    per_s: float
    age_frames: float
    oldest_frames: int
    compute_ms: float


def measure(
    segmenter: Segmenter,
    camera: Camera,
    frames: int,
    rate_hz: float,
    progress: Callable[[int], object],
) -> Freshness:
    """Play ``frames`` frames of ``camera`` at ``rate_hz``; ``progress`` is told of each."""
    begun: list[int] = []  # stamps of the frames that have begun
    found: list[tuple[int, float]] = []  # age in frames and time of each result

    def note(refinement: Refinement) -> None:
        if refinement.outcome in (Outcome.REFINED, Outcome.CARRIED):
            index = begun.index(refinement.stamp_ns)
            if index >= WARM_UP:
                found.append((len(begun) - index, refinement.compute_ms))

    def play() -> float:
        pace, started = Pace(rate_hz), 0.0
        for number in range(WARM_UP + frames):
            pace.wait()
            if number == WARM_UP:
                started = time.perf_counter()
            frame = camera.frame()
            begun.append(frame.stamp_ns)
            engine.process(frame)
            if number >= WARM_UP:
                progress(1)
        return time.perf_counter() - started

    config = EngineConfig(max_gap_ms=0.0)
    with Engine(segmenter, config, threshold=1.0, on_refinement=note) as engine:
        seconds: float = run_in_temporary_thread(play)
    ages = [age for age, _ in found]
    times = [ms for _, ms in found]
    return Freshness(
        rate_hz=rate_hz,
        frames=frames,
        per_s=len(found) / seconds,
        age_frames=float(np.mean(ages)) if ages else float("nan"),
        oldest_frames=max(ages, default=0),
        compute_ms=float(np.median(times)) if times else float("nan"),
    )
