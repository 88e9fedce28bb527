"""Class tables, pictures of masks, and what every sequence can do."""

from __future__ import annotations

import numpy as np
import pytest

from lowlat_seg_ros.lab.data.sequence import (
    DataError,
    LabelledFrame,
    Sequence,
    split_holdout,
    stack,
)
from lowlat_seg_ros.labels import CAMVID, CITYSCAPES, ClassTable, colour_mask, overlay


class Drives:
    """Frames of two drives, 20 and 10 long; the label of frame i is i throughout."""

    table, rate_hz = CAMVID, 1.0

    def __init__(self, odd_size: bool = False) -> None:
        self._odd_size = odd_size

    def __len__(self) -> int:
        return 30

    def __getitem__(self, index: int) -> LabelledFrame:
        shape = (5, 6) if self._odd_size and index == 7 else (4, 6)
        return LabelledFrame(
            np.full((*shape, 3), index, np.uint8), np.full(shape, index, np.uint8), 0, str(index)
        )

    def drive(self, index: int) -> str:
        return "a" if index < 20 else "b"


def test_tables_have_the_classes_of_their_data_sets() -> None:
    assert len(CAMVID) == 11
    assert CAMVID.index("Road") == 3
    assert len(CITYSCAPES) == 19
    assert CITYSCAPES.index("bicycle") == 18
    assert len(set(CITYSCAPES.colours)) == 19


def test_unknown_class_names_what_exists() -> None:
    with pytest.raises(ValueError, match=r"no class 'Tram'; it has Sky, Building"):
        CAMVID.index("Tram")


@pytest.mark.parametrize(
    ("names", "colours", "words"),
    [
        (("a", "b"), ((0, 0, 0),), "2 names and 1 colours"),
        (("a",), ((0, 0, 0),), "has 1 classes"),
        (("a", "b"), ((0, 0, 0), (0, 0, 300)), r"colour \(0, 0, 300\)"),
    ],
)
def test_wrong_tables_are_refused(names: tuple, colours: tuple, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        ClassTable("mine", names, colours)


def test_mask_takes_its_classes_colours_and_ignored_pixels_are_black() -> None:
    picture = colour_mask(np.array([[3, 255]], np.uint8), CAMVID)
    assert picture.tolist() == [[[128, 64, 128], [0, 0, 0]]]


def test_overlay_mixes_known_pixels_and_leaves_ignored_ones() -> None:
    image = np.full((1, 2, 3), 100, np.uint8)
    mixed = overlay(image, np.array([[3, 255]], np.uint8), CAMVID, 0.5)
    assert np.abs(mixed[0, 0].astype(int) - [114, 82, 114]).max() <= 1
    assert mixed[0, 1].tolist() == [100, 100, 100]


def test_holdout_is_one_block_at_the_end_of_each_drive() -> None:
    train, held = split_holdout(Drives(), share=0.2)
    assert [held[i].name for i in range(len(held))] == ["16", "17", "18", "19", "28", "29"]
    assert {train[i].name for i in range(len(train))}.isdisjoint({"16", "29"})
    assert len(train) + len(held) == 30
    assert held.drive(5) == "b"
    assert isinstance(held, Sequence)


@pytest.mark.parametrize("share", [0.0, 1.0, float("nan")])
def test_holdout_share_must_lie_between_0_and_1(share: float) -> None:
    with pytest.raises(ValueError, match="share is"):
        split_holdout(Drives(), share)


def test_stack_keeps_order_and_channels() -> None:
    images, labels = stack(Drives())
    assert images.shape == (30, 3, 4, 6)
    assert (images[:, 0] == labels).all()
    assert labels[:, 0, 0].tolist() == list(range(30))


def test_stack_names_the_frame_of_another_size() -> None:
    with pytest.raises(DataError, match=r"^7 is \(5, 6\)"):
        stack(Drives(odd_size=True))
