"""The report of an evaluation: its facts and notes, on the terminal and as JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from lowlat_seg_ros.lab.evaluation.bootstrap import BLOCK, interval
from lowlat_seg_ros.lab.evaluation.catalogue import MAIN
from lowlat_seg_ros.lab.evaluation.comparison import Comparison
from lowlat_seg_ros.lab.evaluation.footage import Footage
from lowlat_seg_ros.lab.evaluation.grid import Grid, class_ious, scores
from lowlat_seg_ros.lab.evaluation.machine import Machine
from lowlat_seg_ros.lab.evaluation.run import Result

#: The drive and frames of CamVid's train split that lie close to the val clip (30 Hz numbers).
CLOSE_TO_THE_CLIP = (
    "the clip starts 1.3 s after train frame 0016E5_07920 and ends 4.4 s before 08190: "
    "the same street"
)

#: Cores that other processes may keep busy before times are called too long.
QUIET = 0.2


@dataclass(frozen=True)
class Facts:
    """What figures mean nothing without.

    ``command``: what was run, without the places of files. ``precision``: of the networks' inner
    convolutions. ``fast_track_threads`` are the CPU threads of the engine, which leaves some to Sh
    unless they are set; each method's own stand with its figures. ``speed``: that of the machine
    assumed for streaming, 1 for this one. ``load_average``: threads of all processes that wanted a
    core in the minute before; times are those of a machine that has this to do besides.
    """

    dataset: str
    classes: tuple[str, ...]
    frames: int
    size: tuple[int, int]
    rate_hz: float
    command: str
    checkpoint: str
    sha256: str
    provenance: dict[str, Any]
    precision: str
    fast_track_threads: int
    speed: float | None
    load_average: float
    machine: Machine
    note: str = ""

    @property
    def title(self) -> str:
        """Data and weights in a few words."""
        height, width = self.size
        return f"{self.dataset}, {self.frames} frames of {width}x{height}, {self.checkpoint}"


def facts_of(footage: Footage, **others: Any) -> Facts:
    """The facts of ``footage`` and ``others``."""
    height, width = footage.frames[0].label.shape
    note = CLOSE_TO_THE_CLIP if footage.name == "CamVid val" else ""
    return Facts(
        dataset=footage.name, classes=footage.table.names, frames=len(footage),
        size=(height, width), rate_hz=footage.rate_hz, note=note, **others,
    )  # fmt: skip


def as_json(facts: Facts, done: Comparison) -> dict[str, Any]:
    """The figures, for :func:`~.summary.write_json`; times in ms, scores in [0, 1].

    ``complete`` is false while methods are still to be measured.
    """
    groups, spread = {spec.name: spec.group for spec in done.specs}, done.spread()
    return {
        "complete": done.complete,
        "facts": asdict(facts),
        "methods": {
            name: {"group": groups[name]}
            | _row(result)
            | _intervals(name, spread)
            | ({"streaming_miou": done.streaming[name]} if done.streaming else {})
            for name, result in done.results.items()
        },
        "left_out": done.left_out,
    }


def _intervals(name: str, spread: dict[str, np.ndarray]) -> dict[str, Any]:
    """95 % intervals of the mIoU, and of what the main method's is above it."""
    found = {"miou_interval": interval(spread[name])}
    if MAIN in spread and name != MAIN:
        found["main_above_interval"] = interval(spread[MAIN] - spread[name])
    return found


def _row(result: Result) -> dict[str, Any]:
    names = ("miou", "pixel_accuracy", "class_accuracy", "vc8", "key_share", "avg_ms", "max_ms",
             "first_ms", "threads", "other_cores", "frames", "class_iou")  # fmt: skip
    row = {name: getattr(result, name) for name in names}
    return row | {"miou_by_distance": {str(age): v for age, v in result.by_distance.items()}}


def notes(facts: Facts, done: Comparison) -> list[str]:
    """Sentences that say how the figures are to be read, and what they were measured on."""
    said = [
        f"Scores in %, pooled over {facts.frames} frames; VC8: steadiness over 8 frames; keys: "
        "share of key frames.",
        "95 %: interval of the mIoU, and of how far that of adaptive_low_latency is above it: "
        f"bootstrap over blocks of {BLOCK} frames, drawn alike for all methods.",
        "Latency is frame in to mask out, without the first frames of drives. The engine's Sh runs "
        "on a virtual clock and adds no load.",
        _threads(done),
        f"Measured in {facts.precision} on {facts.machine}; load average "
        f"{facts.load_average:.1f} before.{_busy(done)}",
    ]
    if facts.speed is not None:
        machine = "this machine" if facts.speed == 1 else f"a machine {facts.speed:g} times as fast"
        said.append(
            f"stream: mIoU of the newest mask out at each instant, at {facts.rate_hz:g} Hz and the "
            f"latencies of {machine}."
        )
    return said + ([f"Note: {facts.note}."] if facts.note else [])


def _threads(done: Comparison) -> str:
    if len(done.threads) == 1:
        return f"thr: CPU threads, {min(done.threads)} for every method; propagation uses 1."
    return (
        "thr: CPU threads; those without a background Sh use all cores (--foreground-threads N "
        "gives every method N); propagation uses 1."
    )


def _busy(done: Comparison) -> str:
    """A warning if the machine had other work; see :data:`QUIET`."""
    most = max((r.other_cores for r in done.results.values()), default=0.0)
    if not most > QUIET:
        return ""
    return (
        f" Other processes kept up to {most:.1f} cores busy meanwhile, so latencies are too long, "
        "above all of methods with several threads, which wait for each other."
    )


def print_report(console: Console, facts: Facts, done: Comparison) -> None:
    """The tables, what they were measured on, and which methods are missing and why."""
    if done.results:
        console.print(terminal_table(scores(done), facts.title))
        console.print(terminal_table(class_ious(done, facts.classes, decimals=0), "", width=4))
    for note in notes(facts, done):
        console.print(note, markup=False)
    for reason, names in done.reasons.items():
        console.print(f"[yellow]Left out:[/] {', '.join(names)}: {reason}")


def terminal_table(grid: Grid, title: str, width: int | None = None) -> Table:
    """``width``: that of all columns but the first, whose headings are folded to it.

    Eleven columns of four letters fit on a terminal of 80.
    """
    table = Table(
        title=title or None,
        title_justify="left",
        title_style="bold",
        box=SIMPLE_HEAD,
        padding=(0, 0, 0, 0 if width else 1),
        pad_edge=False,
    )
    table.add_column(grid.columns[0], no_wrap=True)
    for column in grid.columns[1:]:
        table.add_column(column, justify="right", overflow="fold", width=width)
    for rows in grid.groups.values():
        for row in rows:
            table.add_row(*row)
        table.add_section()
    return table
