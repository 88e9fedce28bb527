"""Motion pairs: image and label move together, by as much as the geometry says."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from lowlat_seg_ros.lab.data.pairs import (
    Motion,
    draw_motion,
    guess_scene,
    make_pair,
    move,
    pair_of,
    warp_image,
    warp_label,
    warp_map,
)
from lowlat_seg_ros.lab.data.synthetic import RenderedDrive

SIZE = (120, 160)


@pytest.fixture(scope="module")
def label() -> np.ndarray:
    return RenderedDrive(2, frames=2, size=SIZE)[0].label


def encoded(label: np.ndarray) -> np.ndarray:
    """An image that says its own label: grey level 10 + 20 times the class."""
    return np.repeat((10 + 20 * label)[..., None], 3, axis=2).astype(np.uint8)


def decoded(image: np.ndarray) -> np.ndarray:
    return np.rint((image[..., 0].astype(float) - 10) / 20)


def inner(label: np.ndarray) -> np.ndarray:
    """Pixels whose 5x5 neighbours have their class; nothing unknown."""
    kernel = np.ones((5, 5), np.uint8)
    return (cv2.dilate(label, kernel) == cv2.erode(label, kernel)) & (label != 255)


@pytest.mark.parametrize("seed", range(6))
def test_image_and_label_stay_aligned(label: np.ndarray, seed: int) -> None:
    rng = np.random.default_rng(seed)
    motion = draw_motion(8, SIZE[1], rng)
    scene = guess_scene(label, 0.5, rng)
    for way in (motion, motion.reversed()):
        image, moved = move(encoded(label), label, scene, way)
        where = inner(moved)
        assert where.sum() > 0.2 * label.size
        assert (decoded(image)[where] == moved[where]).mean() > 0.995


def test_a_whole_pair_stays_aligned(label: np.ndarray) -> None:
    rng = np.random.default_rng(0)
    for lag in range(1, 11):
        pair = make_pair(encoded(label), label, lag, rng)
        for image, seen in ((pair.key_image, pair.key_label), (pair.image, pair.label)):
            assert (image.shape, image.dtype) == ((*SIZE, 3), np.uint8)
            assert (seen.shape, seen.dtype) == (SIZE, np.uint8)
            # Exposure and grain move the grey levels by less than half a class, bar a few.
            where = inner(seen) & (seen < 8)
            assert (np.abs(decoded(image)[where] - seen[where]) <= 1).mean() > 0.99


def test_no_motion_changes_nothing(label: np.ndarray) -> None:
    source = warp_map(np.full(SIZE, 0.1, np.float32), Motion(0.0))
    assert np.array_equal(warp_label(label, source), label)
    assert np.array_equal(warp_image(encoded(label), source), encoded(label))


def test_driving_towards_a_wall_magnifies_it() -> None:
    # 10 m away, 2 m nearer: magnified by 10 / 8 about the vanishing point.
    source = warp_map(np.full(SIZE, 0.1, np.float32), Motion(2.0))
    centre = np.array([SIZE[1] / 2, SIZE[0] * 0.52])
    y, x = 100, 30
    expected = centre + (np.array([x, y]) - centre) * 0.8
    assert source[y, x] == pytest.approx(expected, abs=0.2)


def test_the_sky_turns_but_does_not_come_nearer() -> None:
    far = np.zeros(SIZE, np.float32)
    assert warp_map(far, Motion(5.0))[10, 20] == pytest.approx([20, 10])
    # The last steps of the iteration leave a few hundredths of the turn.
    assert warp_map(far, Motion(5.0, yaw=4.0))[10, 20] == pytest.approx([24, 10], abs=0.2)


def test_near_things_move_more_than_far_ones() -> None:
    depth = np.full(SIZE, 0.02, np.float32)
    depth[:, 80:] = 0.1
    shift = np.abs(warp_map(depth, Motion(1.0))[60, :, 0] - np.arange(SIZE[1]))
    assert shift[150] > 3 * shift[10] > 0


def test_longer_lags_move_farther() -> None:
    rng = np.random.default_rng(1)
    way = {
        lag: np.mean([draw_motion(lag, 160, rng).forward for _ in range(300)]) for lag in (1, 10)
    }
    assert way[10] > 6 * way[1] > 0
    assert draw_motion(0, 160, rng) == Motion(0.0)


def test_edges_that_come_into_view_are_unknown(label: np.ndarray) -> None:
    source = warp_map(np.zeros(SIZE, np.float32), Motion(0.0, yaw=20.0))
    moved = warp_label(label, source)
    assert (moved[:, -18:] == 255).all()
    assert np.array_equal(moved[:, :-22], label[:, 20:-2])


def test_pairs_repeat_with_their_generator(label: np.ndarray) -> None:
    one, two = (make_pair(encoded(label), label, 5, np.random.default_rng(9)) for _ in range(2))
    assert np.array_equal(one.image, two.image)
    assert np.array_equal(one.key_label, two.key_label)


def test_rendered_pairs_are_frames_of_the_drive() -> None:
    drive = RenderedDrive(1, frames=6, size=(48, 64))
    pair = pair_of(drive[2], drive[5])
    assert np.array_equal(pair.key_image, drive[2].image)
    assert np.array_equal(pair.label, drive[5].label)
    assert pair.seconds == pytest.approx(3 / 15)
