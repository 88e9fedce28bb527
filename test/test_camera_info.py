"""CameraInfo of resized images."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("sensor_msgs", reason="needs ROS 2")

from sensor_msgs.msg import CameraInfo, RegionOfInterest
from std_msgs.msg import Header

from lowlat_seg_ros.ros.outputs import scaled, topic_beside

SIZE = (480, 640)
INFO = CameraInfo(
    header=Header(frame_id="other"), height=480, width=640, distortion_model="plumb_bob",
    d=[0.1, -0.2, 0.0, 0.0, 0.05],
    k=[500.0, 0.0, 322.5, 0.0, 510.0, 238.5, 0.0, 0.0, 1.0],
    p=[495.0, 0.0, 320.0, -60.0, 0.0, 505.0, 240.0, 2.0, 0.0, 0.0, 1.0, 0.0],
)  # fmt: skip


def pixel(matrix: np.ndarray, point: np.ndarray) -> np.ndarray:
    u, v, w = matrix @ point
    return np.array([u / w, v / w])


@given(
    st.tuples(st.integers(20, 1000), st.integers(20, 1000)),
    st.tuples(st.floats(-5, 5), st.floats(-5, 5), st.floats(0.5, 100)),
)
def test_points_fall_where_the_resize_puts_them(
    mask: tuple[int, int], point: tuple[float, float, float]
) -> None:
    found = scaled(INFO, Header(frame_id="cam"), SIZE, mask)
    assert (found.height, found.width, found.header.frame_id) == (*mask, "cam")
    scale = np.array([mask[1] / SIZE[1], mask[0] / SIZE[0]])
    for name, shape, end in (("k", (3, 3), []), ("p", (3, 4), [1.0])):
        before = pixel(np.reshape(getattr(INFO, name), shape), np.array([*point, *end]))
        after = pixel(np.reshape(getattr(found, name), shape), np.array([*point, *end]))
        np.testing.assert_allclose(after, (before + 0.5) * scale - 0.5, rtol=1e-9, atol=1e-6)


def test_what_has_no_pixels_stays_and_the_region_of_interest_shrinks() -> None:
    roi = RegionOfInterest(x_offset=64, y_offset=48, width=320, height=240, do_rectify=True)
    info = CameraInfo(
        height=480, width=640, d=INFO.d, r=[1.0, *[0.0] * 3, 1.0, *[0.0] * 3, 1.0],
        distortion_model="plumb_bob", roi=roi, binning_x=1, binning_y=1,
    )  # fmt: skip
    found = scaled(info, Header(), (240, 320), (120, 160))  # the driver sends the region alone
    assert (found.height, found.width) == (240, 320)
    half = RegionOfInterest(x_offset=32, y_offset=24, width=160, height=120, do_rectify=True)
    assert found.roi == half
    assert (found.binning_x, found.binning_y, found.distortion_model) == (1, 1, "plumb_bob")
    assert list(found.d) == list(INFO.d)
    assert list(found.r) == list(info.r)
    assert list(found.k) == [0.0] * 9  # uncalibrated


@pytest.mark.parametrize(
    ("image", "info"),
    [
        ("/camera/image_raw", "/camera/camera_info"),
        ("/image", "/camera_info"),
        ("/front/color/image_rect", "/front/color/camera_info"),
    ],
)
def test_topic_is_beside_the_images(image: str, info: str) -> None:
    assert topic_beside(image) == info
