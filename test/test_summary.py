"""Figures of a run: what is counted, what is left out, and how it is written down."""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from lowlat_seg_ros.engine.cpu_threads import ExternalCpuLoad, busy_s
from lowlat_seg_ros.lab.metrics import Latency, accuracy
from lowlat_seg_ros.lab.report import describe, write_json
from lowlat_seg_ros.tools.account import Account

CLASSES = ("road", "sky")


def plain(value: int) -> np.ndarray:
    return np.full((2, 2), value, np.uint8)


def test_every_frame_is_in_one_place_of_the_account():
    assert Account(10, masks=6, superseded=2, rejected=1, failed=1).unaccounted == 0
    assert Account(10, masks=6, superseded=2, rejected=1, failed=0).unaccounted == 1


def test_first_frame_is_told_apart():
    latency = Latency.of([900.0, *range(1, 100)])
    assert latency.first == 900.0
    assert latency.steady.count == 99
    assert latency.steady.p50 == 50.0
    assert latency.steady.max == 99.0


def test_clip_of_one_frame_has_no_steady_state():
    assert Latency.of([5.0]).steady.count == 0


def test_masks_are_scored_against_the_label_of_their_own_frame():
    labels = [plain(0), plain(1), plain(0)]
    scores = accuracy(labels, [(0, plain(0)), (2, plain(0))], CLASSES)
    assert (scores.frames, scores.pixel_accuracy) == (2, 1.0)
    assert scores.iou["road"] == 1.0
    assert math.isnan(scores.iou["sky"])


def test_missing_frame_ends_a_window_of_consistency():
    labels = [plain(0)] * 17
    whole = accuracy(labels, [(i, plain(0)) for i in range(8)], CLASSES)
    broken = accuracy(labels, [(i, plain(0)) for i in range(15) if i != 7], CLASSES)
    assert whole.vc8 == 1.0
    assert math.isnan(broken.vc8)


def test_json_holds_records_and_null_for_what_is_not_a_number(tmp_path: Path):
    @dataclass(frozen=True)
    class Record:
        share: float
        counts: tuple[int, ...]

    path = tmp_path / "summary.json"
    write_json(path, {"record": Record(float("nan"), (1, 2)), "third": 1 / 3})
    assert json.loads(path.read_text()) == {
        "record": {"share": None, "counts": [1, 2]},
        "third": pytest.approx(1 / 3, abs=1e-6),
    }


def test_machine_is_named():
    machine = describe()
    assert machine.cpu
    assert machine.cores >= 1
    assert machine.gpu == ""


def test_work_of_other_processes_is_that_of_our_cores(tmp_path: Path):
    own = min(os.sched_getaffinity(0))
    ticks = os.sysconf("SC_CLK_TCK")
    stat = tmp_path / "stat"
    # user nice system idle iowait irq softirq steal guest guest_nice
    stat.write_text(f"cpu 9 9 9 9 9 9 9 9 9 9\ncpu{own} {ticks} 0 {ticks} 7 7 0 0 {ticks} 5 5\n"
                    f"cpu99999 {ticks} 0 0 0 0 0 0 0 0 0\nintr 1 2 3\n")  # fmt: skip
    assert busy_s(stat) == 3.0
    assert math.isnan(busy_s(tmp_path / "none"))
    neighbours = ExternalCpuLoad(stat)
    stat.write_text(f"cpu{own} {10_000 * ticks} 0 0 0 0 0 0 0 0 0\n")
    assert neighbours.cores() > 100  # 10 000 s of work in no time
    assert math.isnan(ExternalCpuLoad(tmp_path / "none").cores())
