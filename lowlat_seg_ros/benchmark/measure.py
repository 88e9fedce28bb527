"""All measurements of a benchmark, one after another."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tqdm import tqdm

from lowlat_seg_ros.benchmark import arithmetic, camera, contest, limits, memory, networks, scaling
from lowlat_seg_ros.benchmark.command import SHIPPED
from lowlat_seg_ros.benchmark.kernel import PAPER, PAPER_GPU, Kernel, Shape
from lowlat_seg_ros.benchmark.kernel import measure as measure_kernel
from lowlat_seg_ros.benchmark.record import Benchmark, Facts
from lowlat_seg_ros.benchmark.sides import IDLE
from lowlat_seg_ros.engine.device import cores, foreground_threads, use_threads
from lowlat_seg_ros.engine.neighbours import Neighbours
from lowlat_seg_ros.engine.runner import captures
from lowlat_seg_ros.evaluation.machine import describe
from lowlat_seg_ros.network.device import resolve_device
from lowlat_seg_ros.network.precision import precision_of
from lowlat_seg_ros.network.segmenter import STRIDE, Segmenter

#: Fewest repeats of a kernel; otherwise a quarter of the frames, as unfold takes long.
REPEATS = 3


@dataclass(frozen=True)
class Wanted:
    """What to measure: ``config`` a name of ``NETWORKS``, ``size`` (H, W) of the frames or None,
    ``frames`` of each side, ``precision`` as in ``EngineConfig``. ``command`` is for the report.
    """

    command: str
    config: str
    device: str
    size: tuple[int, int] | None
    rate_hz: float
    frames: int
    precision: str


def everything(wanted: Wanted) -> Benchmark:
    """Measure; minutes, with progress on the terminal.

    Raises ``ConfigError`` for the device, ``DataError`` for a size that cannot be rendered.
    """
    device = resolve_device(wanted.device)
    load_average, neighbours = os.getloadavg()[0], Neighbours()
    with _bar("rendering", camera.IMAGES) as step:
        seen = camera.rendered(wanted.size, wanted.rate_hz, camera.IMAGES, step)
    before_mb = memory.resident_mb()
    if wanted.config == SHIPPED:
        segmenter, weights = networks.shipped(device, wanted.precision)
    else:
        segmenter, weights = networks.with_random_weights(wanted.config, device, wanted.precision)
    ddrnet = networks.ddrnet(segmenter.config.num_classes, device, wanted.precision)
    with _bar("sides", 4 * wanted.frames) as step:
        sides = contest.hold(segmenter, ddrnet, seen, wanted.frames, wanted.rate_hz, step)
    peak_mb, gpu_peak_mb = memory.peak_mb(), memory.gpu_peak_mb(device)
    with _bar("resolutions", len(scaling.SIDES) * wanted.frames) as step:
        resolutions = scaling.over_resolutions(segmenter, seen, wanted.frames, step)
    with _bar("cameras", len(scaling.CAMERAS)) as step:
        rigs = scaling.over_cameras(segmenter, seen, wanted.frames, step)
    best, kernel, own_kernel = _kernels(segmenter, seen.size, max(REPEATS, wanted.frames // 4))
    facts = Facts(
        command=wanted.command,
        config=wanted.config,
        weights=weights,
        size=seen.size,
        frames=wanted.frames,
        rate_hz=wanted.rate_hz,
        device=str(device),
        precision=str(precision_of(wanted.precision, device)).removeprefix("torch."),
        slow_track_threads=IDLE.slow_track_threads or cores(),
        load_average=load_average,
        other_cores=neighbours.cores(),
        machine=describe(device.type),
    )
    held = memory.Memory(
        weights_mb=memory.weights_mb(segmenter),
        ddrnet_weights_mb=memory.weights_mb(ddrnet),
        before_mb=before_mb,
        peak_mb=peak_mb,
        gpu_peak_mb=gpu_peak_mb,
        camera_mb=scaling.camera_mb(rigs),
    )
    counted, graphs = arithmetic.count(segmenter.config, seen.size), captures(segmenter)
    return Benchmark(
        facts,
        sides,
        kernel,
        own_kernel,
        best,
        resolutions,
        rigs,
        held,
        counted,
        graphs,
    )


def _kernels(
    segmenter: Segmenter, size: tuple[int, int], repeats: int
) -> tuple[limits.Limits, Kernel, Kernel]:
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
    return best, measured[0], measured[1]


@contextmanager
def _bar(name: str, total: int) -> Iterator[Callable[[int], object]]:
    with tqdm(total=total, desc=name, leave=False) as bar:
        yield bar.update
