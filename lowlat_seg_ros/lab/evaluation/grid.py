"""Figures of a comparison as rows of text, for the terminal and for a page."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lowlat_seg_ros.lab.evaluation.bootstrap import interval
from lowlat_seg_ros.lab.evaluation.catalogue import GROUPS, MAIN
from lowlat_seg_ros.lab.evaluation.comparison import Comparison
from lowlat_seg_ros.lab.evaluation.run import Result

Row = tuple[str, ...]


@dataclass(frozen=True)
class Grid:
    """``columns`` and, by heading, the rows below them; the first column is a method's name."""

    columns: Row
    groups: dict[str, list[Row]]


def scores(done: Comparison) -> Grid:
    """Accuracy and steadiness in %, latency in ms, CPU threads; streaming mIoU where measured."""
    columns = ("method", "mIoU", "pixel", "class", "VC8", "keys", "avg ms", "max ms", "thr")
    rows = {name: _scores(result) for name, result in done.results.items()}
    if not done.streaming:
        return Grid(columns, _grouped(done, rows))
    rows = {name: (*row, _percent(done.streaming[name])) for name, row in rows.items()}
    return Grid((*columns, "stream"), _grouped(done, rows))


def _scores(result: Result) -> Row:
    shares = (result.miou, result.pixel_accuracy, result.class_accuracy, result.vc8,
              result.key_share)  # fmt: skip
    times = (result.avg_ms, result.max_ms)
    return (*map(_percent, shares), *map(_ms, times), str(result.threads))


def intervals(done: Comparison) -> Grid:
    """95 % intervals of the mIoU in %, and of how far the main method is above each."""
    spread = done.spread()
    rows: dict[str, Row] = {}
    for name, values in spread.items():
        above = (_span(spread[MAIN] - values),) if MAIN in spread and name != MAIN else ("-",)
        rows[name] = (_percent(done.results[name].miou), _span(values), *above)
    return Grid(("method", "mIoU", "95 %", f"{MAIN} above it, 95 %"), _grouped(done, rows))


def _span(values: np.ndarray) -> str:
    low, high = interval(values)
    return f"{100 * low:.1f} to {100 * high:.1f}"


def class_ious(done: Comparison, classes: tuple[str, ...], decimals: int) -> Grid:
    """IoU of each class in %."""
    rows = {
        name: tuple(_percent(result.class_iou[one], decimals) for one in classes)
        for name, result in done.results.items()
    }
    return Grid(("IoU in %", *classes), _grouped(done, rows))


def _grouped(done: Comparison, rows: dict[str, Row]) -> dict[str, list[Row]]:
    groups: dict[str, list[Row]] = {heading: [] for heading in GROUPS.values()}
    for spec in done.specs:
        if spec.name in rows:
            groups[GROUPS[spec.group]].append((spec.name, *rows[spec.name]))
    return {heading: members for heading, members in groups.items() if members}


def _percent(share: float, decimals: int = 1) -> str:
    return "-" if share != share else f"{100 * share:.{decimals}f}"


def _ms(milliseconds: float) -> str:
    return "-" if milliseconds != milliseconds else f"{milliseconds:.1f}"
