"""The log of a training run: rows, and resume."""

from __future__ import annotations

import csv
from pathlib import Path

from lowlat_seg_ros.lab.training.loop import Log


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def write_twice(out: Path) -> None:
    """A run that was killed after step 150, resumed from step 100, now with one more column."""
    log = Log(out, "base", 0)
    for step, loss in ((50, 2.0), (100, 1.5), (150, 9.0)):
        log.write("loss", step, {"loss": loss})
    log.write("held_out", 100, {"miou": 0.25})
    log = Log(out, "base", 100)
    log.write("loss", 150, {"loss": 1.0, "aux": 0.5})
    log.write("loss", 200, {"loss": 0.5, "aux": 0.4})


def test_every_kind_has_a_file_and_rows_that_come_again_are_dropped(tmp_path: Path) -> None:
    write_twice(tmp_path)
    assert rows(tmp_path / "base.held_out.csv") == [{"step": "100", "miou": "0.25"}]
    assert rows(tmp_path / "base.loss.csv") == [
        {"step": "50", "loss": "2.0", "aux": ""},
        {"step": "100", "loss": "1.5", "aux": ""},
        {"step": "150", "loss": "1.0", "aux": "0.5"},
        {"step": "200", "loss": "0.5", "aux": "0.4"},
    ]
