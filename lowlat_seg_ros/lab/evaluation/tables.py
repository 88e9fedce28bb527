"""Figures as tables on the terminal."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from lowlat_seg_ros.engine.timing import Percentiles
from lowlat_seg_ros.lab.evaluation.machine import Machine
from lowlat_seg_ros.lab.evaluation.summary import Accuracy, Latency, Summary


def print_summary(
    console: Console,
    title: str,
    summary: Summary,
    machine: Machine,
    full: tuple[Latency, Accuracy] | None,
) -> None:
    """Latency, accuracy and account of a run; ``full`` is the whole network on each frame."""
    console.print(_latency_table(title, summary, full))
    console.print(_accuracy_table(summary, full))
    account, counters = summary.account, summary.counters
    console.print(
        f"Frames: {account.played} played = {account.masks} masks "
        f"+ {account.superseded} superseded + {account.rejected} rejected + {account.failed} failed"
        + (f" + [bold red]{account.unaccounted} unaccounted[/]" if account.unaccounted else "")
    )
    console.print(
        f"Key frames: {summary.key_frames} ({summary.key_share:.0%} of the masks), "
        f"{counters.resets} resets; {counters.submitted} were handed to Sh in the background: "
        f"{counters.refined} refined, "
        f"{counters.carried} carried on, {counters.superseded} superseded, "
        f"{counters.dropped_late + counters.dropped_stale} dropped, {counters.failed} failed, "
        f"{counters.pending} pending"
    )
    console.print(f"Measured on {machine}")


def _latency_table(title: str, summary: Summary, full: tuple[Latency, Accuracy] | None) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column("latency in ms")
    for name in ("p50", "p95", "p99", "max", "first frame"):
        table.add_column(name, justify="right")
    rows = {
        "engine, frame to mask": summary.engine,
        "stamp to mask published": summary.published,
        "stamp to mask received": summary.received,
    }
    if full is not None:
        rows["full network per frame"] = full[0]
    for name, latency in rows.items():
        table.add_row(name, *_percentiles(latency.steady), f"{latency.first:.1f}")
    return table


def _percentiles(values: Percentiles) -> list[str]:
    """The first frame, which runs the whole network, is no part of these."""
    known = (values.p50, values.p95, values.p99, values.max)
    return [f"{value:.1f}" if values.count else "-" for value in known]


def _accuracy_table(summary: Summary, full: tuple[Latency, Accuracy] | None) -> Table:
    table = Table()
    table.add_column("accuracy in %")
    for name in ("mIoU", "pixel", "class", "VC8", "frames scored"):
        table.add_column(name, justify="right")
    rows = {"node": summary.accuracy} | ({"full network": full[1]} if full is not None else {})
    for name, scores in rows.items():
        shares = (scores.miou, scores.pixel_accuracy, scores.class_accuracy, scores.vc8)
        # NaN: nothing to score, as a clip too short for VC8.
        cells = ["-" if share != share else f"{100 * share:.1f}" for share in shares]
        table.add_row(name, *cells, str(scores.frames))
    return table
