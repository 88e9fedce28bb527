"""Whether the node keeps up with its cameras, and the size that would fit."""

from __future__ import annotations

import pytest

pytest.importorskip("sensor_msgs", reason="needs ROS 2")

from lowlat_seg_ros.ros.monitor import ENOUGH, Pace, PaceMeter, examine_pace

MS = 1_000_000


def meter(takes_ms: float, gap_ms: float, superseded: int = 0, frames: int = ENOUGH) -> PaceMeter:
    result, now_ns = PaceMeter(), 0
    for _ in range(frames):
        result.frame(now_ns, now_ns + round(takes_ms * MS), superseded)
        now_ns += round(gap_ms * MS)
    return result


def test_superseded_images_count_for_the_cameras_rate() -> None:
    assert meter(60.0, 66.0, superseded=1).pace(720) == Pace(60.0, 33.0, 720)
    assert meter(10.0, 33.0).pace(720) == Pace(10.0, 33.0, 720)
    assert meter(10.0, 33.0, frames=ENOUGH - 1).pace(720) == Pace()  # too early to say


def test_one_slow_frame_is_not_the_median() -> None:
    pace = meter(10.0, 33.0)
    pace.frame(1000 * MS, 3000 * MS, 0)
    assert pace.pace(0).takes_ms == 10.0


def test_a_node_that_keeps_up_is_not_accused() -> None:
    assert examine_pace(Pace(), 0.0) == []
    assert examine_pace(Pace(33.0, 33.0, 720), 1.0) == []
    assert examine_pace(Pace(), 2.0) == []  # other cameras' load, before this one's is known


def test_who_does_not_keep_up_is_told_the_size_that_would_fit() -> None:
    pace = Pace(60.0, 33.0, 720)
    (found,) = examine_pace(pace, pace.load)
    assert "images come every 33 ms but a frame takes 60 ms (median)" in found.text
    assert "set inference_height, now 720, to 504 or less" in found.text  # 720 sqrt(0.9 * 33 / 60)
    assert "at most 15.0 images a second" in found.text


def test_cameras_that_share_the_thread_need_it_together() -> None:
    pace = Pace(20.0, 33.0, 480)
    (found,) = examine_pace(pace, 3 * pace.load)
    assert "the other cameras" in found.text
    assert "to 336 or less" in found.text


def test_no_size_is_named_that_shows_nothing() -> None:
    pace = Pace(2000.0, 33.0, 480)
    (found,) = examine_pace(pace, pace.load)
    assert "inference_height" not in found.text
    assert "at most 0.4 images a second" in found.text
