"""The report of a benchmark: on the terminal, and as a page with its charts."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from lowlat_seg_ros.lab.benchmark import plots
from lowlat_seg_ros.lab.benchmark.record import Benchmark
from lowlat_seg_ros.lab.benchmark.tables import tables
from lowlat_seg_ros.lab.evaluation.charts import Chart
from lowlat_seg_ros.lab.evaluation.page import markdown, picture
from lowlat_seg_ros.lab.evaluation.report import QUIET, terminal_table

#: Name of the page in the folder of the results.
PAGE = "benchmark.md"

#: Share of the frames that must find Sh busy for it to be called saturated.
SATURATED = 0.95


def notes(done: Benchmark) -> list[str]:
    """Sentences that say how the figures are to be read, and what they were measured on."""
    facts, said = done.facts, []
    if done.sides is not None:
        said.append(
            "full and ddrnet23_slim run on every frame, back to back, on all cores or on those of "
            "the fast track, whichever was faster (thr). The fast track gets frames at "
            f"{facts.rate_hz:g} Hz, its slow track has {facts.slow_track_threads} CPU threads: "
            "none is a key frame in fast_idle; in fast_busy every one is, and while none waits Sh "
            "refines the last one again. All take turns in one process. others: cores that other "
            "processes kept busy meanwhile."
        )
    if done.propagation is not None:
        limits = done.propagation.limits
        said.append(
            "Propagation runs on one CPU thread, as in the engine, unfold and the convolution on "
            "the fast track's. roofline: share of what is possible at "
            f"{limits.memory_gb_per_s:.1f} GB/s and {limits.multiply_adds_g_per_s:.1f} G "
            "multiply-adds/s, measured here."
        )
    if done.resolutions is not None:
        line = done.resolutions
        said.append(
            f"Over the resolution: {line.base_ms:.1f} ms + {line.ms_per_megapixel:.0f} ms per "
            f"megapixel, within {line.linear_deviation:.0%}."
        )
    if done.cameras:
        said.append(
            "Several cameras are segmented one after another, and the time is that of all of them."
        )
    said += [
        f"Weights: {facts.weights}. Inner convolutions of all networks: {facts.precision}.",
        f"Measured on {facts.machine}; load average {facts.load_average:.1f} before.",
    ]
    return said + _warnings(done)


def _warnings(done: Benchmark) -> list[str]:
    others, said = done.facts.other_cores, []
    if others > QUIET:
        said.append(
            f"Other processes kept {others:.1f} cores busy meanwhile, so times are too long, above "
            "all of sides with several threads, which wait for each other: the ratios to full and "
            "ddrnet23_slim are too good."
        )
    share = 1.0 if done.sides is None else done.sides.contest.refinements.saturated_share
    if share < SATURATED:
        said.append(
            f"Only {share:.0%} of the frames of fast_busy came while Sh was busy, so it was not "
            "saturated: the slow track's thread hardly got a core."
        )
    return said


def print_report(console: Console, done: Benchmark) -> None:
    """The tables and notes."""
    for title, grid in tables(done).items():
        console.print(terminal_table(grid, title))
    for note in notes(done):
        console.print(note, markup=False)


def write_page(folder: Path, done: Benchmark) -> Path:
    """Write the page and, in ``figures``, its charts to ``folder``; returns the page's path."""
    figures = folder / "figures"
    figures.mkdir(parents=True, exist_ok=True)
    charts = []
    if done.sides is not None:
        path = figures / "latency.png"
        plots.latency_chart(path, done.facts.title, done.sides.contest)
        charts.append(Chart(path, "Share of the frames whose mask is out within a time."))
    if done.resolutions is not None and done.cameras:
        path = figures / "scaling.png"
        plots.scaling_chart(path, done.resolutions, done.cameras)
        charts.append(Chart(path, "Fast track over the resolution and over cameras."))
    blocks = [
        f"# Benchmark: {done.facts.title}",
        f"Made by this command:\n\n```\n{done.facts.command}\n```",
        "\n".join(f"- {note}" for note in notes(done)),
    ]
    for title, grid in tables(done).items():
        blocks += [f"## {title}", markdown(grid)]
    if charts:
        blocks += ["## Charts", *(picture(chart, folder) for chart in charts)]
    path = folder / PAGE
    path.write_text("\n\n".join(blocks) + "\n")
    return path
