"""The report of an evaluation: facts, notes and tables, on the terminal, as JSON and as a page."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from lowlat_seg_ros.lab.evaluation.catalogue import GROUPS, MAIN
from lowlat_seg_ros.lab.evaluation.comparison import Comparison
from lowlat_seg_ros.lab.metrics import BLOCK, interval
from lowlat_seg_ros.lab.report import QUIET, Machine, Row, Table, markdown, pictures, terminal_table

#: The drive and frames of CamVid's train split that lie close to the val clip (30 Hz numbers).
CLOSE_TO_THE_CLIP = (
    "the clip starts 1.3 s after train frame 0016E5_07920 and ends 4.4 s before 08190: "
    "the same street"
)


@dataclass(frozen=True)
class Facts:
    """What must be known to read the figures."""

    dataset: str
    classes: tuple[str, ...]
    frames: int
    size: tuple[int, int]
    rate_hz: float
    command: str  # what was run, without the places of files
    checkpoint: str
    sha256: str
    provenance: dict[str, Any]
    precision: str  # of the networks' inner convolutions
    fast_track_threads: int  # the engine's, which leaves some to Sh; others stand with the methods
    speed: float | None  # of the machine assumed for streaming, 1 for this one
    load_average: float  # threads of all processes ready to run in the minute before
    machine: Machine
    note: str = ""

    @property
    def title(self) -> str:
        height, width = self.size
        return f"{self.dataset}, {self.frames} frames of {width}x{height}, {self.checkpoint}"


def as_json(facts: Facts, done: Comparison) -> dict[str, Any]:
    """The figures, for :func:`.write_json`; times in ms, scores in [0, 1].

    ``complete`` is false while methods are still to be measured.
    """
    names = ("miou", "pixel_accuracy", "class_accuracy", "vc8", "key_share", "avg_ms", "max_ms",
             "first_ms", "threads", "other_cores", "frames", "class_iou")  # fmt: skip
    groups, main = {spec.name: spec.group for spec in done.specs}, done.results.get(MAIN)
    methods: dict[str, Any] = {}
    for name, result in done.results.items():
        row: dict[str, Any] = {"group": groups[name]}
        row |= {key: getattr(result, key) for key in names}
        row["miou_by_distance"] = {str(age): miou for age, miou in result.by_distance.items()}
        row["miou_interval"] = interval(result.draws)
        if main is not None and name != MAIN:
            row["main_above_interval"] = interval(main.draws - result.draws)
        if done.streaming:
            row["streaming_miou"] = done.streaming[name]
        methods[name] = row
    return {
        "complete": done.complete,
        "facts": asdict(facts),
        "methods": methods,
        "left_out": done.left_out,
    }


def scores(done: Comparison) -> Table:
    """Accuracy in %, latency in ms, CPU threads; streaming mIoU where it was measured."""
    columns: Row = ("method", "mIoU", "pixel", "class", "VC8", "keys", "avg ms", "max ms", "thr")
    if done.streaming:
        columns += ("stream",)
    rows: dict[str, Row] = {}
    for name, result in done.results.items():
        shares = (result.miou, result.pixel_accuracy, result.class_accuracy, result.vc8,
                  result.key_share)  # fmt: skip
        times = tuple("-" if ms != ms else f"{ms:.1f}" for ms in (result.avg_ms, result.max_ms))
        rows[name] = (*map(_percent, shares), *times, str(result.threads))
        if done.streaming:
            rows[name] += (_percent(done.streaming[name]),)
    return _grouped(done, columns, rows)


def intervals(done: Comparison) -> Table:
    """95 % intervals of the mIoU in %, and of how far the main method is above each."""
    main, rows = done.results.get(MAIN), dict[str, Row]()

    def span(values: np.ndarray) -> str:
        low, high = interval(values)
        return f"{100 * low:.1f} to {100 * high:.1f}"

    for name, result in done.results.items():
        above = span(main.draws - result.draws) if main is not None and name != MAIN else "-"
        rows[name] = (_percent(result.miou), span(result.draws), above)
    return _grouped(done, ("method", "mIoU", "95 %", f"{MAIN} above it, 95 %"), rows)


def class_ious(done: Comparison, classes: tuple[str, ...], decimals: int) -> Table:
    """IoU of each class in %."""
    rows = {
        name: tuple(_percent(result.class_iou[one], decimals) for one in classes)
        for name, result in done.results.items()
    }
    return _grouped(done, ("IoU in %", *classes), rows)


def _grouped(done: Comparison, columns: Row, rows: dict[str, Row]) -> Table:
    groups: dict[str, list[Row]] = {heading: [] for heading in GROUPS.values()}
    for spec in done.specs:
        if spec.name in rows:
            groups[GROUPS[spec.group]].append((spec.name, *rows[spec.name]))
    return Table(columns, {heading: members for heading, members in groups.items() if members})


def notes(facts: Facts, done: Comparison) -> list[str]:
    """Sentences that say how the figures are to be read, and what they were measured on."""
    threads = (
        f"thr: CPU threads, {min(done.threads)} for every method; propagation uses 1."
        if len(done.threads) == 1
        else "thr: CPU threads; those without a background Sh use all cores (--foreground-threads "
        "N gives every method N); propagation uses 1."
    )
    measured = (
        f"Measured in {facts.precision} on {facts.machine}; load average "
        f"{facts.load_average:.1f} before."
    )
    most = max((r.other_cores for r in done.results.values()), default=0.0)
    if most > QUIET:
        measured += (
            f" Other processes kept up to {most:.1f} cores busy meanwhile, so latencies are too "
            "long, above all of methods with several threads, which wait for each other."
        )
    found = [
        f"Scores in %, pooled over {facts.frames} frames; VC8: temporal consistency over 8 frames; "
        "keys: share of key frames.",
        "95 %: interval of the mIoU, and of how far that of adaptive_low_latency is above it: "
        f"bootstrap over blocks of {BLOCK} frames, drawn alike for all methods.",
        "Latency is frame in to mask out, without the first frames of drives. The engine's Sh runs "
        "on a virtual clock and adds no load.",
        threads,
        measured,
    ]
    if facts.speed is not None:
        machine = "this machine" if facts.speed == 1 else f"a machine {facts.speed:g} times as fast"
        found.append(
            f"stream: mIoU of the newest mask out at each instant, at {facts.rate_hz:g} Hz and the "
            f"latencies of {machine}."
        )
    return found + ([f"Note: {facts.note}."] if facts.note else [])


def print_report(console: Console, facts: Facts, done: Comparison) -> None:
    """The tables, what they were measured on, and which methods are missing and why."""
    if done.results:
        console.print(terminal_table(scores(done), facts.title))
        console.print(terminal_table(class_ious(done, facts.classes, decimals=0), "", width=4))
    for note in notes(facts, done):
        console.print(note, markup=False)
    for reason, names in done.reasons.items():
        console.print(f"[yellow]Left out:[/] {', '.join(names)}: {reason}")


def write_page(folder: Path, facts: Facts, done: Comparison, charts: dict[Path, str]) -> Path:
    """Write the page beside its ``charts``, files and captions; returns its path."""
    weights = f"Weights: `{facts.checkpoint}`, SHA-256 `{facts.sha256}`."
    blocks = [
        f"# Results: {facts.title}",
        f"Made by this command, DIR being the folder of the data:\n\n```\n{facts.command}\n```",
        "\n".join(f"- {note}" for note in (*notes(facts, done), weights)),
    ]
    if done.results:
        methods = "`lowlat-seg evaluate --help` says what each method is."
        blocks += ["## Methods", methods, markdown(scores(done))]
        blocks += ["## Intervals", markdown(intervals(done))]
        blocks += ["## Classes", markdown(class_ious(done, facts.classes, decimals=1))]
    if charts:
        blocks += ["## Charts", *pictures(charts, folder)]
    if done.left_out:
        reasons = [f"- `{'`, `'.join(names)}`: {why}" for why, names in done.reasons.items()]
        blocks += ["## Left out", "\n".join(reasons)]
    path = folder / "results.md"
    path.write_text("\n\n".join(blocks) + "\n")
    return path


def _percent(share: float, decimals: int = 1) -> str:
    return "-" if share != share else f"{100 * share:.{decimals}f}"
