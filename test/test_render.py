"""``lowlat-seg render``: what is written is what is rendered, and can be read back."""

from __future__ import annotations

import re
from pathlib import Path

import av
import numpy as np
import pytest

from lowlat_seg_ros.lab.data.folder import ImageFolder
from lowlat_seg_ros.lab.data.sequence import Sequence
from lowlat_seg_ros.lab.data.synthetic import RenderedDrive
from lowlat_seg_ros.tools import cli

SIZE = (48, 80)


def render(*words: object) -> int:
    return cli.main(["render", "--size", "48x80", "--frames", "4", *map(str, words)])


def assert_equal(first: Sequence, second: Sequence) -> None:
    assert first.table == second.table
    assert len(first) == len(second)
    for index in range(len(first)):
        one, other = first[index], second[index]
        np.testing.assert_array_equal(one.image, other.image)
        np.testing.assert_array_equal(one.label, other.label)
        assert one.stamp_ns == other.stamp_ns
        assert first.drive(index) == second.drive(index)


def test_the_folder_holds_the_drive(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert render("--out", tmp_path / "new" / "data", "--seed", 3, "--rate", 8) == 0
    drive = RenderedDrive(seed=3, frames=4, rate_hz=8, size=SIZE)
    assert_equal(ImageFolder(tmp_path / "new" / "data", rate_hz=8), drive)
    said = capsys.readouterr().out
    assert float(re.findall(r"4 frames of 80x48: (\S+) frames/s", said)[0]) > 0
    assert "torch" in said


def test_another_seed_adds_a_drive_and_the_same_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed in (1, 2):
        assert render("--out", tmp_path, "--seed", seed) == 0
    frames = ImageFolder(tmp_path)
    drives = [frames.drive(index) for index in range(len(frames))]
    assert drives == ["rendered_1"] * 4 + ["rendered_2"] * 4
    capsys.readouterr()
    assert render("--out", tmp_path, "--seed", 2) == 2
    assert "rendered_2 is there already" in capsys.readouterr().err
    assert len(ImageFolder(tmp_path)) == 8


def test_a_folder_of_other_classes_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "classes.yaml").write_text(
        "classes: [{name: a, colour: [0, 0, 0]}, {name: b, colour: [1, 1, 1]}]"
    )
    assert render("--out", tmp_path) == 2
    assert "another class table" in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"classes.yaml"}


def test_the_video_shows_image_and_labels(tmp_path: Path) -> None:
    assert render("--out", tmp_path, "--video", "--rate", 10) == 0
    with av.open(str(tmp_path / "rendered_1.mp4")) as video:
        assert video.streams.video[0].average_rate == 10
        pictures = [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]
    assert [picture.shape for picture in pictures] == [(48, 160, 3)] * 4
    image = RenderedDrive(seed=1, frames=4, rate_hz=10, size=SIZE)[2].image
    difference = np.abs(pictures[2][:, :80].astype(int) - image).mean()
    assert difference < np.abs(pictures[2][:, 80:].astype(int) - image).mean() / 2


def test_without_a_folder_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert render() == 0
    assert "frames/s" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())
