"""Charts that compare methods, after the figures of the paper."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, ScalarFormatter

from lowlat_seg_ros.data.labels import colour_mask
from lowlat_seg_ros.evaluation.catalogue import INTERVALS, Spec
from lowlat_seg_ros.evaluation.footage import Footage
from lowlat_seg_ros.evaluation.metrics import deviation
from lowlat_seg_ros.evaluation.run import Moment, Result

_OURS, _OTHERS, _PER_FRAME = "#aa3377", "#4477aa", "#888888"
_MARKERS = "osD^vP*Xph<>d"
#: Distances from the key frame that are drawn; further ones are too rare to mean much.
_FARTHEST = 16
#: Rows of the image grid.
GRID_ROWS = 4


@dataclass(frozen=True)
class Entry:
    """A method and what it achieved."""

    spec: Spec
    result: Result


def latency_accuracy(path: Path, entries: Sequence[Entry], title: str) -> None:
    """Fig. 1: mIoU over latency; a method's mean is its marker, a line leads to its worst frame.

    The front joins the methods that no other beats in both mean latency and mIoU. The sweeps over
    key-frame intervals and Sh delays have charts of their own.
    """
    figure, axes = _figure((9, 5.5), title)
    shown = [e for e in entries if not _in_sweep(e.spec) and np.isfinite(e.result.avg_ms)]
    for number, entry in enumerate(shown):
        result, colour = entry.result, _colour(entry.spec)
        height = 100 * result.miou
        axes.plot([result.avg_ms, result.max_ms], [height] * 2, color=colour, linewidth=0.8)
        axes.plot(result.max_ms, height, "|", color=colour, markersize=8)
        marker = _MARKERS[number % len(_MARKERS)]
        axes.plot(result.avg_ms, height, marker, color=colour, markersize=8, linestyle="",
                  label=entry.spec.name, zorder=3)  # fmt: skip
    front = front_of([(e.result.avg_ms, e.result.miou) for e in shown])
    axes.step([x for x, _ in front], [100 * y for _, y in front], where="post", color="black",
              linewidth=0.8, linestyle=":", zorder=0, label="front")  # fmt: skip
    axes.set_xscale("log")
    for axis in (axes.xaxis.set_major_formatter, axes.xaxis.set_minor_formatter):
        axis(ScalarFormatter())
    axes.tick_params(axis="x", which="both", labelsize=9)
    axes.set_xlabel("latency in ms, frame in to mask out: mean (marker) to worst (bar)")
    axes.set_ylabel("mIoU in %")
    _save(figure, axes, path)


def front_of(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points (cost, gain) that no other beats: none is as cheap with as much gain."""
    best, front = float("-inf"), []
    for cost, gain in sorted(points, key=lambda point: (point[0], -point[1])):
        if gain > best:
            best = gain
            front.append((cost, gain))
    return front


def deviation_chart(
    path: Path, result: Result, full_masks: dict[int, np.ndarray], title: str
) -> None:
    """Fig. 3: how far each frame of the first drive has moved away from its key frame.

    Measured between the full network's masks of both, and as the selector predicts it.
    """
    figure, axes = _figure((11, 4), title)
    moments = _first_drive(result.moments)
    index = [m.index for m in moments]
    real = [deviation(full_masks[m.key_index], full_masks[m.index]) for m in moments]
    axes.plot(index, real, ".-", color=_OTHERS, label="measured, full masks")
    predicted = [(m.index, m.deviation) for m in moments if m.deviation is not None]
    axes.plot([i for i, _ in predicted], [d for _, d in predicted], ".--", color=_OURS,
              label="predicted by the selector")  # fmt: skip
    thresholds = [m.threshold for m in moments if m.threshold is not None]
    if thresholds:
        axes.axhline(thresholds[-1], color="black", linewidth=0.8, linestyle=":", label="threshold")
    for number, moment in enumerate(m for m in moments if m.is_key):
        axes.axvline(moment.index, color=_OURS, linewidth=0.8, alpha=0.5, zorder=0,
                     label="" if number else "becomes the key frame")  # fmt: skip
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylim(bottom=0)
    axes.set_xlabel("frame")
    axes.set_ylabel("deviation from the key frame,\nshare of pixels")
    _save(figure, axes, path)


