"""Figures of a training run by step: CSV files, and TensorBoard where it is installed."""

from __future__ import annotations

import csv
import sys
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class Log:
    """Writes ``out/NAME.KIND.csv`` and ``out/NAME.tensorboard``, going on after ``step``.

    Rows of later steps, which a run that was killed has left, are dropped: they come again.
    """

    def __init__(self, out: Path, name: str, step: int) -> None:
        self.out, self.name, self.step = out, name, step
        self.begun: set[str] = set()
        self.board = _board(out / f"{name}.tensorboard", step)

    def __enter__(self) -> Log:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.board is not None:
            self.board.close()

    def write(self, kind: str, step: int, figures: dict[str, float]) -> None:
        """Add one row of ``figures`` after ``step`` steps; all rows of a ``kind`` have the same."""
        path, row = self.out / f"{self.name}.{kind}.csv", {"step": step} | figures
        if kind not in self.begun:
            self._begin(path, list(row))
            self.begun.add(kind)
        with path.open("a", newline="") as file:
            csv.DictWriter(file, list(row)).writerow(row)
        if self.board is not None:
            for name, figure in figures.items():
                self.board.add_scalar(f"{kind}/{name}", figure, step)
            self.board.flush()

    def _begin(self, path: Path, columns: list[str]) -> None:
        """The header, and the rows up to ``step`` of the run that is gone on with."""
        kept: list[dict[str, str]] = []
        if path.exists():
            with path.open(newline="") as file:
                kept = [row for row in csv.DictReader(file) if int(row["step"]) <= self.step]
        with path.open("w", newline="") as file:
            # An older version may have written other columns.
            writer = csv.DictWriter(file, columns, restval="", extrasaction="ignore")
            writer.writeheader()
            writer.writerows(kept)


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
