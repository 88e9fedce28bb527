"""The report of a benchmark: tables and notes on the terminal, and a page with its charts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.console import Console

from lowlat_seg_ros.lab.benchmark.costs import Cameras, Resolutions
from lowlat_seg_ros.lab.benchmark.kernel import Kernel
from lowlat_seg_ros.lab.benchmark.measure import Benchmark
from lowlat_seg_ros.lab.benchmark.methods import PACED, Comparison, MethodResult
from lowlat_seg_ros.lab.benchmark.timing import EndToEnd, Latency
from lowlat_seg_ros.lab.report import (
    OTHERS,
    OURS,
    PER_FRAME,
    QUIET,
    VARIANTS,
    Row,
    Table,
    log_milliseconds,
    markdown,
    new_axes,
    pictures,
    save,
    terminal_table,
)

#: Name of the page in the folder of the results.
PAGE = "benchmark.md"

#: Share of the frames that must find Sh busy for it to be called saturated.
SATURATED = 0.95

_PERCENTILES = ("p50", "p95", "p99", "max")

#: Colour of Sl and AdaptNet alone, beside those of all charts.
ALONE = "#ccbb44"

#: Colour of each method; what is paced is a whole line, what runs back to back a dotted one.
_COLOURS = {
    "full": PER_FRAME,
    "ddrnet23_slim": OTHERS,
    "full_paced": PER_FRAME,
    "ddrnet23_slim_paced": OTHERS,
    "single_frame_paced": ALONE,
    "fast_idle": VARIANTS,
    "fast_busy": OURS,
}


def tables(done: Benchmark) -> dict[str, Table]:
    """All tables by their titles; the first column holds names as in the JSON."""
    found = {}
    if done.comparison is not None:
        found["Frame in to mask out, ms"] = _methods(done.comparison.methods)
    if len(done.comparisons) > 1:
        found["At each rate, p50 / p99 in ms"] = _rates(done.comparisons)
    if done.steady is not None:
        found["One after another, ms"] = _methods({"fast_busy": done.steady})
    if done.bars:
        found["Ratios"] = _named(("ratio", "value"), done.bars, ".3f")
    if done.comparison is not None:
        rows = [
            (f"{method}: {stage.removesuffix('_ms')}", *_four(latency))
            for method, stages in done.comparison.stages.items()
            for stage, latency in stages.items()
        ]
        found["Stages, ms"] = Table.plain(("stage", *_PERCENTILES), rows)
        found["Slow track"] = _slow_track(done.comparison)
    if done.freshness is not None:
        values = asdict(done.freshness)
        found["Exact features, by default"] = _named(("freshness", "value"), values, ".3g")
    if done.propagation is not None:
        for kernel in (done.propagation.paper, done.propagation.here):
            found[f"Propagation, {kernel.shape}, median ms"] = _propagation(kernel)
    if done.resolutions is not None:
        rows = [
            (f"{point.width}x{point.height}", f"{point.megapixels:.3f}", *_four(point.latency),
             f"{point.latency.p50_ms / point.megapixels:.0f}")
            for point in done.resolutions.sizes
        ]  # fmt: skip
        columns: Row = ("size", "Mpx", *_PERCENTILES, "ms/Mpx")
        found["Fast track over the resolution, ms"] = Table.plain(columns, rows)
    if done.cameras:
        rows = [
            (str(one.cameras), *_four(one.latency), ms_text(one.latency.p50_ms / one.cameras),
             f"{1e3 / one.latency.p50_ms:.1f}")
            for one in done.cameras
        ]  # fmt: skip
        columns = ("cameras", *_PERCENTILES, "ms each", "max Hz")
        found["Fast track over the number of cameras, ms"] = Table.plain(columns, rows)
    if done.end_to_end:
        found["Live node, p50 / p99 in ms"] = _end_to_end(done.end_to_end)
    if done.memory is not None:
        values = asdict(done.memory)
        rows = [(name, "-" if mb != mb else f"{mb:.0f}") for name, mb in values.items()]
        found["Memory, MB"] = Table.plain(("memory", "MB"), rows)
    counted = asdict(done.multiply_adds)
    found["Multiply-adds of a frame"] = _named(("part", "1e9, or share"), counted, ".3g")
    found["CUDA graphs"] = _named(("graphs", "number"), asdict(done.graphs), "d")
    return found


def _end_to_end(measured: Sequence[EndToEnd]) -> Table:
    columns = ("camera", "masks", "engine", "callback to published", "stamp to received", "all")
    rows = [
        (f"{one.width}x{one.height}, {one.rate_hz:g} Hz", f"{one.masks} of {one.frames}",
         *map(_two, (one.engine, one.published, one.received, one.total)))
        for one in measured
    ]  # fmt: skip
    return Table.plain(columns, rows)


def _methods(methods: Mapping[str, MethodResult]) -> Table:
    rows = [
        (name, *_four(method.latency), f"{method.rate_hz:.1f}", str(method.threads),
         f"{method.other_cores:.1f}", f"{method.control.p99_ms / method.control.p50_ms:.2f}",
         f"{method.late:.2%}", f"{method.excused:.2%}")
        for name, method in methods.items()
    ]  # fmt: skip
    columns = ("frames/s", "thr", "others", "control", "late", "excused")
    return Table.plain(("method", *_PERCENTILES, *columns), rows)


def _rates(comparisons: Sequence[Comparison]) -> Table:
    rows = [(name, *(_two(one.methods[name].latency) for one in comparisons)) for name in PACED]
    return Table.plain(("method", *(f"{one.rate_hz:g} Hz" for one in comparisons)), rows)


def _slow_track(comparison: Comparison) -> Table:
    work = comparison.refinements
    rows = [
        ("job", f"{work.job.p50_ms:.1f} ms (p50), {work.job.max_ms:.1f} ms (max)"),
        ("busy_per_s", f"{work.busy_per_s:.2f} refinements/s"),
        ("idle_per_s", f"{work.idle_per_s:.2f} refinements/s"),
        ("idle_time_share", f"{work.idle_time_share:.0%} of the time"),
        ("allowed_per_s", f"{work.allowed_per_s:.2f} refinements/s"),
        ("share_of_allowed", f"{work.share_of_allowed:.0%}"),
        ("saturated_share", f"{work.saturated_share:.0%} of the frames"),
    ]
    return Table.plain(("slow track", "value"), rows)


def _propagation(kernel: Kernel) -> Table:
    rows = []
    for load, times in (("alone", kernel.alone), ("beside_busy_core", kernel.beside_busy_core)):
        medians = map(ms_text, (times.ms, times.unfold_ms, times.conv3x3_ms))
        share = f"{kernel.roofline_fraction:.0%}" if load == "alone" else "-"
        rows.append((load, *medians, f"{times.vs_unfold:.1f}x", f"{times.vs_conv3x3:.2f}x", share))
    columns = ("load", "ours", "unfold", "conv3x3", "vs_unfold", "vs_conv3x3", "roofline")
    return Table.plain(columns, rows)


def _named(columns: Row, values: dict[str, Any], form: str) -> Table:
    return Table.plain(columns, [(name, f"{value:{form}}") for name, value in values.items()])


def _four(latency: Latency) -> Row:
    return tuple(map(ms_text, (latency.p50_ms, latency.p95_ms, latency.p99_ms, latency.max_ms)))


def _two(latency: Latency) -> str:
    return f"{ms_text(latency.p50_ms)} / {ms_text(latency.p99_ms)}"


def ms_text(milliseconds: float) -> str:
    """Three digits at least, as times reach from microseconds to seconds."""
    return f"{milliseconds:.1f}" if milliseconds >= 10 else f"{milliseconds:.3g}"


def notes(done: Benchmark) -> list[str]:
    """Sentences that say how the figures are to be read, and what they were measured on."""
    facts, found = done.facts, []
    if done.comparison is not None:
        found.append(
            "full, ddrnet23_slim and single_frame (Sl and AdaptNet alone) run on every frame, "
            "on all cores or on all but one (thr), and by the runtime or by PyTorch, whichever was "
            "fastest (OpenVINO on two at most); the first two back to back, and "
            f"all three paced, at {facts.rate_hz:g} Hz. So is the fast track, whose "
            f"frames have {facts.priority} priority; its slow track has "
            f"{facts.slow_track_threads} CPU threads: no frame is a key frame in fast_idle; in "
            "fast_busy every one is, and while none waits Sh refines the last one again. All "
            "take turns in one process. others: cores that other processes kept busy meanwhile. "
            "control: p99 over p50 of a fixed convolution after each frame, which tells how "
            "restless the machine itself was."
        )
    if done.comparison is not None or done.steady is not None:
        found.append(
            "late: share of the masks that were out later than the next frame was due, without "
            "those where the control took more than twice its median, which are excused."
        )
    if done.propagation is not None:
        limits = done.propagation.limits
        found.append(
            "Propagation runs on one CPU thread, as in the engine, unfold and the convolution on "
            "the fast track's. roofline: share of what is possible at "
            f"{limits.memory_gb_per_s:.1f} GB/s and {limits.multiply_adds_g_per_s:.1f} G "
            "multiply-adds/s, measured here."
        )
    if done.resolutions is not None:
        line = done.resolutions
        found.append(
            f"Over the resolution: {line.base_ms:.1f} ms + {line.ms_per_megapixel:.0f} ms per "
            f"megapixel, within {line.linear_deviation:.0%}."
        )
    if done.end_to_end:
        found.append(
            "In the live node the camera publishes in a process of its own, with this package's "
            "Fast DDS profile unless another was set; it, the node and the subscriber keep the "
            "memory that they free. Callback to published and stamp to received are without the "
            "engine's time."
        )
    if done.cameras:
        found.append(
            "Several cameras are segmented one after another, and the time is that of all of them."
        )
    found += [
        f"Weights: {facts.weights}. Inner convolutions of all networks: {facts.precision}.",
        f"Measured on {facts.machine}; load average {facts.load_average:.1f} before.",
    ]
    if facts.other_cores > QUIET:
        found.append(
            f"Other processes kept {facts.other_cores:.1f} cores busy meanwhile, so times are too "
            "long, above all of methods with several threads, which wait for each other: the "
            "ratios to full and ddrnet23_slim are too good."
        )
    if done.comparison is not None:
        share = done.comparison.refinements.saturated_share
        if share < SATURATED:
            found.append(
                f"Only {share:.0%} of the frames of fast_busy came while Sh was busy, so it was "
                "not saturated: the slow track's thread hardly got a core."
            )
    return found


def print_report(console: Console, done: Benchmark) -> None:
    """The tables and notes."""
    for title, table in tables(done).items():
        console.print(terminal_table(table, title))
    for note in notes(done):
        console.print(note, markup=False)


def write_page(folder: Path, done: Benchmark) -> Path:
    """Write the page and, in ``figures``, its charts to ``folder``; returns the page's path."""
    figures = folder / "figures"
    figures.mkdir(parents=True, exist_ok=True)
    charts: dict[Path, str] = {}
    if done.comparison is not None:
        path = figures / "latency.png"
        charts[path] = "Share of the frames whose mask is out within a time."
        latency_chart(path, done.facts.title, done.comparison)
    if len(done.comparisons) > 1:
        path = figures / "rates.png"
        charts[path] = "Frame in to mask out over the camera's rate."
        rates_chart(path, done.facts.title, done.comparisons)
    if done.resolutions is not None and done.cameras:
        path = figures / "scaling.png"
        charts[path] = "Fast track over the resolution and over cameras."
        scaling_chart(path, done.resolutions, done.cameras)
    blocks = [
        f"# Benchmark: {done.facts.title}",
        f"Made by this command:\n\n```\n{done.facts.command}\n```",
        "\n".join(f"- {note}" for note in notes(done)),
    ]
    for title, table in tables(done).items():
        blocks += [f"## {title}", markdown(table)]
    if charts:
        blocks += ["## Charts", *pictures(charts, folder)]
    path = folder / PAGE
    path.write_text("\n\n".join(blocks) + "\n")
    return path


