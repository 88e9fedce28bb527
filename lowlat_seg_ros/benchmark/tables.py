"""The figures of a benchmark as rows of text, for the terminal and for a page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from lowlat_seg_ros.benchmark.kernel import Kernel, Times
from lowlat_seg_ros.benchmark.record import Benchmark
from lowlat_seg_ros.benchmark.timing import Latency
from lowlat_seg_ros.evaluation.grid import Grid, Row

_PERCENTILES = ("p50", "p95", "p99", "max")


def tables(done: Benchmark) -> dict[str, Grid]:
    """All tables by their titles; the first column holds names as in the JSON."""
    return {
        "Frame in to mask out, ms": _sides(done),
        "Ratios": _ratios(done),
        "Stages, ms": _stages(done),
        "Slow track": _slow_track(done),
        **{
            f"Propagation, {kernel.shape}, median ms": _propagation(kernel)
            for kernel in (done.kernel, done.own_kernel)
        },
        "Fast track over the resolution, ms": _resolutions(done),
        "Fast track over the number of cameras, ms": _cameras(done),
        "Memory, MB": _memory(done),
        "Multiply-adds of a frame": _multiply_adds(done),
        "CUDA graphs": _grid(("graphs", "number"), _named(asdict(done.graphs), "d")),
    }


def _sides(done: Benchmark) -> Grid:
    columns = ("side", *_PERCENTILES, "frames/s", "thr", "others")
    return _grid(
        columns,
        [
            (name, *_four(side.latency), f"{side.rate_hz:.1f}", str(side.threads),
             f"{side.other_cores:.1f}")
            for name, side in done.contest.sides.items()
        ],
    )  # fmt: skip


def _ratios(done: Benchmark) -> Grid:
    return _grid(("ratio", "value"), [(n, f"{v:.3f}") for n, v in asdict(done.bars).items()])


def _stages(done: Benchmark) -> Grid:
    rows = [
        (f"{side}: {stage.removesuffix('_ms')}", *_four(latency))
        for side, stages in done.contest.stages.items()
        for stage, latency in stages.items()
    ]
    return _grid(("stage", *_PERCENTILES), rows)


def _slow_track(done: Benchmark) -> Grid:
    work = done.contest.refinements
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


def _resolutions(done: Benchmark) -> Grid:
    rows = [
        (f"{point.width}x{point.height}", f"{point.megapixels:.3f}", *_four(point.latency),
         f"{point.latency.p50_ms / point.megapixels:.0f}")
        for point in done.resolutions.sizes
    ]  # fmt: skip
    return _grid(("size", "Mpx", *_PERCENTILES, "ms/Mpx"), rows)


def _cameras(done: Benchmark) -> Grid:
    rows = [
        (str(rig.cameras), *_four(rig.latency), ms_text(rig.latency.p50_ms / rig.cameras),
         f"{1e3 / rig.latency.p50_ms:.1f}")
        for rig in done.rigs
    ]  # fmt: skip
    return _grid(("cameras", *_PERCENTILES, "ms each", "max Hz"), rows)


def _multiply_adds(done: Benchmark) -> Grid:
    return _grid(("part", "1e9, or share"), _named(asdict(done.multiply_adds), ".3g"))


def _named(values: dict[str, Any], form: str) -> list[Row]:
    return [(name, f"{value:{form}}") for name, value in values.items()]


def _memory(done: Benchmark) -> Grid:
    values = asdict(done.memory).items()
    rows = [(name, "-" if value != value else f"{value:.0f}") for name, value in values]
    return _grid(("memory", "MB"), rows)


def _grid(columns: Row, rows: Sequence[Row]) -> Grid:
    return Grid(columns, {"": list(rows)})


def _four(latency: Latency) -> Row:
    return tuple(map(ms_text, (latency.p50_ms, latency.p95_ms, latency.p99_ms, latency.max_ms)))


def ms_text(milliseconds: float) -> str:
    """Three digits at least, as times reach from microseconds to seconds."""
    return f"{milliseconds:.1f}" if milliseconds >= 10 else f"{milliseconds:.3g}"
