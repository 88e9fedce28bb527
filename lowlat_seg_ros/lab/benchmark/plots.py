"""Charts of a benchmark, drawn without a display."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator, ScalarFormatter

from lowlat_seg_ros.lab.benchmark.contest import Contest
from lowlat_seg_ros.lab.benchmark.scaling import Resolutions, Rig
from lowlat_seg_ros.lab.benchmark.tables import ms_text
from lowlat_seg_ros.lab.evaluation.axes import OTHERS, OURS, PER_FRAME, VARIANTS, new_axes, save

#: Colour and line of each side.
_LINES = {
    "full": (PER_FRAME, "-"),
    "ddrnet23_slim": (OTHERS, "-"),
    "fast_idle": (VARIANTS, "-"),
    "fast_busy": (OURS, "-"),
}


def latency_chart(path: Path, title: str, contest: Contest) -> None:
    """Write a PNG: for each side the share of frames whose mask is out within a time."""
    figure, axes = new_axes((9.5, 4.5), title)
    for name, side in contest.sides.items():
        colour, style = _LINES[name]
        times = np.sort([timing.latency_ms for timing in side.timings])
        share = np.arange(1, len(times) + 1) / len(times)
        p50, p99 = ms_text(side.latency.p50_ms), ms_text(side.latency.p99_ms)
        label = f"{name}: p50 {p50}, p99 {p99} ms"
        axes.step(times, share, where="post", color=colour, linestyle=style, label=label)
        axes.plot(side.latency.p99_ms, 0.99, "o", color=colour)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("frame in to mask out, ms (dots: p99)")
    axes.set_ylabel("share of the frames")
    save(figure, axes, path)


def scaling_chart(path: Path, line: Resolutions, rigs: Sequence[Rig]) -> None:
    """Write a PNG: the fast track's median over pixels, with the line fitted, and over cameras."""
    figure = Figure(figsize=(9.5, 4), layout="constrained")
    FigureCanvasAgg(figure)
    pixels, cameras = figure.subplots(1, 2)
    x = [point.megapixels for point in line.sizes]
    p50, p99 = ([getattr(p.latency, f) for p in line.sizes] for f in ("p50_ms", "p99_ms"))
    ends = np.array([0.0, max(x)])
    pixels.plot(ends, line.base_ms + line.ms_per_megapixel * ends, ":", color="black", label="line")
    pixels.plot(x, p50, "o", color=OURS, label="p50")
    pixels.plot(x, p99, "^", color=PER_FRAME, label="p99")
    pixels.set_xlabel("megapixels")
    counts = [rig.cameras for rig in rigs]
    cameras.plot(counts, [rig.latency.p50_ms for rig in rigs], "o-", color=OURS, label="p50")
    cameras.plot(counts, [rig.latency.p99_ms for rig in rigs], "^", color=PER_FRAME,
                 label="p99")  # fmt: skip
    cameras.set_xlabel("cameras, one after another")
    for axes in (pixels, cameras):
        axes.set_ylim(bottom=0)
        axes.set_ylabel("ms")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.2)
        axes.legend(frameon=False)
    figure.savefig(path, dpi=110)
