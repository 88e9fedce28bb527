"""The one table of an evaluation, on the terminal and as JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from lowlat_seg_ros.evaluation.comparison import Comparison
from lowlat_seg_ros.evaluation.footage import Footage
from lowlat_seg_ros.evaluation.machine import Machine
from lowlat_seg_ros.evaluation.run import Result

#: The drive and frames of CamVid's train split that lie close to the val clip (30 Hz numbers).
CLOSE_TO_THE_CLIP = (
    "the clip starts 1.3 s after train frame 0016E5_07920 and ends 4.4 s before 08190: "
    "the same street"
)


@dataclass(frozen=True)
class Facts:
    """What figures mean nothing without.

    ``fast_track_threads`` are the CPU threads of the engine, which leaves some to Sh; the other
    methods use all cores. ``speed``: that of the machine assumed for streaming, 1 for this one.
    ``load_average``: threads of all processes that wanted a core in the minute before; times are
    those of a machine that has this to do besides.
    """

    dataset: str
    frames: int
    size: tuple[int, int]
    rate_hz: float
    checkpoint: str
    sha256: str
    provenance: dict[str, Any]
    fast_track_threads: int
    speed: float | None
    load_average: float
    machine: Machine
    note: str = ""


def facts_of(footage: Footage, **others: Any) -> Facts:
    """The facts of ``footage`` and ``others``."""
    height, width = footage.frames[0].label.shape
    note = CLOSE_TO_THE_CLIP if footage.name == "CamVid val" else ""
    return Facts(
        dataset=footage.name, frames=len(footage), size=(height, width), rate_hz=footage.rate_hz,
        note=note, **others,
    )  # fmt: skip


def as_json(facts: Facts, done: Comparison) -> dict[str, Any]:
    """The figures, for :func:`~.summary.write_json`; times in ms, scores in [0, 1]."""
    return {
        "facts": asdict(facts),
        "methods": {
            name: _row(result)
            | ({"streaming_miou": done.streaming[name]} if done.streaming else {})
            for name, result in done.results.items()
        },
        "left_out": done.left_out,
    }


def _row(result: Result) -> dict[str, Any]:
    names = ("miou", "pixel_accuracy", "class_accuracy", "vc8", "key_share", "avg_ms", "max_ms",
             "first_ms", "frames", "iou")  # fmt: skip
    row = {name: getattr(result, name) for name in names}
    return row | {"miou_by_distance": {str(age): v for age, v in result.by_distance.items()}}


def print_table(console: Console, facts: Facts, done: Comparison) -> None:
    """The table, what it was measured on, and which methods are missing and why."""
    height, width = facts.size
    table = Table(
        title=f"{facts.dataset}, {facts.frames} frames of {width}x{height}, {facts.checkpoint}",
        title_justify="left",
        title_style="bold",
        box=SIMPLE_HEAD,
        padding=(0, 0, 0, 1),
        pad_edge=False,
    )
    table.add_column("method", no_wrap=True)
    columns = ["mIoU", "pixel", "class", "VC8", "keys", "avg ms", "max ms"]
    for column in [*columns, "stream"] if done.streaming else columns:
        table.add_column(column, justify="right")
    for name, result in done.results.items():
        cells = [_percent(v) for v in (result.miou, result.pixel_accuracy, result.class_accuracy,
                                       result.vc8, result.key_share)]  # fmt: skip
        cells += [_ms(v) for v in (result.avg_ms, result.max_ms)]
        if done.streaming:
            cells.append(_percent(done.streaming[name]))
        table.add_row(name, *cells)
    console.print(table)
    _print_notes(console, facts, done.left_out)


def _print_notes(console: Console, facts: Facts, left_out: dict[str, str]) -> None:
    machine = facts.machine
    where = machine.gpu or f"{machine.cores} cores of {machine.cpu}"
    console.print(
        f"Scores in %, pooled over {facts.frames} frames; keys: share of key frames. Latency is "
        "frame in to mask out, without the first frames of drives. The engine's Sh runs on a "
        "virtual clock and adds no load.\n"
        f"Measured on {where}, torch {machine.torch}, Python {machine.python}; "
        f"load average {facts.load_average:.1f} before."
    )
    if facts.note:
        console.print(f"Note: {facts.note}.")
    for name, reason in left_out.items():
        console.print(f"[yellow]Left out:[/] {name}: {reason}")


def _percent(share: float) -> str:
    return "-" if share != share else f"{100 * share:.1f}"


def _ms(milliseconds: float) -> str:
    return "-" if milliseconds != milliseconds else f"{milliseconds:.1f}"
