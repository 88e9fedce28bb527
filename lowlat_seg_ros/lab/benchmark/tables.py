"""The figures of a benchmark as rows of text, for the terminal and for a page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from lowlat_seg_ros.lab.benchmark.contest import Contest, Refinements
from lowlat_seg_ros.lab.benchmark.kernel import Kernel, Times
from lowlat_seg_ros.lab.benchmark.memory import Memory
from lowlat_seg_ros.lab.benchmark.record import Benchmark
from lowlat_seg_ros.lab.benchmark.scaling import Resolutions, Rig
from lowlat_seg_ros.lab.benchmark.timing import Latency
from lowlat_seg_ros.lab.evaluation.grid import Grid, Row

_PERCENTILES = ("p50", "p95", "p99", "max")


def tables(done: Benchmark) -> dict[str, Grid]:
    """All tables by their titles; the first column holds names as in the JSON."""
    grids = {}
    if done.sides is not None:
        grids["Frame in to mask out, ms"] = _sides(done.sides.contest)
    if ratios := done.bars.measured():
        grids["Ratios"] = _grid(("ratio", "value"), _named(ratios, ".3f"))
    if done.sides is not None:
        grids["Stages, ms"] = _stages(done.sides.contest)
        grids["Slow track"] = _slow_track(done.sides.contest.refinements)
    if done.freshness is not None:
        rows = _named(asdict(done.freshness), ".3g")
        grids["Exact features, by default"] = _grid(("freshness", "value"), rows)
    if done.propagation is not None:
        for kernel in (done.propagation.paper, done.propagation.here):
            grids[f"Propagation, {kernel.shape}, median ms"] = _propagation(kernel)
    if done.resolutions is not None:
        grids["Fast track over the resolution, ms"] = _resolutions(done.resolutions)
    if done.cameras:
        grids["Fast track over the number of cameras, ms"] = _cameras(done.cameras)
    if done.sides is not None:
        grids["Memory, MB"] = _memory(done.sides.memory)
    multiply_adds = _named(asdict(done.multiply_adds), ".3g")
    grids["Multiply-adds of a frame"] = _grid(("part", "1e9, or share"), multiply_adds)
    grids["CUDA graphs"] = _grid(("graphs", "number"), _named(asdict(done.graphs), "d"))
    return grids


def _sides(contest: Contest) -> Grid:
    columns = ("side", *_PERCENTILES, "frames/s", "thr", "others")
    return _grid(
        columns,
        [
            (name, *_four(side.latency), f"{side.rate_hz:.1f}", str(side.threads),
             f"{side.other_cores:.1f}")
            for name, side in contest.sides.items()
        ],
    )  # fmt: skip


def _stages(contest: Contest) -> Grid:
    rows = [
        (f"{side}: {stage.removesuffix('_ms')}", *_four(latency))
        for side, stages in contest.stages.items()
        for stage, latency in stages.items()
    ]
    return _grid(("stage", *_PERCENTILES), rows)


def _slow_track(work: Refinements) -> Grid:
    rows = [
        ("job", f"{work.job.p50_ms:.1f} ms (p50), {work.job.max_ms:.1f} ms (max)"),
        ("busy_per_s", f"{work.busy_per_s:.2f} refinements/s"),
        ("idle_per_s", f"{work.idle_per_s:.2f} refinements/s"),
        ("idle_time_share", f"{work.idle_time_share:.0%} of the time"),
        ("allowed_per_s", f"{work.allowed_per_s:.2f} refinements/s"),
        ("share_of_allowed", f"{work.share_of_allowed:.0%}"),
        ("saturated_share", f"{work.saturated_share:.0%} of the frames"),
    ]
    return _grid(("slow track", "value"), rows)


def _propagation(kernel: Kernel) -> Grid:
    columns = ("load", "ours", "unfold", "conv3x3", "vs_unfold", "vs_conv3x3", "roofline")
    alone = (*_times(kernel.alone), f"{kernel.roofline_fraction:.0%}")
    beside = (*_times(kernel.beside_busy_core), "-")
    return _grid(columns, [("alone", *alone), ("beside_busy_core", *beside)])


def _times(times: Times) -> Row:
    medians = map(ms_text, (times.ms, times.unfold_ms, times.conv3x3_ms))
    return (*medians, f"{times.vs_unfold:.1f}x", f"{times.vs_conv3x3:.2f}x")


def _resolutions(done: Resolutions) -> Grid:
    rows = [
        (f"{point.width}x{point.height}", f"{point.megapixels:.3f}", *_four(point.latency),
         f"{point.latency.p50_ms / point.megapixels:.0f}")
        for point in done.sizes
    ]  # fmt: skip
    return _grid(("size", "Mpx", *_PERCENTILES, "ms/Mpx"), rows)


def _cameras(rigs: Sequence[Rig]) -> Grid:
    rows = [
        (str(rig.cameras), *_four(rig.latency), ms_text(rig.latency.p50_ms / rig.cameras),
         f"{1e3 / rig.latency.p50_ms:.1f}")
        for rig in rigs
    ]  # fmt: skip
    return _grid(("cameras", *_PERCENTILES, "ms each", "max Hz"), rows)


def _named(values: dict[str, Any], form: str) -> list[Row]:
    return [(name, f"{value:{form}}") for name, value in values.items()]


def _memory(memory: Memory) -> Grid:
    values = asdict(memory).items()
    rows = [(name, "-" if value != value else f"{value:.0f}") for name, value in values]
    return _grid(("memory", "MB"), rows)


def _grid(columns: Row, rows: Sequence[Row]) -> Grid:
    return Grid(columns, {"": list(rows)})


def _four(latency: Latency) -> Row:
    return tuple(map(ms_text, (latency.p50_ms, latency.p95_ms, latency.p99_ms, latency.max_ms)))


def ms_text(milliseconds: float) -> str:
    """Three digits at least, as times reach from microseconds to seconds."""
    return f"{milliseconds:.1f}" if milliseconds >= 10 else f"{milliseconds:.3g}"
