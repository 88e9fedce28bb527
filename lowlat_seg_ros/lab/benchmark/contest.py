"""All sides in turns, in one process: who is how fast, and what the slow track gets done."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from lowlat_seg_ros.config import EngineConfig
from lowlat_seg_ros.engine.device import cores, foreground_threads
from lowlat_seg_ros.engine.engine import Engine
from lowlat_seg_ros.frames import MaskKind, StageTiming
from lowlat_seg_ros.lab.baselines.ddrnet import DDRNet23Slim
from lowlat_seg_ros.lab.baselines.full import FullEngine
from lowlat_seg_ros.lab.baselines.per_frame import PerFrameEngine
from lowlat_seg_ros.lab.benchmark.camera import Camera
from lowlat_seg_ros.lab.benchmark.saturation import EndlessSlowTrack
from lowlat_seg_ros.lab.benchmark.sides import IDLE, FastTrack, Saturated, Side, job_ms
from lowlat_seg_ros.lab.benchmark.timing import Latency
from lowlat_seg_ros.lab.evaluation.run import Method
from lowlat_seg_ros.network.segmenter import Segmenter

#: Frames of a side before it is the next one's turn; long enough for several jobs of Sh.
BLOCK = 40

#: Frames that decide how many threads serve a network best.
TRIAL = 5

#: Jobs of Sh that are timed for each block, and that warm it up.
JOBS = 3


@dataclass(frozen=True)
class SideResult:
    """``latency`` of frames in to masks out; ``timings`` of each. ``rate_hz``: frames per second.

    ``threads``: CPU threads that it uses at most; ``other_cores``: cores that other processes kept
    busy, which the fast track leaves them.
    """

    latency: Latency
    timings: tuple[StageTiming, ...]
    rate_hz: float
    threads: int
    other_cores: float

    @classmethod
    def of(cls, side: Side) -> SideResult:
        """What ``side`` measured."""
        latency = Latency.of(side.latencies_ms)
        return cls(latency, tuple(side.timings), side.rate_hz, side.threads, side.other_cores)


@dataclass(frozen=True)
class Refinements:
    """What the slow track gets done.

    ``busy_per_s``: jobs done per second while the camera runs and the slow track never rests;
    ``idle_per_s``: the same without any frame, from ``job``, the time of one. ``idle_time_share``:
    of the time with the camera, in which no frame was in the foreground; ``allowed_per_s`` is what
    it would allow, ``share_of_allowed`` what was reached (above 1 where Sh also runs beside
    frames). ``saturated_share``: of the frames, that found Sh busy.
    """

    busy_per_s: float
    idle_per_s: float
    idle_time_share: float
    allowed_per_s: float
    share_of_allowed: float
    saturated_share: float
    job: Latency

    @classmethod
    def of(cls, side: Saturated, jobs_ms: Sequence[float]) -> Refinements:
        """What ``side`` counted, and the times of single jobs without frames."""
        busy_per_s = side.refinements / side.window_s
        idle_per_s = 1e3 / float(np.mean(jobs_ms))
        idle_share = 1 - side.foreground_share
        allowed = idle_per_s * idle_share
        share = busy_per_s / allowed if allowed > 0 else float("nan")
        return cls(busy_per_s, idle_per_s, idle_share, allowed, share, side.busy_share,
                   Latency.of(jobs_ms))  # fmt: skip


@dataclass(frozen=True)
class Contest:
    """``sides`` by name; ``stages`` of ``full`` and the fast track by the field of StageTiming."""

    sides: dict[str, SideResult]
    stages: dict[str, dict[str, Latency]]
    refinements: Refinements


def hold(
    segmenter: Segmenter,
    ddrnet: DDRNet23Slim,
    camera: Camera,
    frames: int,
    rate_hz: float,
    progress: Callable[[int], object],
) -> Contest:
    """Play ``frames`` frames to each side, in blocks that take turns.

    One network serves all sides, so that all have the same optimisations, and one engine both
    states of the slow track. The fast track gets frames at ``rate_hz``, the networks that run on
    every frame get them back to back. ``progress`` is told of each frame, of 4 * ``frames`` in all.
    Raises ``RuntimeError`` if Sh fails.
    """
    endless = threading.Event()
    track = partial(EndlessSlowTrack, endless)
    with Engine(segmenter, IDLE, threshold=1.0, slow_track=track) as engine:
        threads = foreground_threads(IDLE)
        saturated = Saturated("fast_busy", engine, endless, threads, rate_hz)
        sides = [
            fastest("full", lambda config: FullEngine(segmenter, config), camera),
            fastest("ddrnet23_slim", lambda config: _per_frame(segmenter, ddrnet, config), camera),
            FastTrack("fast_idle", engine, IDLE, threads, rate_hz),
            saturated,
        ]
        # Sh warms up as well; on a GPU its second job captures graphs.
        for _ in range(JOBS):
            saturated.block(camera, TRIAL, lambda step: None)
        saturated.forget()
        jobs_ms = []
        for start in range(0, frames, BLOCK):
            for side in sides:
                side.block(camera, min(BLOCK, frames - start), progress)
            jobs_ms += [job_ms(engine, camera) for _ in range(JOBS)]
    return Contest(
        sides={side.name: SideResult.of(side) for side in sides},
        stages={"full": _stages(sides[0].timings), "fast": _stages(sides[2].timings)},
        refinements=Refinements.of(saturated, jobs_ms),
    )


def fastest(name: str, make: Callable[[EngineConfig], Method], camera: Camera) -> Side:
    """A network on every frame, on all cores, or on all but one if that is faster now.

    Beside other work a team of threads waits for the displaced one: all cores may then be many
    times as slow as one, and a slow rival would flatter the fast track.
    """
    sides = [
        Side(name, make(EngineConfig(foreground_threads=threads)), threads)
        for threads in sorted({cores(), max(1, cores() - 1)}, reverse=True)
    ]
    for side in sides:
        side.block(camera, TRIAL, lambda step: None)
    best = min(sides, key=lambda side: Latency.of(side.latencies_ms).p50_ms)
    best.forget()
    return best


def device_of(network: nn.Module) -> torch.device:
    """Where the weights are."""
    return next(network.parameters()).device


def _per_frame(segmenter: Segmenter, ddrnet: DDRNet23Slim, config: EngineConfig) -> PerFrameEngine:
    """``segmenter`` only prepares the images."""

    def network(image: Tensor) -> Tensor:
        logits: Tensor = ddrnet(image)  # alone, as it is in eval mode
        return logits

    return PerFrameEngine(segmenter, network, MaskKind.FULL, config)


def _stages(timings: Sequence[StageTiming]) -> dict[str, Latency]:
    """Those that were run, by name."""
    names = [item.name for item in dataclasses.fields(StageTiming) if item.name != "latency_ms"]
    values = {name: [getattr(timing, name) for timing in timings] for name in names}
    return {name: Latency.of(ms) for name, ms in values.items() if any(ms)}