def latency_chart(path: Path, title: str, comparison: Comparison) -> None:
    """Write a PNG: for each method the share of frames whose mask is out within a time."""
    figure, axes = new_axes((9.5, 4.5), title)
    for name, method in comparison.methods.items():
        times = np.sort([timing.latency_ms for timing in method.timings])
        share = np.arange(1, len(times) + 1) / len(times)
        p50, p99 = ms_text(method.latency.p50_ms), ms_text(method.latency.p99_ms)
        label = f"{name}: p50 {p50}, p99 {p99} ms"
        style = ":" if name in ("full", "ddrnet23_slim") else "-"
        axes.step(times, share, style, where="post", color=_COLOURS[name], label=label)
        axes.plot(method.latency.p99_ms, 0.99, "o", color=_COLOURS[name])
    log_milliseconds(axes, (1.0, 2.0, 5.0))
    axes.set_xlabel("frame in to mask out, ms (dots: p99)")
    axes.set_ylabel("share of the frames")
    save(figure, axes, path)


def rates_chart(path: Path, title: str, comparisons: Sequence[Comparison]) -> None:
    """Write a PNG: median and 99th percentile of each method over the camera's rate."""
    figure, axes = new_axes((9.5, 4.5), title)
    rates = [one.rate_hz for one in comparisons]
    for name in PACED:
        latencies = [one.methods[name].latency for one in comparisons]
        axes.plot(
            rates, [each.p50_ms for each in latencies], "o-", color=_COLOURS[name], label=name
        )
        axes.plot(rates, [each.p99_ms for each in latencies], "^:", color=_COLOURS[name])
    axes.set_xticks(rates, [f"{rate:g}" for rate in rates])
    axes.set_xlabel("frames per second of the camera")
    axes.set_ylabel("frame in to mask out, ms: p50, and p99 dotted")
    log_milliseconds(axes, (1.0, 1.5, 2.0, 3.0, 5.0, 7.0), "y")
    save(figure, axes, path)


