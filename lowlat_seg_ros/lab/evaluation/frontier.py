"""Fig. 1: what a method costs and what it is worth."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullLocator, ScalarFormatter

from lowlat_seg_ros.lab.evaluation.axes import (
    MARKERS,
    OTHERS,
    OURS,
    PER_FRAME,
    VARIANTS,
    Entry,
    new_axes,
    save,
)

_COLOURS = {"per_frame": PER_FRAME, "table_1": OTHERS, "table_2": VARIANTS}
_FRONTS = (":", "--", "-.")


def latency_accuracy(path: Path, entries: Sequence[Entry], title: str) -> None:
    """Fig. 1: mIoU over latency; a method's mean is its marker, a line leads to its worst frame.

    The front joins the methods that no other beats in both mean latency and mIoU; where methods
    used different numbers of CPU threads each number has its own front, and markers are hollow for
    fewer threads than the most.
    """
    threads = sorted({e.result.threads for e in entries}, reverse=True)
    figure, axes = new_axes((9.5, 5.5), title + _usual(threads))
    colours: list[str] = []
    for entry in entries:
        colour = _colour(entry)
        marker = MARKERS[colours.count(colour) % len(MARKERS)]
        colours.append(colour)
        _draw(axes, entry, colour, marker, threads)
    for style, count in zip(_FRONTS, threads, strict=False):
        same = [e.result for e in entries if e.result.threads == count]
        front = front_of([(result.avg_ms, result.miou) for result in same])
        if len(front) > 1:  # one point makes no line
            axes.step([x for x, _ in front], [100 * y for _, y in front], where="post",
                      color="black", linewidth=0.8, linestyle=style, zorder=0,
                      label="front" + _threads(count, threads))  # fmt: skip
    _latency_axis(axes)
    axes.set_ylabel("mIoU in %")
    save(figure, axes, path)


def in_chart(entry: Entry) -> bool:
    """Whether the method was timed; the sweeps over intervals and delays would crowd the chart."""
    return not entry.in_sweep and bool(np.isfinite(entry.result.avg_ms))


def _draw(axes: Axes, entry: Entry, colour: str, marker: str, threads: list[int]) -> None:
    result, height = entry.result, 100 * entry.result.miou
    axes.plot([result.avg_ms, result.max_ms], [height] * 2, color=colour, linewidth=0.8)
    axes.plot(result.max_ms, height, "|", color=colour, markersize=8)
    filled = result.threads == threads[0]
    axes.plot(result.avg_ms, height, marker, color=colour, markersize=8, linestyle="", zorder=3,
              markerfacecolor=colour if filled else "white",
              label=entry.spec.name + _threads(result.threads, threads))  # fmt: skip


def _usual(threads: list[int]) -> str:
    return f"; CPU threads: {threads[0]}" + (" unless named" if len(threads) > 1 else "")


def _threads(count: int, threads: list[int]) -> str:
    if count == threads[0]:
        return ""
    return f", {count} thread{'s' if count > 1 else ''}"


def _colour(entry: Entry) -> str:
    ours = entry.spec.name in ("adaptive", "adaptive_equal")
    return OURS if ours else _COLOURS.get(entry.spec.group, OURS)


def _latency_axis(axes: Axes) -> None:
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 1.5, 2.0, 3.0, 5.0, 7.0)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.set_xlabel("latency in ms, frame in to mask out: mean (marker) to worst (bar)")


def front_of(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points (cost, gain) that no other beats: none is as cheap with as much gain."""
    best, front = float("-inf"), []
    for cost, gain in sorted(points, key=lambda point: (point[0], -point[1])):
        if gain > best:
            best = gain
            front.append((cost, gain))
    return front
