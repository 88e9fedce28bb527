"""The charts of a comparison are written, and the page links to them."""

from __future__ import annotations

import re
from pathlib import Path

import cv2
import numpy as np
import pytest

from lowlat_seg_ros.lab.data.clip import Clip
from lowlat_seg_ros.lab.evaluation.charts import front_of
from lowlat_seg_ros.lab.evaluation.comparison import grid_rows
from lowlat_seg_ros.labels import CAMVID
from lowlat_seg_ros.tools import cli


def test_the_front_holds_what_no_other_beats() -> None:
    points = [(10.0, 0.5), (20.0, 0.4), (20.0, 0.6), (15.0, 0.5), (30.0, 0.7), (5.0, 0.1)]
    assert front_of(points) == [(5.0, 0.1), (10.0, 0.5), (20.0, 0.6), (30.0, 0.7)]
    assert front_of([]) == []


@pytest.mark.parametrize("count", [1, 2, 5, 50])
def test_grid_rows_are_frames_of_the_clip(count: int) -> None:
    clip = Clip("none", CAMVID, 1.0, (None,) * count, ("a",) * count)  # type: ignore[arg-type]
    rows = grid_rows(clip)
    assert rows == sorted(set(rows))
    assert len(rows) == min(4, count)
    assert set(rows) <= set(range(count))


def drawn(weights: Path, out: Path, methods: str, *words: str) -> set[str]:
    common = "evaluate --size 48x64 --frames 6 --device cpu --foreground-threads 1"
    options = ["--checkpoint", str(weights), "--out", str(out), "--methods", methods, *words]
    assert cli.main([*common.split(), *options]) == 0
    page, links = (out / "results.md").read_text(), set()
    for path in (out / "figures").iterdir():
        picture = cv2.imread(str(path))
        assert picture is not None
        assert np.ptp(picture) > 100  # not a blank canvas
        links.add(f"(figures/{path.name})")
    assert set(re.findall(r"!\[[a-z ]+\](\(.*\))", page)) == links
    return {path.name for path in (out / "figures").iterdir()}


def test_all_charts_of_a_full_comparison(weights: Path, tmp_path: Path) -> None:
    methods = "full,single_frame,adaptive,schedule_*_2,adaptive_low_latency"
    assert drawn(weights, tmp_path / "out", methods, "--streaming") == {
        "latency_accuracy.png", "grid.png", "distance.png", "schedules.png", "deviation.png",
    }  # fmt: skip


def test_only_the_charts_that_the_methods_allow(weights: Path, tmp_path: Path) -> None:
    assert drawn(weights, tmp_path / "out", "full,single_frame") == {
        "latency_accuracy.png", "grid.png",
    }  # fmt: skip
    # Those that differ in a number alone are left out of the charts that compare methods.
    assert drawn(weights, tmp_path / "sweep", "adaptive_low_latency_?") == {"grid.png"}
