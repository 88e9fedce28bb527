"""Draws the charts that the results of a comparison allow."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lowlat_seg_ros.lab.evaluation import figures, frontier
from lowlat_seg_ros.lab.evaluation.axes import Entry
from lowlat_seg_ros.lab.evaluation.comparison import Comparison
from lowlat_seg_ros.lab.evaluation.footage import Footage

#: Columns of the image grid, those that were measured.
GRID_METHODS = ("full", "single_frame", "clockwork", "dff", "adaptive", "adaptive_low_latency")


@dataclass(frozen=True)
class Chart:
    """A picture, and what it shows in a sentence."""

    path: Path
    caption: str


Draw = Callable[[Path, list[Entry], str], None]

#: Name, caption, which methods it takes, and how it is drawn.
_CHARTS: tuple[tuple[str, str, Callable[[Entry], bool], Draw], ...] = (
    (
        "latency_accuracy",
        "mIoU over latency (the paper's Fig. 1).",
        frontier.in_chart,
        frontier.latency_accuracy,
    ),
    (
        "schedules",
        "mIoU over the interval of key frames, by schedule (Fig. 5).",
        figures.in_schedule_chart,
        figures.schedule_chart,
    ),
    (
        "distance",
        "mIoU by distance from the key frame.",
        figures.in_distance_chart,
        figures.distance_chart,
    ),
)


def draw(folder: Path, footage: Footage, done: Comparison) -> list[Chart]:
    """Write the charts to ``folder``, which is made if need be."""
    folder.mkdir(parents=True, exist_ok=True)
    entries = [Entry(s, done.results[s.name]) for s in done.specs if s.name in done.results]
    title, charts = f"{footage.name}, {len(footage)} frames", []
    for name, caption, takes, drawn in _CHARTS:
        shown = [entry for entry in entries if takes(entry)]
        if shown:
            charts.append(Chart(folder / f"{name}.png", caption))
            drawn(charts[-1].path, shown, title)
    engine, full = (done.results.get(name) for name in ("adaptive_low_latency", "full"))
    if engine is not None and full is not None:
        text = "Deviation from the key frame, measured and predicted (Fig. 3)."
        charts.append(Chart(folder / "deviation.png", text))
        figures.deviation_chart(charts[-1].path, engine, full.masks, title)
    charts.append(Chart(folder / "grid.png", "Masks side by side (Figs. 6 and 7)."))
    shown = [entry for entry in entries if entry.spec.name in GRID_METHODS]
    figures.image_grid(charts[-1].path, footage, shown)
    return charts
