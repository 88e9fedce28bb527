"""Figures of a training run by step: CSV files, and TensorBoard where it is installed."""

from __future__ import annotations

import contextlib
import csv
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class Log(contextlib.AbstractContextManager["Log"]):
    """Writes ``out/NAME.KIND.csv`` and ``out/NAME.tensorboard``, going on after ``step``.

    Rows of later steps, which a run that was killed has left, are dropped: they come again.
    """

    def __init__(self, out: Path, name: str, step: int) -> None:
        self.out, self.name, self.step = out, name, step
        self.begun: set[str] = set()
        self.board = _board(out / f"{name}.tensorboard", step)

    def __exit__(self, *error: object) -> None:
        if self.board is not None:
            self.board.close()

    def write(self, kind: str, step: int, figures: dict[str, float]) -> None:
        """Add one row of ``figures`` after ``step`` steps; all rows of a ``kind`` have the same."""
        path, row = self.out / f"{self.name}.{kind}.csv", {"step": step} | figures
        rows = [] if kind in self.begun or not path.exists() else self._earlier(path)
        with path.open("a" if kind in self.begun else "w", newline="") as file:
            # An older version may have written other columns.
            writer = csv.DictWriter(file, list(row), restval="", extrasaction="ignore")
            if kind not in self.begun:
                writer.writeheader()
            writer.writerows([*rows, row])
        self.begun.add(kind)
        if self.board is not None:
            for name, figure in figures.items():
                self.board.add_scalar(f"{kind}/{name}", figure, step)
            self.board.flush()

    def _earlier(self, path: Path) -> list[dict[str, str]]:
        """The rows up to ``step`` of the run that is gone on with."""
        with path.open(newline="") as file:
            return [row for row in csv.DictReader(file) if int(row["step"]) <= self.step]


def _board(folder: Path, step: int) -> SummaryWriter | None:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        print(
            "tensorboard is not installed, so figures go to CSV files alone; "
            "pip install tensorboard adds it",
            file=sys.stderr,
        )
        return None
    return SummaryWriter(str(folder), purge_step=step + 1)
