"""The charts of a comparison, after the figures of the paper."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from lowlat_seg_ros.lab.data.clip import Clip
from lowlat_seg_ros.lab.evaluation.catalogue import INTERVALS, MAIN, Spec
from lowlat_seg_ros.lab.evaluation.comparison import Comparison, Result, grid_rows
from lowlat_seg_ros.lab.metrics import deviation
from lowlat_seg_ros.lab.report import (
    OTHERS,
    OURS,
    PER_FRAME,
    VARIANTS,
    log_milliseconds,
    new_axes,
    save,
)
from lowlat_seg_ros.labels import colour_mask

#: Columns of the image grid, of the methods that were measured.
GRID_METHODS = ("full", "single_frame", "clockwork", "dff", "adaptive", "adaptive_low_latency")

MARKERS = "osD^vP*Xph<>d"

_COLOURS = {"per_frame": PER_FRAME, "table_1": OTHERS, "table_2": VARIANTS}
_FRONTS = (":", "--", "-.")

#: Distances from the key frame that are drawn; further ones are too rare to mean much.
_FARTHEST = 16


@dataclass(frozen=True)
class Entry:
    spec: Spec
    result: Result

    @property
    def in_sweep(self) -> bool:
        """Whether it is one of many that differ in a number, which have charts of their own."""
        return self.spec.name.startswith(("schedule_", "adaptive_low_latency_"))


def draw(folder: Path, clip: Clip, done: Comparison) -> dict[Path, str]:
    """Write the charts that the results allow to ``folder``; their files and captions."""
    folder.mkdir(parents=True, exist_ok=True)
    entries = [Entry(s, done.results[s.name]) for s in done.specs if s.name in done.results]
    title, charts = f"{clip.name}, {len(clip)} frames", dict[Path, str]()

    def chart(name: str, caption: str) -> Path:
        charts[path := folder / f"{name}.png"] = caption
        return path

    timed = [e for e in entries if not e.in_sweep and np.isfinite(e.result.avg_ms)]
    if timed:
        path = chart("latency_accuracy", "mIoU over latency (the paper's Fig. 1).")
        latency_accuracy(path, timed, title)
    keyed = [e for e in entries if e.spec.kind == "keyed"]
    if keyed:
        path = chart("schedules", "mIoU over the interval of key frames, by schedule (Fig. 5).")
        schedule_chart(path, keyed, title)
    # Of the schedules, the one that carries features farthest stands for all.
    farthest = f"schedule_fixed_{INTERVALS[-1]}"
    chosen = [e for e in entries if not e.in_sweep or e.spec.name == farthest]
    carrying = [e for e in chosen if len(e.result.by_distance) > 1]
    if carrying:
        distance_chart(chart("distance", "mIoU by distance from the key frame."), carrying, title)
    if MAIN in done.results and "full" in done.results:
        path = chart("deviation", "Deviation from the key frame, measured and predicted (Fig. 3).")
        deviation_chart(path, done.results[MAIN], done.results["full"].masks, title)
    path = chart("grid", "Masks side by side (Figs. 6 and 7).")
    image_grid(path, clip, [e for e in entries if e.spec.name in GRID_METHODS])
    return charts


def latency_accuracy(path: Path, entries: Sequence[Entry], title: str) -> None:
    """Fig. 1: mIoU over latency; a method's mean is its marker, a line leads to its worst frame.

    The front joins the methods that no other beats in both mean latency and mIoU; where methods
    used different numbers of CPU threads each number has its own front, and markers are hollow for
    fewer threads than the most.
    """
    threads = sorted({e.result.threads for e in entries}, reverse=True)
    usual = f"; CPU threads: {threads[0]}" + (" unless named" if len(threads) > 1 else "")
    figure, axes = new_axes((9.5, 5.5), title + usual)

    def unusual(count: int) -> str:
        return "" if count == threads[0] else f", {count} thread{'s' if count > 1 else ''}"

    colours: list[str] = []
    for entry in entries:
        result, height = entry.result, 100 * entry.result.miou
        ours = entry.spec.name in ("adaptive", "adaptive_equal")
        colour = OURS if ours else _COLOURS.get(entry.spec.group, OURS)
        marker = MARKERS[colours.count(colour) % len(MARKERS)]
        colours.append(colour)
        axes.plot([result.avg_ms, result.max_ms], [height] * 2, color=colour, linewidth=0.8)
        axes.plot(result.max_ms, height, "|", color=colour, markersize=8)
        axes.plot(result.avg_ms, height, marker, color=colour, markersize=8, linestyle="", zorder=3,
                  markerfacecolor=colour if result.threads == threads[0] else "white",
                  label=entry.spec.name + unusual(result.threads))  # fmt: skip
    for style, count in zip(_FRONTS, threads, strict=False):
        same = [e.result for e in entries if e.result.threads == count]
        front = front_of([(result.avg_ms, result.miou) for result in same])
        if len(front) > 1:  # one point makes no line
            axes.step([x for x, _ in front], [100 * y for _, y in front], where="post",
                      color="black", linewidth=0.8, linestyle=style, zorder=0,
                      label="front" + unusual(count))  # fmt: skip
    log_milliseconds(axes, (1.0, 1.5, 2.0, 3.0, 5.0, 7.0))
    axes.set_xlabel("latency in ms, frame in to mask out: mean (marker) to worst (bar)")
    axes.set_ylabel("mIoU in %")
    save(figure, axes, path)


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
    figure, axes = new_axes((11, 4), title)
    epochs = [number for number, moment in enumerate(result.moments) if moment.first]
    moments = result.moments[: epochs[1] if len(epochs) > 1 else None]
    index = [m.index for m in moments]
    real = [deviation(full_masks[m.key_index], full_masks[m.index]) for m in moments]
    axes.plot(index, real, ".-", color=OTHERS, label="measured, full masks")
    predicted = [(m.index, m.deviation) for m in moments if m.deviation is not None]
    axes.plot([i for i, _ in predicted], [d for _, d in predicted], ".--", color=OURS,
              label="predicted by the selector")  # fmt: skip
    thresholds = [m.threshold for m in moments if m.threshold is not None]
    if thresholds:
        axes.axhline(thresholds[-1], color="black", linewidth=0.8, linestyle=":", label="threshold")
    for number, moment in enumerate(m for m in moments if m.is_key):
        axes.axvline(moment.index, color=OURS, linewidth=0.8, alpha=0.5, zorder=0,
                     label="" if number else "becomes the key frame")  # fmt: skip
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylim(bottom=0)
    axes.set_xlabel("frame")
    axes.set_ylabel("deviation from the key frame,\nshare of pixels")
    save(figure, axes, path)


def schedule_chart(path: Path, entries: Sequence[Entry], title: str) -> None:
    """Fig. 5: mIoU over the key-frame interval that came about, for each schedule."""
    figure, axes = new_axes((8, 4.5), title)
    for name, colour, marker in (
        ("fixed", PER_FRAME, "s"), ("threshold", OTHERS, "^"), ("adaptive", OURS, "o"),
    ):  # fmt: skip
        points = sorted(
            (1 / e.result.key_share, 100 * e.result.miou)
            for e in entries
            if e.spec.schedule == name
        )
        if points:
            axes.plot([x for x, _ in points], [y for _, y in points], marker + "-", color=colour,
                      label=name)  # fmt: skip
    axes.set_xlabel("mean key-frame interval in frames")
    axes.set_ylabel("mIoU in %")
    save(figure, axes, path)


def distance_chart(path: Path, entries: Sequence[Entry], title: str) -> None:
    figure, axes = new_axes((9, 5), title)
    for number, entry in enumerate(entries):
        points = [(d, 100 * v) for d, v in entry.result.by_distance.items() if d <= _FARTHEST]
        axes.plot([d for d, _ in points], [v for _, v in points],
                  MARKERS[number % len(MARKERS)] + "-", label=entry.spec.name)  # fmt: skip
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("frames since the key frame")
    axes.set_ylabel("mIoU in %")
    save(figure, axes, path)


def image_grid(path: Path, clip: Clip, entries: Sequence[Entry]) -> None:
    """Figs. 6 and 7: input, label and masks of the methods that kept the frames of the grid."""
    rows = grid_rows(clip)
    shown = [e for e in entries if all(row in e.result.masks for row in rows)]
    names = ["input", "label", *(e.spec.name for e in shown)]
    height, width = clip.size
    inches = (2.4 * len(names), 2.4 * len(rows) * height / width + 0.8)
    figure = Figure(figsize=inches, layout="constrained")
    grid = figure.subplots(len(rows), len(names), squeeze=False)
    for axes_row, index in zip(grid, rows, strict=True):
        frame = clip.frames[index]
        masks = [frame.label, *(e.result.masks[index] for e in shown)]
        pictures = [frame.image, *(colour_mask(mask, clip.table) for mask in masks)]
        for axes, picture in zip(axes_row, pictures, strict=True):
            axes.imshow(picture)
            axes.set_xticks([])
            axes.set_yticks([])
        axes_row[0].set_ylabel(frame.name, fontsize=7)
    for axes, name in zip(grid[0], names, strict=True):
        axes.set_title(name, fontsize=9)
    patches = [
        Patch(color="#{:02x}{:02x}{:02x}".format(*colour), label=name)
        for name, colour in zip(clip.table.names, clip.table.colours, strict=True)
    ]
    # About 16 letters of a name and its patch to two inches.
    figure.legend(handles=patches, loc="outside lower center", frameon=False, fontsize=8,
                  ncols=min(len(patches), max(2, round(inches[0] / 1.3))))  # fmt: skip
    figure.savefig(path, dpi=110)
