"""The log of a training run: rows, resume, and TensorBoard."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import pytest

from lowlat_seg_ros.lab.training.log import Log


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def write_twice(out: Path) -> None:
    """A run that was killed after step 150, resumed from step 100, now with one more column."""
    with Log(out, "base", 0) as log:
        for step, loss in ((50, 2.0), (100, 1.5), (150, 9.0)):
            log.write("loss", step, {"loss": loss})
        log.write("held_out", 100, {"miou": 0.25})
    with Log(out, "base", 100) as log:
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


def test_tensorboard_holds_the_figures(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    write_twice(tmp_path)
    board = EventAccumulator(str(tmp_path / "base.tensorboard")).Reload()
    losses = [(event.step, event.value) for event in board.Scalars("loss/loss")]
    assert losses == [(50, 2.0), (100, 1.5), (150, 1.0), (200, 0.5)]
    assert [(event.step, event.value) for event in board.Scalars("held_out/miou")] == [(100, 0.25)]


def test_without_tensorboard_one_line_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)  # it cannot be imported
    with Log(tmp_path, "base", 0) as log:
        log.write("loss", 1, {"loss": 2.0})
        log.write("loss", 2, {"loss": 1.0})
    message = capsys.readouterr().err
    assert len(message.splitlines()) == 1
    assert "tensorboard is not installed" in message
    assert len(rows(tmp_path / "base.loss.csv")) == 2
    assert not (tmp_path / "base.tensorboard").exists()
