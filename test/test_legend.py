"""The legend: the colours of the classes in a corner, the rest of the picture untouched."""

from __future__ import annotations

import numpy as np
import pytest

from lowlat_seg_ros.labels import CAMVID, CITYSCAPES, ClassTable, Legend


@pytest.mark.parametrize("table", [CAMVID, CITYSCAPES], ids=lambda table: table.name)
@pytest.mark.parametrize("size", [(360, 480), (720, 960), (1080, 1920), (200, 640)])
def test_every_colour_is_shown_in_the_left_half(size: tuple[int, int], table: ClassTable) -> None:
    before = np.full((*size, 3), 90, np.uint8)
    picture = before.copy()
    Legend(table).draw(picture)
    numbers = np.unique(picture @ np.array([1 << 16, 1 << 8, 1]))  # quicker than rows
    shown = {(n >> 16, n >> 8 & 255, n & 255) for n in numbers.tolist()}
    assert set(table.colours) <= shown
    assert max(min(colour) for colour in shown) > 180  # letters, however thin
    assert (30, 30, 30) in shown  # what lies beneath them is darkened
    half = size[1] // 2
    np.testing.assert_array_equal(picture[:, half:], before[:, half:])


def test_names_stand_beside_their_colours_in_the_tables_order() -> None:
    def drawn(*names: str) -> np.ndarray:
        picture = np.zeros((360, 480, 3), np.uint8)
        Legend(ClassTable("two", names, ((255, 0, 0), (0, 255, 0)))).draw(picture)
        return picture

    first, second = drawn("wwww", "i"), drawn("i", "wwww")
    red, green = (np.nonzero((first == c).all(-1))[0] for c in ((255, 0, 0), (0, 255, 0)))
    assert red.max() < green.min()
    letters = [(p > 60).all(-1).sum(1) for p in (first, second)]  # grey to white in each row
    upper, lower = np.s_[: red.max() + 1], np.s_[green.min() : green.max() + 1]
    assert letters[0][upper].sum() > letters[1][upper].sum()
    assert letters[0][lower].sum() < letters[1][lower].sum()


@pytest.mark.parametrize("size", [(48, 64), (10, 2000), (1000, 40), (1, 1)])
def test_picture_too_small_for_it_is_left_alone(size: tuple[int, int]) -> None:
    before = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    picture = before.copy()
    Legend(CAMVID).draw(picture)
    np.testing.assert_array_equal(picture, before)


def test_size_may_change_between_pictures() -> None:
    legend = Legend(CAMVID)
    for size in [(360, 480), (720, 960), (48, 64), (360, 480)]:
        again, fresh = (np.full((*size, 3), 90, np.uint8) for _ in range(2))
        legend.draw(again)
        Legend(CAMVID).draw(fresh)
        np.testing.assert_array_equal(again, fresh)
