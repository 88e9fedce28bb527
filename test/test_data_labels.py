"""Class tables, pictures of masks, and what every sequence can do."""

from __future__ import annotations

import numpy as np
import pytest

from lowlat_seg_ros.config import ConfigError
from lowlat_seg_ros.lab.data.sequence import (
    DataError,
    LabelledFrame,
    Sequence,
    frames_of,
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


def test_classes_are_called_otherwise_in_masks() -> None:
    table = CAMVID.remapped(["Road:50", "Pavement: 50", "Sky:255", "Car:3"])
    lut = table.id_lut
    assert lut is not None
    ids = dict(zip(CAMVID.names, lut[: len(CAMVID)].tolist(), strict=True))
    assert ids == {name: index for index, name in enumerate(CAMVID.names)} | {
        "Road": 50, "Pavement": 50, "Sky": 255, "Car": 3
    }  # fmt: skip
    assert set(lut[len(CAMVID) :].tolist()) == {255}
    assert [(i, name) for i, name, _ in table.shown] == [
        (i, name) for name, i in ids.items() if i != 255
    ]
    mask = np.array([[3, 4, 0, 8, 2, 255]], np.uint8)
    picture = colour_mask(lut[mask], table)[0].tolist()
    wanted = [CAMVID.colours[3], CAMVID.colours[3], (0, 0, 0), CAMVID.colours[8], CAMVID.colours[2]]
    assert picture == [list(c) for c in [*wanted, (0, 0, 0)]]
    image = np.full((1, 6, 3), 90, np.uint8)
    mixed = overlay(image, lut[mask], table, 1.0)[0].tolist()
    assert mixed == [[90] * 3 if c == [0, 0, 0] else c for c in picture]


def test_without_entries_the_numbers_stay() -> None:
    assert CAMVID.remapped([]) == CAMVID
    assert CAMVID.id_lut is None
    assert CAMVID.remapped(["Sky:0"]).id_lut is None


@pytest.mark.parametrize(
    ("entries", "says"),
    [
        (
            ["Raod:1"],
            r"has 'Raod:1'; write name:id, such as Sky:7.* one of the names Sky, Building",
        ),
        (["Road"], "has 'Road'; write name:id"),
        (["Road:x"], "has 'Road:x'"),
        (["Road:-1"], "has 'Road:-1'"),
        (["Road:256"], r"has.* an id of 0 to 255 \(unlabelled\)"),
        (["Road:20", "Road:21"], "has Road twice; give each class one id"),
        (["Road:1"], "gives id 1 away, which Building has; give Building an entry as well"),
        ([f"{name}:255" for name in CAMVID.names], "leaves no class"),
    ],
)
def test_wrong_entry_is_refused_with_what_to_write(entries: list[str], says: str) -> None:
    with pytest.raises(ConfigError, match=f"^class_remap {says}"):
        CAMVID.remapped(entries)


def test_the_advice_on_a_class_whose_id_is_given_away_works() -> None:
    assert CAMVID.remapped(["Road:1", "Building:3"]).ids[:4] == (0, 3, 2, 1)
    assert CAMVID.remapped(["Road:1", "Building:1"]).ids[:4] == (0, 1, 2, 1)


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


def test_stack_keeps_order_and_channels() -> None:
    images, labels = stack(frames_of(Drives()))
    assert images.shape == (30, 3, 4, 6)
    assert (images[:, 0] == labels).all()
    assert labels[:, 0, 0].tolist() == list(range(30))


def test_stack_names_the_frame_of_another_size() -> None:
    with pytest.raises(DataError, match=r"^7 is \(5, 6\)"):
        stack(frames_of(Drives(odd_size=True)))