def scaling_chart(path: Path, line: Resolutions, numbers: Sequence[Cameras]) -> None:
    """Write a PNG: the fast track's median over pixels, with the line fitted, and over cameras."""
    figure = Figure(figsize=(9.5, 4), layout="constrained")
    FigureCanvasAgg(figure)
    pixels, cameras = figure.subplots(1, 2)
    x = [point.megapixels for point in line.sizes]
    ends = np.array([0.0, max(x)])
    pixels.plot(ends, line.base_ms + line.ms_per_megapixel * ends, ":", color="black", label="line")
    pixels.plot(x, [p.latency.p50_ms for p in line.sizes], "o", color=OURS, label="p50")
    pixels.plot(x, [p.latency.p99_ms for p in line.sizes], "^", color=PER_FRAME, label="p99")
    pixels.set_xlabel("megapixels")
    x = [one.cameras for one in numbers]
    cameras.plot(x, [n.latency.p50_ms for n in numbers], "o-", color=OURS, label="p50")
    cameras.plot(x, [n.latency.p99_ms for n in numbers], "^", color=PER_FRAME, label="p99")
    cameras.set_xlabel("cameras, one after another")
    for axes in (pixels, cameras):
        axes.set_ylim(bottom=0)
        axes.set_ylabel("ms")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.2)
        axes.legend(frameon=False)
    figure.savefig(path, dpi=110)
