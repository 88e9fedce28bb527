"""All measurements of a benchmark, one after another."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from lowlat_seg_ros.engine.device import apart, cores, foreground_threads, use_threads
from lowlat_seg_ros.engine.neighbours import Neighbours
from lowlat_seg_ros.engine.runner import captures
from lowlat_seg_ros.lab.benchmark import (
    arithmetic,
    camera,
    contest,
    freshness,
    limits,
    memory,
    networks,
    scaling,
)
from lowlat_seg_ros.lab.benchmark.kernel import PAPER, PAPER_GPU, Shape
from lowlat_seg_ros.lab.benchmark.kernel import measure as measure_kernel
from lowlat_seg_ros.lab.benchmark.record import Benchmark, Facts, Kernels, Sides
from lowlat_seg_ros.lab.benchmark.sides import IDLE
from lowlat_seg_ros.lab.evaluation.machine import describe
from lowlat_seg_ros.network.inference import precision_of, resolve_device
from lowlat_seg_ros.network.segmenter import STRIDE, Segmenter

#: Fewest repeats of a kernel; otherwise a quarter of the frames, as unfold takes long.
REPEATS = 3


@dataclass(frozen=True)
class Wanted:
    """What to measure: the network of ``checkpoint``, or ``config`` of ``NETWORKS`` at random.

    ``parts`` of ``PARTS``; ``size`` (H, W) of the frames or None, ``frames`` of each side,
    ``precision`` as in ``EngineConfig``. ``high_scale``: see :meth:`Segmenter.read_at`.
    ``command`` is for the report.
    """

    command: str
    config: str
    checkpoint: Path | None
    parts: Collection[str]
    device: str
    size: tuple[int, int] | None
    rate_hz: float
    frames: int
    precision: str
    high_scale: float | None = None


def everything(wanted: Wanted) -> Benchmark:
    """Measure the parts that are wanted; minutes, with progress on the terminal.

    Raises ``ConfigError`` for the device, ``DataError`` for a size that cannot be rendered,
    ``CheckpointError``.
    """
    device, frames = resolve_device(wanted.device), wanted.frames
    load_average, neighbours = os.getloadavg()[0], Neighbours()
    with _bar("rendering", camera.IMAGES) as step:
        seen = camera.rendered(wanted.size, wanted.rate_hz, camera.IMAGES, step)
    before_mb = memory.resident_mb()
    # Loading must leave no OpenMP team with this thread, see `apart`.
    segmenter, weights = apart(lambda: _network(wanted, device))
    if wanted.high_scale is not None:
        segmenter.read_at(wanted.high_scale)
    contested = rigs = resolutions = kernels = fresh = None
    if "sides" in wanted.parts:
        contested = _sides(segmenter, seen, wanted, before_mb)
    if "freshness" in wanted.parts:
        with _bar("freshness", frames) as step:
            fresh = freshness.measure(segmenter, seen, frames, wanted.rate_hz, step)
    if "resolutions" in wanted.parts:
        with _bar("resolutions", len(scaling.SIDES) * frames) as step:
            resolutions = scaling.over_resolutions(segmenter, seen, frames, step)
    if "cameras" in wanted.parts:
        with _bar("cameras", len(scaling.CAMERAS)) as step:
            rigs = scaling.over_cameras(segmenter, seen, frames, step)
    if contested is not None and rigs is not None:
        held = dataclasses.replace(contested.memory, camera_mb=scaling.camera_mb(rigs))
        contested = dataclasses.replace(contested, memory=held)
    if "propagation" in wanted.parts:
        kernels = _kernels(segmenter, seen.size, max(REPEATS, frames // 4))
    facts = Facts(
        command=wanted.command,
        config=wanted.config if wanted.checkpoint is None else wanted.checkpoint.stem,
        weights=weights,
        size=seen.size,
        frames=frames,
        rate_hz=wanted.rate_hz,
        device=str(device),
        precision=str(precision_of(wanted.precision, device)).removeprefix("torch."),
        slow_track_threads=IDLE.slow_track_threads or cores(),
        load_average=load_average,
        other_cores=neighbours.cores(),
        machine=describe(device.type),
    )
    counted, graphs = arithmetic.count(segmenter.config, seen.size), captures(segmenter)
    return Benchmark(facts, counted, graphs, contested, kernels, resolutions, rigs or (), fresh)


def _network(wanted: Wanted, device: torch.device) -> tuple[Segmenter, str]:
    if wanted.checkpoint is None:
        return networks.with_random_weights(wanted.config, device, wanted.precision)
    return networks.loaded(wanted.checkpoint, device, wanted.precision)


def _sides(segmenter: Segmenter, seen: camera.Camera, wanted: Wanted, before_mb: float) -> Sides:
    """The contest, and what memory it took; ``before_mb`` before there was a network."""
    device, classes = contest.device_of(segmenter), segmenter.config.num_classes
    ddrnet = apart(lambda: networks.ddrnet(classes, device, wanted.precision))
    with _bar("sides", 4 * wanted.frames) as step:
        held = contest.hold(segmenter, ddrnet, seen, wanted.frames, wanted.rate_hz, step)
    used = memory.Memory(
        weights_mb=memory.weights_mb(segmenter),
        ddrnet_weights_mb=memory.weights_mb(ddrnet),
        before_mb=before_mb,
        peak_mb=memory.peak_mb(),
        gpu_peak_mb=memory.gpu_peak_mb(device),
        camera_mb=float("nan"),
    )
    return Sides(held, used)


def _kernels(segmenter: Segmenter, size: tuple[int, int], repeats: int) -> Kernels:
    """The machine's limits, and propagation at the paper's size and at that of this network."""
    device, config = contest.device_of(segmenter), segmenter.config
    height, width = (-(-side // STRIDE) for side in size)
    here = Shape(config.high_channels, height, width, config.kernel_size)
    use_threads(foreground_threads(IDLE))
    with _bar("propagation", 3) as step:
        best = limits.measure(device, repeats)
        step(1)
        measured = []
        for shape in (PAPER if device.type == "cpu" else PAPER_GPU, here):
            measured.append(measure_kernel(shape, device, best, repeats))
            step(1)
    return Kernels(measured[0], measured[1], best)


@contextmanager
def _bar(name: str, total: int) -> Iterator[Callable[[int], object]]:
    with tqdm(total=total, desc=name, leave=False) as bar:
        yield bar.update
