"""One run over a clip: what became of its frames, latency, key frames, accuracy, the machine.

The figures are records, which are written as JSON and printed as tables.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import platform
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from lowlat_seg_ros.engine.timing import Percentiles, PercentileTracker
from lowlat_seg_ros.frames import Counters, Segmentation
from lowlat_seg_ros.lab.evaluation.metrics import Confusion, Consistency


@dataclass(frozen=True, eq=False)
class Answer:
    """The result for frame ``index`` of a clip.

    ``published_ms``: age of the frame when its mask was published; ``received_ms``: when its mask
    was in the consumer's hands. Both count from the frame's stamp.
    """

    index: int
    segmentation: Segmentation
    published_ms: float
    received_ms: float


@dataclass(frozen=True)
class Account:
    """What became of every frame of a clip: ``played`` is the sum of all the others.

    ``superseded`` frames were overwritten by a newer one while the node was busy, ``rejected``
    ones were impossible, ``failed`` ones raised. ``masks`` counts masks in the consumer's hands.
    """

    played: int
    masks: int
    superseded: int
    rejected: int
    failed: int

    @property
    def unaccounted(self) -> int:
        """Frames that nobody accounts for; 0 unless something was lost (or counted twice: < 0)."""
        return self.played - self.masks - self.superseded - self.rejected - self.failed

    def __str__(self) -> str:
        return (
            f"{self.played} images = {self.masks} masks + {self.superseded} superseded + "
            f"{self.rejected} rejected + {self.failed} failed + {self.unaccounted} unaccounted"
        )


@dataclass(frozen=True)
class Latency:
    """Milliseconds. ``first`` is the first frame's, which runs the whole network by design;
    ``steady`` summarises all frames after it.
    """

    first: float
    steady: Percentiles

    @classmethod
    def of(cls, milliseconds: Sequence[float]) -> Latency:
        """Of at least one frame, in order."""
        tracker = PercentileTracker(window=max(1, len(milliseconds)))
        for value in milliseconds[1:]:
            tracker.add(value)
        return cls(milliseconds[0], tracker.percentiles())


@dataclass(frozen=True)
class Accuracy:
    """Scores in [0, 1] over the ``frames`` that have a mask, NaN where nothing could be scored.

    ``vc8``: temporal consistency over 8 frames, see :class:`~.metrics.Consistency`; a frame
    without a mask ends a window.
    """

    frames: int
    miou: float
    pixel_accuracy: float
    class_accuracy: float
    vc8: float
    iou: dict[str, float]


def accuracy(
    labels: Sequence[np.ndarray], masks: Iterable[tuple[int, np.ndarray]], classes: Sequence[str]
) -> Accuracy:
    """Score ``masks``, pairs of a frame's index and its uint8 (H, W) mask, against ``labels``."""
    confusion, consistency = Confusion(len(classes)), Consistency()
    frames, previous = 0, -1
    for index, mask in masks:
        if index != previous + 1:
            consistency.reset()
        confusion.update(labels[index], mask)
        consistency.update(labels[index], mask)
        frames, previous = frames + 1, index
    return Accuracy(
        frames=frames,
        miou=confusion.miou,
        pixel_accuracy=confusion.pixel_accuracy,
        class_accuracy=confusion.class_accuracy,
        vc8=consistency.value,
        iou=dict(zip(classes, confusion.iou.tolist(), strict=True)),
    )


@dataclass(frozen=True)
class Summary:
    """One run: ``engine`` from frame in to mask out, ``published`` and ``received`` from the
    frame's stamp on. ``key_share`` is key frames per mask.
    """

    account: Account
    engine: Latency
    published: Latency
    received: Latency
    key_frames: int
    key_share: float
    accuracy: Accuracy
    counters: Counters


