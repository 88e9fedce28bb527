"""Rendered drives: what the labels say is where the geometry puts it."""

from __future__ import annotations

import numpy as np
import pytest

from lowlat_seg_ros.lab.data.sequence import Sequence
from lowlat_seg_ros.lab.data.synthetic import RenderedDrive
from lowlat_seg_ros.lab.data.synthetic.canvas import (
    Camera,
    Canvas,
    Face,
    Mesh,
    Texture,
    Wall,
    clip_near,
    to_pixels,
)
from lowlat_seg_ros.labels import CAMVID

SKY, ROAD, CAR = (CAMVID.index(name) for name in ("Sky", "Road", "Car"))
SIZE = (180, 240)
SEEDS = range(8)


def pixel(camera: Camera, point: np.ndarray) -> tuple[int, int]:
    """(row, column) at which ``camera`` sees a world point."""
    matrix, offset = camera.matrix()
    x, y = to_pixels((point @ matrix.T + offset)[None])[0]
    return round(float(y)), round(float(x))


def camera(**changes: float) -> Camera:
    return Camera((100, 200), 100.0, 40.0, (0.0, 0.0, 1.5), **{"heading": 0.0, **changes})


def test_camera_projects_by_the_pinhole() -> None:
    # 10 m ahead, 2 m right, on the ground: 100 * 2 / 10 right of the centre, 100 * 1.5 / 10 below.
    assert pixel(camera(), np.array([2.0, 10.0, 0.0])) == (40 + 15, round(99.5 + 20))
    # Turned right by 90 degrees, what lay at the right lies ahead.
    assert pixel(camera(heading=np.pi / 2), np.array([10.0, 2.0, 1.5]))[1] == round(99.5 - 20)


def test_polygons_are_cut_at_the_camera() -> None:
    behind = np.array([[0.0, 0, -1], [1, 0, -1], [1, 1, -2]])
    assert len(clip_near(behind)) == 0
    crossing = clip_near(np.array([[0.0, 0, -1], [4, 0, 3], [0, 4, 3]]))
    assert len(crossing) == 4
    assert crossing[:, 2].min() > 0


def test_a_wall_covers_its_projected_rectangle() -> None:
    canvas = Canvas(camera(), (0.0, 0.0, 0.0), 1e9)
    texture = Texture(np.full((32, 32, 3), 200, np.uint8))
    corner, along = np.array([-2.0, 10.0, 3.5]), np.array([4.0, 0.0, 0.0])
    canvas.wall(Wall(corner, along, 2.0, texture, (1.0, 0.5, 0.25), 7))
    rows, columns = np.nonzero(canvas.label == 7)
    # x: -2 to 2 m at 10 m; z: 3.5 and 1.5 m seen from 1.5 m.
    assert (columns.min(), columns.max()) == pytest.approx((79.5, 119.5), abs=1)
    assert (rows.min(), rows.max()) == pytest.approx((20, 40), abs=1)
    assert canvas.image[30, 100].tolist() == [200, 100, 50]
    # Image and label end together.
    assert ((canvas.image[..., 0] > 0) == (canvas.label == 7)).mean() > 0.999


def test_a_nearer_face_hides_a_farther_one_and_a_solid_hides_its_back() -> None:
    canvas = Canvas(camera(), (0.0, 0.0, 0.0), 1e9)
    square = np.array([[-1, 8, 2.5], [1, 8, 2.5], [1, 8, 0.5], [-1, 8, 0.5]], float)
    for depth, label in ((4.0, 1), (0.0, 2)):
        Mesh(square + np.array([0, depth, 0]), (Face(0, 4, (9, 9, 9), label),)).paint(canvas)
    assert canvas.label[40, 100] == 2
    Mesh(square[::-1] - [0, 2, 0], (Face(0, 4, (9, 9, 9), 3, solid=True),)).paint(canvas)
    assert canvas.label[40, 100] == 2
    Mesh(square - [0, 2, 0], (Face(0, 4, (9, 9, 9), 3, solid=True),)).paint(canvas)
    assert canvas.label[40, 100] == 3


