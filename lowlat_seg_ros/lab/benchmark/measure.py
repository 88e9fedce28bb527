"""All measurements of a benchmark, one after another, and the record of what they gave."""

from __future__ import annotations

import argparse
import dataclasses
import os
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from lowlat_seg_ros.engine.cpu_threads import (
    ExternalCpuLoad,
    cores,
    foreground_threads,
    run_in_temporary_thread,
)
from lowlat_seg_ros.engine.runner import format_name
from lowlat_seg_ros.lab.benchmark import costs, methods
from lowlat_seg_ros.lab.benchmark.costs import Cameras, Freshness, Memory, MultiplyAdds, Resolutions
from lowlat_seg_ros.lab.benchmark.kernel import (
    PAPER,
    PAPER_GPU,
    Kernel,
    Limits,
    Shape,
    measure_kernel,
    measure_limits,
)
from lowlat_seg_ros.lab.benchmark.methods import Comparison, MethodResult
from lowlat_seg_ros.lab.benchmark.timing import IDLE, Camera, EndToEnd
from lowlat_seg_ros.lab.data import clip
from lowlat_seg_ros.lab.report import Machine, describe
from lowlat_seg_ros.network.inference import resolve_device
from lowlat_seg_ros.network.segmenter import Segmenter

#: Different images of a run; time does not depend on what is seen.
IMAGES = 20

#: Seconds for which each operator of the kernels is timed, for each frame of the other parts.
SECONDS_PER_FRAME = 0.01


@dataclass(frozen=True)
class Captures:
    """CUDA graphs of a network: ``captured``, and parts ``failed`` to be, which run without one."""

    captured: int = 0
    failed: int = 0


def captures(segmenter: Segmenter) -> Captures:
    if next(segmenter.parameters()).device.type != "cuda":
        return Captures()
    from lowlat_seg_ros.engine.cuda import graphs_of

    graphs = graphs_of(segmenter)
    return Captures(sum(g.captured for g in graphs), sum(g.failed for g in graphs))


@dataclass(frozen=True)
class Facts:
    """What must be known to read the figures.

    ``command``: what was run, without the places of files. ``weights``: name and SHA-256 of the
    checkpoint, or that they are random. ``size``: (H, W) of the frames, ``frames`` of each method.
    ``precision``: what the inner convolutions of all networks run in. ``priority``: of the fast
    track's frames. ``slow_track_threads``: CPU
    threads of Sh; those of the others stand with their figures. ``load_average``: threads of all
    processes that were ready to run in the minute before; ``other_cores``: cores that other
    processes used during the run.
    """

    command: str
    config: str
    weights: str
    size: tuple[int, int]
    frames: int
    rate_hz: float
    device: str
    precision: str
    priority: str
    slow_track_threads: int
    load_average: float
    other_cores: float
    machine: Machine

    @property
    def title(self) -> str:
        """Network, size and frames in a few words."""
        height, width = self.size
        return f"{self.config}, {width}x{height}, {self.frames} frames of each"


@dataclass(frozen=True)
class Kernels:
    """Propagation at the ``paper``'s size and at that of the network ``here``; the ``limits``."""

    paper: Kernel
    here: Kernel
    limits: Limits


