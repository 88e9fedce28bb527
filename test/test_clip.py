"""Clips to be played: one drive, of one size, with its labels."""

from __future__ import annotations

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


def test_a_clip_spans_drives_or_holds_one():
    steps: list[int] = []
    clip = clips.load("two drives", Drives(), 0, steps.append)
    assert (clip.ranges(), steps) == ([range(0, 3), range(3, 4)], [1] * 4)
    assert [image[0, 0, 0] for image in clip.images] == [0, 1, 2, 3]
    for drive, title, expected in (
        (None, "two drives, drive first", [0, 1]),
        ("second", "two drives, drive second", [3]),
    ):
        one = clips.load(*clips.one_drive("two drives", Drives(), drive), 2, steps.append)
        assert one.name == title
        assert [label[0, 0] for label in one.labels] == expected
        assert one.size == (8, 16)
    with pytest.raises(DataError, match="two drives has no drive 'x'; it has 'first', 'second'"):
        clips.one_drive("two drives", Drives(), "x")


def test_rendered_drive_has_the_size_asked_for():
    name, drive = clips.one_drive(*clips.rendered(seed=1, frames=3, rate_hz=5.0, size=(96, 128)))
    clip = clips.load(name, drive, 3, lambda _: None)
    assert (clip.name, len(clip), clip.size) == ("rendered drive 1", 3, (96, 128))
    assert clip.images[0].shape == (96, 128, 3)
    assert (clip.images[0] != clip.images[2]).any()
