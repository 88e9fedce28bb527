"""The demo as a user runs it: processes of its own, real DDS, files to look at."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
import torch

pytest.importorskip("rclpy", reason="needs ROS 2")

from harness import ROOT

from lowlat_seg_ros.config import NETWORKS, ConfigError, EngineConfig
from lowlat_seg_ros.network.checkpoint import Header, save
from lowlat_seg_ros.network.segmenter import Segmenter
from lowlat_seg_ros.tools.demo import configure
from lowlat_seg_ros.tools.demo_run import run_demo

FRAMES, SIZE = 12, (48, 64)


@pytest.fixture(scope="module")
def camvid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set in CamVid's layout: a bright square that moves over a dark ground."""
    root = tmp_path_factory.mktemp("camvid")
    lines = []
    for index in range(FRAMES):
        name = f"0016E5_{7959 + 2 * index:05d}.png"
        image, label = np.full((*SIZE, 3), 40, np.uint8), np.full(SIZE, 3, np.uint8)
        square = np.s_[10:30, 2 * index : 2 * index + 20]
        image[square], label[square] = (200, 60, 120), 8
        label[:4] = 11  # void
        cv2.imwrite(str(root / name), image)
        cv2.imwrite(str(root / f"label_{name}"), label)
        lines.append(f"{name} label_{name}\n")
    (root / "val.txt").write_text("".join(lines))
    return root


def command(*options: str | Path) -> subprocess.Popen[str]:
    arguments = [sys.executable, "-m", "lowlat_seg_ros.tools.cli", "demo", *map(str, options)]
    return subprocess.Popen(
        arguments,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture(scope="module")
def played(
    camvid: Path, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, str]:
    """Folder and terminal output of one demo."""
    out = tmp_path_factory.mktemp("demo") / "new" / "folder"
    demo = command("--dataset", "camvid", "--root", camvid, "--checkpoint", checkpoint,
                   "--device", "cpu", "--rate", "10", "--out", out)  # fmt: skip
    output, errors = demo.communicate(timeout=240)
    assert demo.returncode == 0, output + errors
    return out, output


def test_every_frame_played_is_accounted_for(played: tuple[Path, str]):
    account = json.loads((played[0] / "summary.json").read_text())["account"]
    assert account["played"] == FRAMES
    assert account["masks"] + account["superseded"] == FRAMES
    assert account["masks"] >= 2  # the first frame, and the last, which none supersedes
    assert (account["rejected"], account["failed"], account["unaccounted"]) == (0, 0, 0)


def test_summary_agrees_with_itself(played: tuple[Path, str]):
    summary = json.loads((played[0] / "summary.json").read_text())
    masks = summary["account"]["masks"]
    assert summary["clip"]["frames"] == FRAMES
    assert (summary["clip"]["height"], summary["clip"]["width"]) == SIZE
    for name in ("engine", "published", "received"):
        latency = summary["latency_ms"][name]
        assert latency["steady"]["count"] == masks - 1
        steady = latency["steady"]
        assert 0 < steady["p50"] <= steady["p95"] <= steady["p99"] <= steady["max"]
    engine, received = (summary["latency_ms"][name] for name in ("engine", "received"))
    assert engine["first"] < received["first"]
    assert summary["counters"]["frames"] == masks
    assert summary["counters"]["key_frames"] == summary["key_frames"]["count"] >= 1
    for scores in (summary["accuracy"], summary["full_network"]["accuracy"]):
        assert scores["frames"] == masks
        assert 0 <= scores["miou"] <= scores["pixel_accuracy"] <= 1
    assert summary["machine"]["cores"] >= 1


def test_video_shows_every_frame_played(played: tuple[Path, str]):
    with av.open(str(played[0] / "overlay.mp4")) as container:
        frames = [f.to_ndarray(format="rgb24") for f in container.decode(video=0)]
        assert container.streams.video[0].average_rate == 10
    assert len(frames) == FRAMES
    width = SIZE[1]
    assert frames[0].shape[1] == 2 * width
    # The bright square of the input, on the left, moves on.
    brightest = [frame[10:30, :width].astype(int).sum(axis=(0, 2)).argmax() for frame in frames]
    assert brightest[-1] > brightest[0]


def test_chart_log_and_table_are_there(played: tuple[Path, str]):
    out, output = played
    assert cv2.imread(str(out / "latency.png")) is not None
    assert "Waiting for images" in (out / "node.log").read_text()
    for text in ("p99", "mIoU", "Key frames", "full network", "cores of", str(FRAMES)):
        assert text in output


def children(pid: int) -> list[int]:
    return [int(n) for n in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_stopping_the_demo_stops_the_node(
    camvid: Path, checkpoint: Path, tmp_path: Path, number: signal.Signals, status: int
):
    demo = command("--dataset", "camvid", "--root", camvid, "--checkpoint", checkpoint,
                   "--rate", "0.1", "--out", tmp_path)  # fmt: skip
    log, end = tmp_path / "node.log", time.monotonic() + 120
    while not log.exists() or "Waiting for images" not in log.read_text():
        assert demo.poll() is None
        assert time.monotonic() < end
        time.sleep(0.1)
    (node,) = children(demo.pid)
    demo.send_signal(number)
    _, errors = demo.communicate(timeout=60)
    assert demo.returncode == status
    assert "Traceback" not in errors
    assert not Path(f"/proc/{node}").exists()


def test_checkpoint_for_other_classes_is_refused(camvid: Path, tmp_path: Path, tiny: Segmenter):
    names = tuple(f"class {n}" for n in range(11))
    path = tmp_path / "other.safetensors"
    save(path, tiny, Header(NETWORKS["tiny"], names, ((0, 0, 0),) * 11, 0.5), torch.float32)
    parser = argparse.ArgumentParser()
    configure(parser)
    words = ["--dataset", "camvid", "--root", camvid, "--checkpoint", path, "--out", tmp_path]
    with pytest.raises(ConfigError, match="knows the classes class 0"):
        run_demo(parser.parse_args([*map(str, words)]), EngineConfig())