def _first_drive(moments: Sequence[Moment]) -> list[Moment]:
    """Up to where the second epoch begins."""
    ends = [number for number, moment in enumerate(moments) if moment.first and number > 0]
    return list(moments[: ends[0]] if ends else moments)


def schedule_chart(path: Path, entries: Sequence[Entry], title: str) -> None:
    """Fig. 5: mIoU over the key-frame interval that came about, for each schedule."""
    figure, axes = _figure((8, 4.5), title)
    for name, colour, marker in (
        ("fixed", _PER_FRAME, "s"), ("threshold", _OTHERS, "^"), ("adaptive", _OURS, "o"),
    ):  # fmt: skip
        points = sorted(
            (1 / e.result.key_share, 100 * e.result.miou)
            for e in entries
            if e.spec.kind == "keyed" and e.spec.schedule == name
        )
        axes.plot([x for x, _ in points], [y for _, y in points], marker + "-", color=colour,
                  label=name)  # fmt: skip
    axes.set_xlabel("mean key-frame interval in frames")
    axes.set_ylabel("mIoU in %")
    _save(figure, axes, path)


def distance_chart(path: Path, entries: Sequence[Entry], title: str) -> None:
    """mIoU by distance from the key frame, for the methods that carry features on."""
    figure, axes = _figure((9, 5), title)
    longest = f"schedule_fixed_{INTERVALS[-1]}"
    shown = [
        e
        for e in entries
        if (not _in_sweep(e.spec) or e.spec.name == longest) and len(e.result.by_distance) > 1
    ]
    for number, entry in enumerate(shown):
        points = [(d, 100 * v) for d, v in entry.result.by_distance.items() if d <= _FARTHEST]
        axes.plot([d for d, _ in points], [v for _, v in points],
                  _MARKERS[number % len(_MARKERS)] + "-", label=entry.spec.name)  # fmt: skip
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("frames since the key frame")
    axes.set_ylabel("mIoU in %")
    _save(figure, axes, path)


def grid_rows(footage: Footage) -> list[int]:
    """Frames spread over the footage, for :func:`image_grid`."""
    rows = min(GRID_ROWS, len(footage))
    return [round((row + 0.5) * len(footage) / rows - 0.5) for row in range(rows)]


def image_grid(path: Path, footage: Footage, entries: Sequence[Entry]) -> None:
    """Figs. 6 and 7: input, label and masks of the methods that kept the frames of the grid."""
    rows = grid_rows(footage)
    shown = [e for e in entries if all(row in e.result.masks for row in rows)]
    names = ["input", "label", *(e.spec.name for e in shown)]
    height, width = footage.frames[0].label.shape
    inches = (2.4 * len(names), 2.4 * len(rows) * height / width + 0.4)
    figure = Figure(figsize=inches, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(rows), len(names), squeeze=False)
    for axes_row, index in zip(grid, rows, strict=True):
        frame = footage.frames[index]
        masks = [frame.label, *(e.result.masks[index] for e in shown)]
        pictures = [frame.image, *(colour_mask(mask, footage.table) for mask in masks)]
        for axes, picture in zip(axes_row, pictures, strict=True):
            axes.imshow(picture)
            axes.set_xticks([])
            axes.set_yticks([])
        axes_row[0].set_ylabel(frame.name, fontsize=7)
    for axes, name in zip(grid[0], names, strict=True):
        axes.set_title(name, fontsize=9)
    figure.savefig(path, dpi=110)


def _in_sweep(spec: Spec) -> bool:
    return spec.name.startswith(("schedule_", "adaptive_low_latency_"))


def _colour(spec: Spec) -> str:
    if spec.kind == "low_latency" or spec.name == "adaptive":
        return _OURS
    return _OTHERS if spec.weights and spec.kind != "own_network" else _PER_FRAME


def _figure(inches: tuple[float, float], title: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=inches, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.set_title(title, loc="left", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.2)
    return figure, axes


def _save(figure: Figure, axes: Axes, path: Path) -> None:
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, fontsize=8)
    figure.savefig(path, dpi=110)