@pytest.mark.parametrize("seed", SEEDS)
def test_labels_agree_with_the_drive_s_geometry(seed: int) -> None:
    drive = RenderedDrive(seed, frames=30, size=SIZE)
    frame, view = drive[12], drive.camera(12 / 15)
    rows = np.nonzero(frame.label == ROAD)[0]
    assert rows.min() >= view.horizon - 1
    assert np.nonzero(frame.label == SKY)[0].max() <= view.horizon + 2
    assert frame.label.max() < len(CAMVID)
    # The road right before the car lies in its own lane, where nothing else may be.
    s, d = drive.ego.distance(12 / 15), drive.ego.offset(12 / 15)
    row, column = pixel(view, drive.line.at(s + 6.0, d))
    assert frame.label[row, column] == ROAD


def test_nearest_car_is_labelled_where_it_is_projected() -> None:
    seen = 0
    for seed in SEEDS:
        drive = RenderedDrive(seed, frames=2, size=SIZE)
        view = drive.camera(0.0)
        matrix, offset = view.matrix()
        cars = [thing.vertices for _, thing in drive.traffic.at(0.0) if isinstance(thing, Mesh)]
        cars = [v for v in cars if (v @ matrix.T + offset)[:, 2].min() > 2.0]
        if cars:
            depths = [(v @ matrix.T + offset)[:, 2].mean() for v in cars]
            row, column = pixel(view, cars[int(np.argmin(depths))].mean(axis=0))
            if 0 <= row < SIZE[0] and 0 <= column < SIZE[1]:
                seen += drive[0].label[row, column] == CAR
    assert seen >= 4


def test_frames_are_the_same_in_any_order_and_from_any_object() -> None:
    first, second = (RenderedDrive(3, frames=6, size=SIZE) for _ in range(2))
    forward = [first[i] for i in range(6)]
    for i in (5, 0, 3):
        again = second[i]
        assert np.array_equal(again.image, forward[i].image)
        assert np.array_equal(again.label, forward[i].label)
    assert not np.array_equal(forward[0].label, forward[5].label)
    assert not np.array_equal(forward[0].label, RenderedDrive(4, frames=6, size=SIZE)[0].label)


def test_two_rates_show_the_same_drive() -> None:
    slow = RenderedDrive(5, frames=4, rate_hz=15, size=SIZE)
    fast = RenderedDrive(5, frames=8, rate_hz=30, size=SIZE)
    assert np.array_equal(slow[3].label, fast[6].label)
    assert slow[3].stamp_ns == fast[6].stamp_ns == 200_000_000


def test_every_class_is_seen() -> None:
    counts = sum(
        np.bincount(RenderedDrive(seed, 2, size=SIZE)[0].label.ravel(), minlength=11)
        for seed in range(20, 36)
    )
    assert (counts > 0).all()


@pytest.mark.parametrize("size", [(48, 64), (97, 201), (480, 640)])
def test_any_size_is_rendered(size: tuple[int, int]) -> None:
    drive = RenderedDrive(1, frames=3, rate_hz=24.0, size=size)
    frame = drive[-1]
    assert frame.image.shape == (*size, 3)
    assert (frame.image.dtype, frame.label.shape) == (np.uint8, size)
    assert frame.label.max() < len(CAMVID)
    assert isinstance(drive, Sequence)
    with pytest.raises(IndexError, match="frame 3 of a sequence of 3"):
        drive[3]


@pytest.mark.parametrize("change", [{"frames": 0}, {"rate_hz": 0.0}, {"size": (8, 480)}])
def test_impossible_drives_are_refused(change: dict) -> None:
    with pytest.raises(ValueError, match="a drive needs at least one frame"):
        RenderedDrive(**{"seed": 0, "frames": 2, **change})
