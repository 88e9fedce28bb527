"""What all reports share: the machine, JSON, tables for terminals and pages, axes for charts."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.box import SIMPLE_HEAD
from rich.table import Table as TerminalTable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Cores that other processes may keep busy before times are called too long.
QUIET = 0.2

#: Colours that also differ for the colour-blind (Tol's bright scheme); ours, and those of others.
OURS, OTHERS, PER_FRAME, VARIANTS = "#aa3377", "#4477aa", "#666666", "#228833"

Row = tuple[str, ...]


@dataclass(frozen=True)
class Machine:
    """What a time was measured on."""

    cpu: str
    cores: int  # those that this process may use
    instructions: str  # for small numbers, that the processor has
    virtual: bool  # whether a hypervisor runs it
    gpu: str  # empty for a run on the CPU
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
    part.replace(path)


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


@dataclass(frozen=True)
class Table:
    """``columns`` and, by heading, the rows below them; the first column holds names."""

    columns: Row
    groups: dict[str, list[Row]]

    @classmethod
    def plain(cls, columns: Row, rows: Sequence[Row]) -> Table:
        """Without headings."""
        return cls(columns, {"": list(rows)})


def terminal_table(table: Table, title: str, width: int | None = None) -> TerminalTable:
    """``width``: that of all columns but the first, whose headings are folded to it.

    Eleven columns of four letters fit on a terminal of 80.
    """
    shown = TerminalTable(
        title=title or None,
        title_justify="left",
        title_style="bold",
        box=SIMPLE_HEAD,
        padding=(0, 0, 0, 0 if width else 1),
        pad_edge=False,
    )
    shown.add_column(table.columns[0], no_wrap=True)
    for column in table.columns[1:]:
        shown.add_column(column, justify="right", overflow="fold", width=width)
    for rows in table.groups.values():
        for row in rows:
            shown.add_row(*row)
        shown.add_section()
    return shown


def pictures(charts: dict[Path, str], folder: Path) -> list[str]:
    """``charts`` with their captions, as Markdown of a page in ``folder``."""
    return [
        f"{caption}\n\n![{path.stem.replace('_', ' ')}]({path.relative_to(folder).as_posix()})"
        for path, caption in charts.items()
    ]


def markdown(table: Table) -> str:
    """``table`` as Markdown, with a line for the heading of each group that has one."""

    def line(cells: Row) -> str:
        # A bar would end the cell.
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    lines = [line(table.columns), line((":---", *("---:" for _ in table.columns[1:])))]
    for heading, rows in table.groups.items():
        if heading:
            lines.append(line((f"**{heading}**", *("" for _ in table.columns[1:]))))
        lines += [line((f"`{row[0]}`", *row[1:])) for row in rows]
    return "\n".join(lines)


def new_axes(inches: tuple[float, float], title: str) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure  # it is slow to load, and most reports have no chart

    figure = Figure(figsize=inches, layout="constrained")
    axes = figure.subplots()
    axes.set_title(title, loc="left", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.2)
    return figure, axes


def save(figure: Figure, axes: Axes, path: Path) -> None:
    """Write the figure, with its legend beside the chart, where it hides nothing."""
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, fontsize=8)
    figure.savefig(path, dpi=110)


def log_milliseconds(axes: Axes, ticks: tuple[float, ...], which: str = "x") -> None:
    """A logarithmic axis, "x" or "y", with plain numbers at these multiples of powers of ten."""
    from matplotlib.ticker import LogLocator, NullLocator

    axes.set(**{f"{which}scale": "log"})
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_major_locator(LogLocator(subs=ticks))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter("{x:g}")