def summarise(
    account: Account,
    answers: Sequence[Answer],
    labels: Sequence[np.ndarray],
    classes: Sequence[str],
    counters: Counters,
) -> Summary:
    """The figures of ``answers`` (one or more, in order); ``labels``: those of the whole clip.

    ``counters``: those of the engine after the last frame.
    """
    return Summary(
        account,
        Latency.of([answer.segmentation.timing.latency_ms for answer in answers]),
        Latency.of([answer.published_ms for answer in answers]),
        Latency.of([answer.received_ms for answer in answers]),
        counters.key_frames,
        counters.key_frames / len(answers),
        accuracy(labels, [(a.index, a.segmentation.mask) for a in answers], classes),
        counters,
    )


@dataclass(frozen=True)
class Machine:
    """What a time was measured on.

    ``cores`` counts those that this process may use; ``instructions`` are those for small numbers
    that the processor has; ``virtual``: whether a hypervisor runs it; ``gpu`` is empty for a run on
    the CPU.
    """

    cpu: str
    cores: int
    instructions: str
    virtual: bool
    gpu: str
    python: str
    torch: str

    def __str__(self) -> str:
        kind = "virtual, " if self.virtual else ""
        cpu = f"{self.cores} cores of {self.cpu} ({kind}{self.instructions or 'no AVX-512'})"
        where = self.gpu or cpu
        return f"{where}, torch {self.torch}, Python {self.python}"


def describe(device: str = "cpu") -> Machine:
    """This machine, with its GPU if ``device`` (``cpu``, ``cuda``, ``auto``) uses one."""
    info = Path("/proc/cpuinfo")  # where Linux gives the processor a name
    lines = info.read_text().splitlines() if info.is_file() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    flags = next((line for line in lines if line.startswith("flags")), "").split()
    small = ("avx_vnni", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16")
    on_gpu = device != "cpu" and torch.cuda.is_available()
    return Machine(
        cpu=next(names, platform.machine()),
        cores=len(os.sched_getaffinity(0)),
        instructions=" ".join(name for name in small if name in flags),
        virtual="hypervisor" in flags,
        gpu=torch.cuda.get_device_name() if on_gpu else "",
        python=platform.python_version(),
        torch=torch.__version__,
    )


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write ``content`` (records, mappings, lists, numbers) as JSON, where NaN becomes null.

    Numbers have six decimals. A reader finds the old file or the whole new one, never a part.
    """
    text = json.dumps(plain(content), indent=2, allow_nan=False) + "\n"
    part = path.with_name(f"{path.name}.part")
    part.write_text(text)
    os.replace(part, path)


def plain(value: Any) -> Any:
    """Records as mappings, and numbers as :func:`write_json` writes them."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    if isinstance(value, dict):
        return {name: plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return None if math.isnan(value) else round(value, 6)
    return value


def print_summary(
    console: Console,
    title: str,
    summary: Summary,
    machine: Machine,
    full: tuple[Latency, Accuracy] | None,
) -> None:
    """Latency, accuracy and account of a run; ``full`` is the whole network on each frame."""
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column("latency in ms")
    for name in ("p50", "p95", "p99", "max", "first frame"):
        table.add_column(name, justify="right")
    latencies = {
        "engine, frame to mask": summary.engine,
        "stamp to mask published": summary.published,
        "stamp to mask received": summary.received,
    }
    if full is not None:
        latencies["full network per frame"] = full[0]
    for name, latency in latencies.items():
        steady = latency.steady  # without the first frame, which runs the whole network
        known = (steady.p50, steady.p95, steady.p99, steady.max)
        cells = [f"{value:.1f}" if steady.count else "-" for value in known]
        table.add_row(name, *cells, f"{latency.first:.1f}")
    console.print(table)

    table = Table()
    table.add_column("accuracy in %")
    for name in ("mIoU", "pixel", "class", "VC8", "frames scored"):
        table.add_column(name, justify="right")
    rows = {"node": summary.accuracy} | ({"full network": full[1]} if full is not None else {})
    for name, scores in rows.items():
        shares = (scores.miou, scores.pixel_accuracy, scores.class_accuracy, scores.vc8)
        # NaN where there is nothing to score, as for VC8 in a clip that is too short.
        cells = ["-" if share != share else f"{100 * share:.1f}" for share in shares]
        table.add_row(name, *cells, str(scores.frames))
    console.print(table)

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
