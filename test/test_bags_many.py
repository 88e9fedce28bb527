"""``lowlat-seg bag run`` on many bags: one after the other, and on a Ray cluster."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("rosbags", reason="bags need the library rosbags")

from lowlat_seg_ros.tools import cli
from lowlat_seg_ros.tools.bag.command import Topics
from lowlat_seg_ros.tools.bag.run import PARTIAL
from lowlat_seg_ros.tools.bag.storage import BagReader

pytestmark = pytest.mark.slow

FRAMES = 5


@pytest.fixture(scope="module")
def bags(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two bags of one name in two folders, and one that is damaged."""
    folder: Path = tmp_path_factory.mktemp("bags")
    paths = [folder / day / "drive" for day in ("monday", "tuesday")]
    for seed, path in enumerate(paths):
        words = ["--size", "48x80", "--frames", FRAMES + seed, "--rate", 10, "--seed", seed]
        assert cli.main(["bag", "make", *map(str, words), "--out", str(path)]) == 0
    damaged = folder / "damaged.mcap"
    damaged.write_text("no bag")
    return [*paths, damaged]


def words(bags: list[Path], out: Path, weights: Path) -> list[str]:
    common = ["--checkpoint", weights, "--device", "cpu", "--foreground-threads", 1]
    return ["bag", "run", *map(str, [*bags, "--out", out, *common])]


def masks(path: Path) -> list[tuple[int, bytes]]:
    with BagReader(path) as bag:
        chosen = (Topics.mask, Topics.confidence)
        return [(raw.time_ns, bytes(raw.data)) for raw in bag.raw(chosen)]


def test_each_bag_is_segmented_and_all_are_in_one_table(
    bags: list[Path], weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert cli.main(words(bags, out, weights)) == 2  # for the damaged one
    assert {p.name for p in out.iterdir()} == {"monday_drive", "tuesday_drive", "summary.json"}
    printed = capsys.readouterr().out
    assert re.search(r"damaged: .*damaged.mcap cannot be read as a rosbag2 bag", printed)
    assert re.search(rf"all\W+{2 * FRAMES + 1}\W+{2 * FRAMES + 1}\W+0\W+0\W+0\W", printed)
    found = summary(out)
    assert list(found["bags"]) == ["monday_drive", "tuesday_drive", "damaged"]
    assert found["bags"]["damaged"]["problem"]
    assert found["total"]["masks"] == 2 * FRAMES + 1
    assert found["bags"]["tuesday_drive"]["ledger"]["published"] == FRAMES + 1
    # The same as of that bag alone.
    assert cli.main(words(bags[:1], tmp_path / "alone", weights)) == 0
    assert masks(out / "monday_drive") == masks(tmp_path / "alone")
    assert len(masks(tmp_path / "alone")) == 2 * FRAMES


def test_what_cannot_be_is_told_before_anything_is_written(
    bags: list[Path], weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, out = bags[:2], tmp_path / "out"
    taken = tmp_path / "taken"
    (taken / "monday_drive").mkdir(parents=True)
    for command, expected in (
        (words([*good, good[0]], out, weights), "is given more than once; give each bag once"),
        (words(good, taken, weights), "monday_drive is there already; remove it"),
        ([*words(good, out, weights), "--ray", str(good[1])], "write --ray last"),
        ([*words(good, out, weights), "--latency-ms", "-1"], "--latency-ms is -1"),
    ):
        assert cli.main(command) == 2
        assert expected in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.skipif(bool(importlib.util.find_spec("ray")), reason="ray is installed")
def test_without_ray_the_error_says_how_to_get_it(
    bags: list[Path], weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([*words(bags, tmp_path / "out", weights), "--ray"]) == 2
    assert "pip install ray" in capsys.readouterr().err


def test_a_cluster_gives_the_same_and_a_lost_worker_s_bag_is_tried_again(
    bags: list[Path], weights: Path, tmp_path: Path
) -> None:
    """Two workers on this machine, one of which is killed while it segments."""
    pytest.importorskip("ray", reason="needs the library ray (pip install ray)")
    good, out = bags[:2], tmp_path / "cluster"
    assert cli.main(words(good, tmp_path / "here", weights)) == 0
    command = [
        sys.executable,
        "-m",
        "lowlat_seg_ros.tools.cli",
        *words(good, out, weights),
        "--ray",
    ]
    seen: set[str] = set()
    killed = ""
    with subprocess.Popen(command) as process:
        while process.poll() is None:  # the test's own timeout bounds this
            new = {path.name for path in out.glob(f"{PARTIAL}*")} - seen
            seen |= new
            if new and not killed:
                killed = min(new)
                os.kill(int(killed.removeprefix(PARTIAL).split("_")[0]), signal.SIGKILL)
            time.sleep(0.005)
    assert process.returncode == 0
    assert len(seen) == len(good) + 1  # one of them had two
    assert summary(out)["total"] == summary(tmp_path / "here")["total"]
    for name, entry in summary(tmp_path / "here")["bags"].items():
        other = summary(out)["bags"][name]
        assert (other["ledger"], other["counters"]) == (entry["ledger"], entry["counters"])
        assert masks(out / name) == masks(tmp_path / "here" / name)
    assert not [*out.glob(f"{PARTIAL}*")]


def summary(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "summary.json").read_text())
    return found
