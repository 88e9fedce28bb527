"""A stream that begins anew too often: how often, why, and who makes it."""

from __future__ import annotations

import re

import numpy as np
import pytest

pytest.importorskip("sensor_msgs", reason="needs ROS 2")

from lowlat_seg_ros.config import EngineConfig
from lowlat_seg_ros.engine.schedule import needs_reset
from lowlat_seg_ros.frames import Counters, Frame, ResetReason
from lowlat_seg_ros.messages import IMAGE as RAW
from lowlat_seg_ros.ros.doctor import End, Severity
from lowlat_seg_ros.ros.stream_state import RESETS_S, ResetMeter, Resets, examine_resets

ONE, TWO = [End("/cam", RAW)], [End("/left", RAW), End("/right", RAW)]


def after(frames: int, **resets: int) -> Resets:
    """What is seen when all of these came since the start, 5 s ago."""
    counters = Counters(frames=frames, **{f"resets_{reason}": n for reason, n in resets.items()})
    return ResetMeter(0.0).update(counters, 5.0)


@pytest.mark.parametrize(
    ("reason", "ends", "texts"),
    [
        ("frame_id_changed", TWO, ["/left, /right", "parameter cameras"]),
        ("size_changed", TWO, ["/left, /right"]),
        ("frame_id_changed", ONE, ["the images' frame id changes"]),
        ("encoding_changed", ONE, ["the images' encoding changes"]),
        ("size_changed", ONE, ["the images' size changes"]),
        ("gap", ONE, ["advanced.max_gap_ms", "twice the time between two images"]),
        ("time_jumped_back", ONE, ["go back", "use_sim_time", "chrony or PTP"]),
    ],
)
def test_a_storm_is_an_error_with_reason_cause_and_publishers(
    reason: str, ends: list[End], texts: list[str]
) -> None:
    ((found),) = examine_resets(after(48, **{reason: 48}), ends)
    assert found.severity is Severity.ERROR
    assert (
        f"48 of 48 frames within 5 s were resets, with Sh in the foreground ({reason} 48)"
        in found.text
    )
    assert all(text in found.text for text in texts), found.text


@pytest.mark.parametrize(
    ("frames", "resets", "severity"),
    [
        (50, {}, None),
        (50, {"requested": 9, "activated": 9}, None),  # somebody asked for them
        (50, {"gap": 1}, None),  # the camera paused
        (50, {"size_changed": 1}, None),  # somebody set it so
        (50, {"gap": 2}, Severity.WARN),
        (50, {"time_jumped_back": 1}, Severity.WARN),
        (50, {"gap": 1, "time_jumped_back": 1}, Severity.WARN),  # stamps jump forth and back
        (48, {"size_changed": 12}, Severity.ERROR),
        (49, {"size_changed": 12}, Severity.WARN),
        (3, {"gap": 2}, Severity.WARN),
    ],
)
def test_levels(frames: int, resets: dict[str, int], severity: Severity | None) -> None:
    found = examine_resets(after(frames, **resets), ONE)
    assert [finding.severity for finding in found] == ([] if severity is None else [severity])


def test_a_slow_camera_is_no_error_and_the_advice_ends_the_warning() -> None:
    """It comes every 2 s, so that every second frame, right after a full one, is no gap."""
    resets = after(5, gap=2)
    (found,) = examine_resets(resets, ONE, period_ms=2000.0, max_gap_ms=1000.0)
    assert found.severity is Severity.WARN
    assert "an image comes every 2.0 s, which advanced.max_gap_ms, 1000, takes for" in found.text
    (value,) = map(float, re.findall(r"set it to (\d+\.\d)$", found.text))
    for stamp_s in (2.0, 4.2):
        frame = Frame(np.zeros((1, 1, 3), np.uint8), round(stamp_s * 1e9))
        before = Frame(frame.image, 0)
        config = EngineConfig(max_gap_ms=value)
        assert needs_reset(before, frame, config) == (None if stamp_s < 4 else ResetReason.GAP)
    (fast,) = examine_resets(after(48, gap=24), ONE, period_ms=66.0, max_gap_ms=1000.0)
    assert fast.severity is Severity.ERROR  # its stamps jump
    assert "set it to twice the time between two images" in fast.text


def test_the_loop_of_a_bag_is_as_meant() -> None:
    assert examine_resets(after(50, time_jumped_back=2), ONE, simulated=True) == []
    assert len(examine_resets(after(50, time_jumped_back=3), ONE, simulated=True)) == 1
    assert len(examine_resets(after(50, time_jumped_back=1), ONE)) == 1


def test_what_is_long_ago_is_forgotten() -> None:
    meter, at_s = ResetMeter(0.0), 0.0
    for at_s in (1.0, 2.0, RESETS_S, RESETS_S + 1.0):
        resets = meter.update(Counters(frames=round(10 * at_s), resets_gap=5), at_s)
        assert resets.count == (5 if at_s < RESETS_S + 1.0 else 0)
    assert (resets.frames, resets.seconds) == (100, 10.0)
