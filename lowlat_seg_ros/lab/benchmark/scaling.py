"""How the cost of the fast track grows, and how fresh exact features are at a camera's rate."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np

from lowlat_seg_ros.config import EngineConfig
from lowlat_seg_ros.engine.engine import Engine
from lowlat_seg_ros.frames import Outcome, Refinement, StageTiming
from lowlat_seg_ros.lab.benchmark.methods import BLOCK, IDLE, FastTrack
from lowlat_seg_ros.lab.benchmark.networks import memory_mb
from lowlat_seg_ros.lab.benchmark.timing import Camera, Latency, Run, play
from lowlat_seg_ros.network.segmenter import STRIDE, Segmenter

Progress = Callable[[int], object]

#: Height and width of the frames over which the cost is measured, as a share of the camera's.
SCALES = (0.5, 0.75, 1.0, 1.5)

CAMERAS = (1, 2, 3, 4, 5, 6)


@dataclass(frozen=True)
class Sized:
    """Latency of the fast track at ``height`` x ``width``, slow track idle."""

    height: int
    width: int
    latency: Latency

    @property
    def megapixels(self) -> float:
        """1e6 pixels."""
        return self.height * self.width / 1e6


@dataclass(frozen=True)
class Resolutions:
    """``sizes``, and the line ``base_ms + ms_per_megapixel * megapixels`` through their p50."""

    sizes: tuple[Sized, ...]
    base_ms: float
    ms_per_megapixel: float
    linear_deviation: float  # largest share by which a p50 is off the line


def over_resolutions(
    segmenter: Segmenter, camera: Camera, frames: int, progress: Progress
) -> Resolutions:
    """``frames`` frames of each size, in blocks that take turns."""
    cameras = []
    for scale in SCALES:  # in multiples of the network's stride, so that nothing is padded
        height, width = (max(1, round(side * scale / STRIDE)) * STRIDE for side in camera.size)
        cameras.append(camera.resized(height, width))
    runs: list[Run[StageTiming]] = [Run() for _ in cameras]
    with FastTrack(segmenter, camera) as fast:
        for start in range(0, frames, BLOCK):
            for resized, run in zip(cameras, runs, strict=True):
                fast.camera = resized
                run.add(fast.idle(min(BLOCK, frames - start), progress))
    points = []
    for resized, run in zip(cameras, runs, strict=True):
        latencies = [timing.latency_ms for timing in run.answers]
        points.append(Sized(*resized.size, Latency.of(latencies)))
    line = fit([p.megapixels for p in points], [p.latency.p50_ms for p in points])
    return Resolutions(tuple(points), *line)


def fit(amounts: Sequence[float], costs: Sequence[float]) -> tuple[float, float, float]:
    """The line (base, slope) with the least relative error, and the largest relative deviation."""
    x, y = np.asarray(amounts), np.asarray(costs)
    (base, slope), *_ = np.linalg.lstsq(np.stack([1 / y, x / y], axis=1), np.ones_like(y))
    return float(base), float(slope), float(np.abs(y / (base + slope * x) - 1).max())


@dataclass(frozen=True)
class Cameras:
    """``cameras`` of one size, each with an engine and a network of its own."""

    cameras: int
    latency: Latency  # from their frames in until all masks are out and the next can be taken
    memory_mb: float  # what the process holds then


def over_cameras(
    segmenter: Segmenter, camera: Camera, frames: int, progress: Progress
) -> tuple[Cameras, ...]:
    """Rounds of 1 to 6 cameras whose frames come together and are segmented one after another.

    Each number of cameras gets at least ``frames`` frames; ``progress`` is called for each number.
    """
    found, device = [], next(segmenter.parameters()).device
    with ExitStack() as stack:
        engines: list[Engine] = []

        def step() -> None:
            for engine in engines:
                engine.process(camera.frame())

        for cameras in CAMERAS:
            network = copy.deepcopy(segmenter)  # an engine is the only user of its network
            engines.append(stack.enter_context(Engine(network, IDLE, threshold=1.0)))
            run = play(step, -(-frames // cameras))
            found.append(Cameras(cameras, Latency.of(run.spent_ms), memory_mb(device)))
            progress(1)
    return tuple(found)


@dataclass(frozen=True)
class Freshness:
    """How old exact features are when they arrive, and how many arrive, the engine as by default.

    What a mask is worth depends on the age of the features behind it more than on what computed
    them.
    """

    rate_hz: float
    frames: int
    per_s: float  # exact results of Sh that were used
    age_frames: float  # mean number of frames from the one that Sh saw to the first that may use it
    oldest_frames: int
    compute_ms: float  # median time of Sh beside the frames, what it yields to them included


def freshness(
    segmenter: Segmenter, camera: Camera, frames: int, rate_hz: float, progress: Progress
) -> Freshness:
    """``frames`` frames at ``rate_hz``; ``progress`` is called for each."""
    warm_up = 10  # the first frame is full, and Sh warms up
    begun: list[int] = []  # stamps of the frames that have begun
    found: list[tuple[int, float]] = []  # age in frames and time of each result

    def note(refinement: Refinement) -> None:
        if refinement.outcome in (Outcome.REFINED, Outcome.CARRIED):
            index = begun.index(refinement.stamp_ns)
            if index >= warm_up:
                found.append((len(begun) - index, refinement.compute_ms))

    config = EngineConfig(max_gap_ms=0.0, inference_height=0)
    with Engine(segmenter, config, threshold=1.0, on_refinement=note) as engine:

        def step() -> None:
            frame = camera.frame()
            begun.append(frame.stamp_ns)
            engine.process(frame)

        run = play(step, frames, rate_hz, progress=progress, warm_up=warm_up)
    ages, times = zip(*found, strict=True) if found else ((), ())
    nan = float("nan")
    return Freshness(
        rate_hz=rate_hz,
        frames=frames,
        per_s=len(found) / run.window_s,
        age_frames=float(np.mean(ages)) if ages else nan,
        oldest_frames=max(ages, default=0),
        compute_ms=float(np.median(times)) if times else nan,
    )