@dataclass(frozen=True)
class Benchmark:
    """What was not measured is None, ``cameras`` and ``end_to_end`` empty.

    ``graphs``: what CUDA graphs were captured; nothing on a CPU.
    """

    facts: Facts
    multiply_adds: MultiplyAdds
    graphs: Captures
    comparisons: tuple[Comparison, ...] = ()  # one for each rate of the camera
    steady: MethodResult | None = None
    memory: Memory | None = None
    propagation: Kernels | None = None
    resolutions: Resolutions | None = None
    cameras: tuple[Cameras, ...] = ()
    freshness: Freshness | None = None
    end_to_end: tuple[EndToEnd, ...] = ()

    @property
    def comparison(self) -> Comparison | None:
        """At the first rate."""
        return self.comparisons[0] if self.comparisons else None

    @property
    def bars(self) -> dict[str, float]:
        """The ratios by which the engine is judged, those that were measured.

        Ratios of latencies are better when small. ``propagation_vs_*``: how many times as fast as
        the other. ``linear_deviation``: of the cost over the pixels from a straight line.
        """
        ratios: dict[str, float] = {}
        if self.comparison is not None:
            latency = {name: method.latency for name, method in self.comparison.methods.items()}
            worst_ms = latency["fast_busy"].p99_ms
            ratios |= {
                "fast_busy_p99_over_full_p50": worst_ms / latency["full"].p50_ms,
                "fast_busy_p99_over_fast_idle_p50": worst_ms / latency["fast_idle"].p50_ms,
                "fast_busy_p99_over_ddrnet_p50": worst_ms / latency["ddrnet23_slim"].p50_ms,
                "fast_busy_p99_over_p50": worst_ms / latency["fast_busy"].p50_ms,
                "fast_busy_p99_over_ddrnet_paced_p99": worst_ms
                / latency["ddrnet23_slim_paced"].p99_ms,
                "refinements_share_of_allowed": self.comparison.refinements.share_of_allowed,
            }
        if self.propagation is not None:
            paper = self.propagation.paper
            ratios |= {
                "propagation_vs_unfold": paper.alone.vs_unfold,
                "propagation_vs_conv3x3": paper.alone.vs_conv3x3,
                "propagation_vs_unfold_beside_busy_core": paper.beside_busy_core.vs_unfold,
                "propagation_vs_conv3x3_beside_busy_core": paper.beside_busy_core.vs_conv3x3,
            }
        if self.resolutions is not None:
            ratios["linear_deviation"] = self.resolutions.linear_deviation
        return ratios

    def as_json(self) -> dict[str, Any]:
        """For :func:`~lowlat_seg_ros.lab.report.write_json`; units stand in the names.

        What was not measured is not there.
        """
        written: dict[str, Any] = {"facts": asdict(self.facts)}
        if self.comparison is not None and self.memory is not None:
            written |= _by_name(self.comparison)
            written |= {
                "rates": {f"{one.rate_hz:g}": _by_name(one) for one in self.comparisons},
                "ratio_busy_p99": self.bars["fast_busy_p99_over_full_p50"],
                "refinements_per_s": self.comparison.refinements.busy_per_s,
                "refinements": asdict(self.comparison.refinements),
                "stages": self.comparison.stages,
                "memory": asdict(self.memory),
            }
        if self.propagation is not None:
            for name, kernel in (
                ("propagation", self.propagation.paper),
                ("propagation_here", self.propagation.here),
            ):
                fields = asdict(kernel)
                written[name] = fields.pop("alone") | fields
            written["limits"] = asdict(self.propagation.limits)
        if self.resolutions is not None:
            written["resolutions"] = asdict(self.resolutions)
        if self.steady is not None:
            written["steady"] = _method(self.steady)
        if self.freshness is not None:
            written["freshness"] = asdict(self.freshness)
        if self.cameras:
            written["cameras"] = [asdict(one) for one in self.cameras]
        if self.end_to_end:
            written["end_to_end"] = [asdict(one) for one in self.end_to_end]
        return written | {
            "multiply_adds": asdict(self.multiply_adds),
            "graphs": asdict(self.graphs),
            "bars": self.bars,
        }


def _by_name(comparison: Comparison) -> dict[str, Any]:
    return {name: _method(method) for name, method in comparison.methods.items()}


def _method(method: MethodResult) -> dict[str, Any]:
    others = ("rate_hz", "threads", "other_cores", "late", "excused")
    control = {"control_p50_ms": method.control.p50_ms, "control_p99_ms": method.control.p99_ms}
    return asdict(method.latency) | {key: getattr(method, key) for key in others} | control


