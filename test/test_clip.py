"""Clips to be played: one drive, of one size, with its labels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lowlat_seg_ros.lab.data import clip as clips
from lowlat_seg_ros.lab.data.sequence import DataError, LabelledFrame
from lowlat_seg_ros.labels import CAMVID


class Drives:
    """Two drives, of three frames and of one."""

    table, rate_hz = CAMVID, 15.0

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> LabelledFrame:
        image = np.full((8, 16, 3), index, np.uint8)
        return LabelledFrame(image, image[..., 0], index, f"frame {index}")

    def drive(self, index: int) -> str:
        return "first" if index < 3 else "second"


@pytest.mark.parametrize(("frames", "length"), [(2, 2), (3, 3), (50, 3)])
def test_clip_ends_with_its_drive(frames: int, length: int):
    steps: list[int] = []
    clip = clips.load("two drives", Drives(), frames, steps.append, one_drive=True)
    assert [image[0, 0, 0] for image in clip.images] == list(range(length))
    assert [label[0, 0] for label in clip.labels] == list(range(length))
    assert steps == [1] * length
    assert clip.size == (8, 16)


def test_clip_of_one_frame_is_refused():
    with pytest.raises(DataError, match="two drives has 1 frames"):
        clips.load("two drives", Drives(), 1, lambda _: None, one_drive=True)


def test_camvid_that_is_not_there_is_refused(tmp_path: Path):
    with pytest.raises(DataError, match="nowhere"):
        clips.camvid(tmp_path / "nowhere", "val", None)


def test_rendered_drive_has_the_size_asked_for():
    name, drive = clips.rendered(seed=1, frames=3, rate_hz=5.0, size=(96, 128))
    clip = clips.load(name, drive, 3, lambda _: None)
    assert (len(clip.images), clip.size) == (3, (96, 128))
    assert clip.images[0].shape == (96, 128, 3)
    assert (clip.images[0] != clip.images[2]).any()
