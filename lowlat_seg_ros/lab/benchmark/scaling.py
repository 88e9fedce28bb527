"""How the cost of the fast track grows with the resolution and with the number of cameras."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from lowlat_seg_ros.engine.cpu_threads import foreground_threads, run_in_temporary_thread
from lowlat_seg_ros.engine.engine import Engine
from lowlat_seg_ros.lab.benchmark.camera import Camera
from lowlat_seg_ros.lab.benchmark.contest import BLOCK, device_of
from lowlat_seg_ros.lab.benchmark.memory import memory_mb
from lowlat_seg_ros.lab.benchmark.sides import IDLE, WARM_UP, FastTrack
from lowlat_seg_ros.lab.benchmark.timing import Latency
from lowlat_seg_ros.network.segmenter import STRIDE, Segmenter

#: Of the camera's height and width; 1/4 to 9/4 of its pixels.
SIDES = (0.5, 0.75, 1.0, 1.5)

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
    """``sizes``, and the line ``base_ms + ms_per_megapixel * megapixels`` through their p50.

    ``linear_deviation``: largest share by which a p50 is off the line.
    """

    sizes: tuple[Sized, ...]
    base_ms: float
    ms_per_megapixel: float
    linear_deviation: float


@dataclass(frozen=True)
class Rig:
    """``cameras`` of one size, each with an engine and a network of its own.

    ``latency``: from their frames in until all masks are out and the next frames can be taken.
    ``memory_mb``: see :func:`~.memory.memory_mb`.
    """

    cameras: int
    latency: Latency
    memory_mb: float


def over_resolutions(
    segmenter: Segmenter, camera: Camera, frames: int, progress: Callable[[int], object]
) -> Resolutions:
    """``frames`` frames of each size, in blocks that take turns."""
    height, width = camera.size
    sizes = [(_multiple(height * side), _multiple(width * side)) for side in SIDES]
    with Engine(segmenter, IDLE, threshold=1.0) as engine:
        cameras = {size: camera.resized(*size) for size in sizes}
        sides = {
            size: FastTrack("fast_idle", engine, IDLE, foreground_threads(IDLE)) for size in sizes
        }
        for start in range(0, frames, BLOCK):
            for size, side in sides.items():
                side.block(cameras[size], min(BLOCK, frames - start), progress)
    points = tuple(Sized(*size, Latency.of(side.latencies_ms)) for size, side in sides.items())
    line = fit([p.megapixels for p in points], [p.latency.p50_ms for p in points])
    return Resolutions(points, *line)


def fit(amounts: Sequence[float], costs: Sequence[float]) -> tuple[float, float, float]:
    """The line (base, slope) with the least relative error, and the largest relative deviation."""
    x, y = np.asarray(amounts), np.asarray(costs)
    (base, slope), *_ = np.linalg.lstsq(np.stack([1 / y, x / y], axis=1), np.ones_like(y))
    return float(base), float(slope), float(np.abs(y / (base + slope * x) - 1).max())


def over_cameras(
    segmenter: Segmenter, camera: Camera, frames: int, progress: Callable[[int], object]
) -> tuple[Rig, ...]:
    """Rounds of 1 to 6 cameras whose frames come together and are segmented one after another.

    Each number of cameras gets at least ``frames`` frames; ``progress`` is told of every number.
    """
    rigs, device = [], device_of(segmenter)
    with ExitStack() as stack:
        engines: list[Engine] = []
        for cameras in CAMERAS:
            # An engine is the only user of its network.
            network = copy.deepcopy(segmenter)
            engines.append(stack.enter_context(Engine(network, IDLE, threshold=1.0)))
            rounds = -(-frames // cameras)
            rigs.append(run_in_temporary_thread(partial(_rounds, engines, camera, rounds, device)))
            progress(1)
    return tuple(rigs)


def camera_mb(rigs: Sequence[Rig]) -> float:
    """Memory of each further camera, on average."""
    first, last = rigs[0], rigs[-1]
    return (last.memory_mb - first.memory_mb) / (last.cameras - first.cameras)


def _rounds(engines: Sequence[Engine], camera: Camera, rounds: int, device: torch.device) -> Rig:
    spent_ms = []
    for turn in range(WARM_UP + rounds):
        begin = time.perf_counter()
        for engine in engines:
            engine.process(camera.frame())
        if turn >= WARM_UP:
            spent_ms.append((time.perf_counter() - begin) * 1e3)
    return Rig(len(engines), Latency.of(spent_ms), memory_mb(device))


def _multiple(side: float) -> int:
    """``side`` in pixels as a multiple of the network's stride, so that nothing is padded."""
    return max(1, round(side / STRIDE)) * STRIDE
