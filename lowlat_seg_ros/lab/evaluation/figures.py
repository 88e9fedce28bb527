"""Charts of schedules and propagation, and masks side by side, after the figures of the paper."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from lowlat_seg_ros.lab.evaluation.axes import (
    MARKERS,
    OTHERS,
    OURS,
    PER_FRAME,
    Entry,
    new_axes,
    save,
)
from lowlat_seg_ros.lab.evaluation.catalogue import INTERVALS
from lowlat_seg_ros.lab.evaluation.footage import Footage
from lowlat_seg_ros.lab.evaluation.metrics import deviation
from lowlat_seg_ros.lab.evaluation.run import Moment, Result
from lowlat_seg_ros.labels import colour_mask

#: Distances from the key frame that are drawn; further ones are too rare to mean much.
_FARTHEST = 16
#: Rows of the image grid.
GRID_ROWS = 4


def deviation_chart(
    path: Path, result: Result, full_masks: dict[int, np.ndarray], title: str
) -> None:
    """Fig. 3: how far each frame of the first drive has moved away from its key frame.

    Measured between the full network's masks of both, and as the selector predicts it.
    """
    figure, axes = new_axes((11, 4), title)
    moments = _first_drive(result.moments)
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


def _first_drive(moments: Sequence[Moment]) -> list[Moment]:
    """Up to where the second epoch begins."""
    ends = [number for number, moment in enumerate(moments) if moment.first and number > 0]
    return list(moments[: ends[0]] if ends else moments)


def in_schedule_chart(entry: Entry) -> bool:
    """Whether the method is the paper's propagation at some schedule."""
    return entry.spec.kind == "keyed"


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


def in_distance_chart(entry: Entry) -> bool:
    """Whether the method carries features on; of the schedules, the one that carries them most."""
    longest = f"schedule_fixed_{INTERVALS[-1]}"
    chosen = not entry.in_sweep or entry.spec.name == longest
    return chosen and len(entry.result.by_distance) > 1


def distance_chart(path: Path, entries: Sequence[Entry], title: str) -> None:
    """mIoU by distance from the key frame."""
    figure, axes = new_axes((9, 5), title)
    for number, entry in enumerate(entries):
        points = [(d, 100 * v) for d, v in entry.result.by_distance.items() if d <= _FARTHEST]
        axes.plot([d for d, _ in points], [v for _, v in points],
                  MARKERS[number % len(MARKERS)] + "-", label=entry.spec.name)  # fmt: skip
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("frames since the key frame")
    axes.set_ylabel("mIoU in %")
    save(figure, axes, path)


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
    inches = (2.4 * len(names), 2.4 * len(rows) * height / width + 0.8)
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
    patches = [
        Patch(color="#{:02x}{:02x}{:02x}".format(*colour), label=name)
        for name, colour in zip(footage.table.names, footage.table.colours, strict=True)
    ]
    # About 16 letters of a name and its patch to two inches.
    figure.legend(handles=patches, loc="outside lower center", frameon=False, fontsize=8,
                  ncols=min(len(patches), max(2, round(inches[0] / 1.3))))  # fmt: skip
    figure.savefig(path, dpi=110)