def everything(
    args: argparse.Namespace,
    parts: Collection[str],
    rates_hz: Sequence[float],
    frames: int,
    command: str,
) -> Benchmark:
    """Measure those of ``parts`` that need no ROS, by the options ``args``; takes minutes.

    ``frames`` of each method, of a camera of each of ``rates_hz``, or of the first one where a part
    has one rate; ``command`` is for the report. Shows progress bars. Raises ``ConfigError`` for the
    device, ``DataError`` for a size that cannot be rendered, ``CheckpointError``.
    """
    device, rate_hz = resolve_device(args.device), rates_hz[0]
    load_average, other_work = os.getloadavg()[0], ExternalCpuLoad()
    camera = Camera(rendered(rate_hz, args.resolution))
    settings = {"foreground_priority": args.priority, "runtime": args.runtime}

    before_mb = costs.status_mb("VmRSS")
    # In a thread that ends, as loading must leave no OpenMP threads with this one.
    segmenter, name, weights = run_in_temporary_thread(lambda: _network(args, device))

    memory = kernels = resolutions = fresh = steady = None
    compared: tuple[Comparison, ...] = ()
    over_cameras: tuple[Cameras, ...] = ()
    if "sides" in parts:
        with bar("sides", methods.steps(frames, len(rates_hz))) as step:
            ddrnet = run_in_temporary_thread(
                lambda: costs.ddrnet(segmenter, args.precision, camera.images[0])
            )
            compared = methods.compare(segmenter, ddrnet, camera, frames, rates_hz, settings, step)
        memory = costs.memory(segmenter, ddrnet, before_mb)
    if "steady" in parts:
        with bar("steady", frames) as step:
            steady = methods.steady(segmenter, camera, frames, rate_hz, settings, step)
    if "freshness" in parts:
        with bar("freshness", frames) as step:
            fresh = costs.freshness(segmenter, camera, frames, rate_hz, step)
    if "resolutions" in parts:
        with bar("resolutions", len(costs.SCALES) * frames) as step:
            resolutions = costs.over_resolutions(segmenter, camera, frames, step)
    if "cameras" in parts:
        with bar("cameras", len(costs.CAMERAS)) as step:
            over_cameras = costs.over_cameras(segmenter, camera, frames, step)
    if memory is not None and over_cameras:
        first, last = over_cameras[0], over_cameras[-1]
        each_mb = (last.memory_mb - first.memory_mb) / (last.cameras - first.cameras)
        memory = dataclasses.replace(memory, camera_mb=each_mb)
    if "propagation" in parts:
        with bar("propagation", 3) as step:
            kernels = _kernels(segmenter, camera.size, SECONDS_PER_FRAME * frames, step)
    facts = Facts(
        command=command,
        config=name,
        weights=weights,
        size=camera.size,
        frames=frames,
        rate_hz=rate_hz,
        device=str(device),
        precision=format_name(segmenter, args.runtime),
        priority=args.priority,
        slow_track_threads=IDLE.slow_track_threads or cores(),
        load_average=load_average,
        other_cores=other_work.cores(),
        machine=describe(device.type),
    )
    counted, graphs = costs.count(segmenter.config, camera.size), captures(segmenter)
    return Benchmark(
        facts, counted, graphs, compared, steady, memory, kernels, resolutions, over_cameras, fresh
    )


def _network(args: argparse.Namespace, device: torch.device) -> tuple[Segmenter, str, str]:
    """The network of the options, its name, and what its weights are."""
    checkpoint: Path | None = args.checkpoint or costs.shipped(args.config)
    if checkpoint is None:
        name = args.config
        segmenter, weights = costs.with_random_weights(name, device, args.precision)
    else:
        name = checkpoint.stem
        segmenter, weights = costs.loaded(checkpoint, device, args.precision, args.runtime)
    if args.high_scale is not None:
        segmenter.read_at(args.high_scale)
    return segmenter, name, weights


def rendered(rate_hz: float, size: tuple[int, int] | None) -> list[np.ndarray]:
    """:data:`IMAGES` pictures, uint8 (H, W, 3) RGB, of a drive at ``rate_hz``."""
    _, drive = clip.rendered(1, IMAGES, rate_hz, size)
    with bar("rendering", IMAGES) as step:
        images = []
        for index in range(IMAGES):
            images.append(drive[index].image)
            step(1)
    return images


def _kernels(
    segmenter: Segmenter, size: tuple[int, int], seconds: float, progress: Callable[[int], object]
) -> Kernels:
    """The machine's limits, and propagation at the paper's size and at that of this network."""
    device, config = next(segmenter.parameters()).device, segmenter.config
    height, width = (-(-side // config.propagation_stride) for side in size)
    here = Shape(config.high_channels, height, width, config.kernel_size)
    threads = foreground_threads(IDLE)
    limits = measure_limits(device, seconds)
    progress(1)
    measured = []
    for shape in (PAPER if device.type == "cpu" else PAPER_GPU, here):
        measured.append(measure_kernel(shape, device, limits, threads, seconds))
        progress(1)
    paper, own = measured
    return Kernels(paper, own, limits)


@contextmanager
def bar(name: str, total: int) -> Iterator[Callable[[int], object]]:
    """A progress bar; gives what is called with how many steps were done."""
    with tqdm(total=total, desc=name, leave=False) as shown:
        yield shown.update
