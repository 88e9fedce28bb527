"""The log of a training run: rows, resume, and TensorBoard."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import pytest

from lowlat_seg_ros.lab.training.log import Log


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_every_kind_has_a_file_of_its_own(tmp_path: Path) -> None:
    with Log(tmp_path, "base", 0) as log:
        log.write("loss", 50, {"loss": 2.0})
        log.write("loss", 100, {"loss": 1.5})
        log.write("held_out", 100, {"miou": 0.25})
    losses, held_out = rows(tmp_path / "base.loss.csv"), rows(tmp_path / "base.held_out.csv")
    assert losses == [{"step": "50", "loss": "2.0"}, {"step": "100", "loss": "1.5"}]
    assert held_out == [{"step": "100", "miou": "0.25"}]


def test_rows_after_the_step_that_is_resumed_are_dropped(tmp_path: Path) -> None:
    with Log(tmp_path, "base", 0) as log:
        for step in (50, 100, 150):
            log.write("loss", step, {"loss": 2.0})
    with Log(tmp_path, "base", 100) as log:
        log.write("loss", 150, {"loss": 1.0, "aux": 0.5})
    found = rows(tmp_path / "base.loss.csv")
    assert [row["step"] for row in found] == ["50", "100", "150"]
    assert found[0] == {"step": "50", "loss": "2.0", "aux": ""}
    assert found[-1] == {"step": "150", "loss": "1.0", "aux": "0.5"}


def test_tensorboard_holds_the_figures(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with Log(tmp_path, "base", 0) as log:
        for step, loss in ((50, 2.0), (100, 1.5), (150, 9.0)):
            log.write("loss", step, {"loss": loss})
        log.write("held_out", 100, {"miou": 0.25})
    with Log(tmp_path, "base", 100) as log:  # step 150 comes again
        log.write("loss", 150, {"loss": 1.0})
    board = EventAccumulator(str(tmp_path / "base.tensorboard")).Reload()
    losses = [(event.step, event.value) for event in board.Scalars("loss/loss")]
    assert losses == [(50, 2.0), (100, 1.5), (150, 1.0)]
    assert [(event.step, event.value) for event in board.Scalars("held_out/miou")] == [(100, 0.25)]


def test_without_tensorboard_one_line_says_so(tmp_path: Path) -> None:
    # An interpreter in which it cannot be found, whether it is installed or not.
    code = (
        "import sys; sys.modules['tensorboard'] = None\n"
        "from pathlib import Path; from lowlat_seg_ros.lab.training.log import Log\n"
        f"with Log(Path({str(tmp_path)!r}), 'base', 0) as log:\n"
        "    log.write('loss', 1, {'loss': 2.0})\n"
        "    log.write('loss', 2, {'loss': 1.0})\n"
    )
    command = [sys.executable, "-c", code]
    root = Path(__file__).parents[1]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    assert len(done.stderr.splitlines()) == 1
    assert "tensorboard is not installed" in done.stderr
    assert len(rows(tmp_path / "base.loss.csv")) == 2
    assert not (tmp_path / "base.tensorboard").exists()
