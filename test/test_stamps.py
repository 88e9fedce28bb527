"""Stamps that cannot be true: which, from when on it is said, and the likely cause."""

from __future__ import annotations

import pytest

pytest.importorskip("sensor_msgs", reason="needs ROS 2")

from lowlat_seg_ros.ros.doctor import Severity
from lowlat_seg_ros.ros.plausibility import (
    Clocks,
    StampFault,
    StampMonitor,
    duration,
    examine_stamps,
)

MS = 1_000_000
NOW = 1_800_000_000_000 * MS  # of the system's clock, 2027
BAG = 1_600_000_000_000 * MS
HOUR = 3_600_000 * MS
SYSTEM = Clocks(NOW)
SIMULATED = Clocks(NOW, simulated=True, published=True)


def said(stamps: list[int], clocks: Clocks, now_ns: int = NOW, every_ms: int = 100) -> str:
    """What is said after images with ``stamps``, ``every_ms`` of the node's clock apart."""
    monitor = StampMonitor()
    for number, stamp in enumerate(stamps):
        monitor.image(stamp, now_ns and now_ns + number * every_ms * MS)
    found = examine_stamps(monitor.state(), clocks)
    assert all(finding.severity is Severity.WARN for finding in found)
    return "; ".join(finding.text for finding in found)


def run(start: int, count: int = 10) -> list[int]:
    return [start + number * 100 * MS for number in range(count)]


@pytest.mark.parametrize(
    ("stamps", "clocks", "now_ns", "texts"),
    [
        ([0] * 10, SYSTEM, NOW, ["stamps are zero", "driver does not set them"]),
        ([0] * 10, SIMULATED, BAG, ["stamps are zero"]),
        (run(NOW - HOUR), SYSTEM, NOW, ["60 min after", "chrony or PTP", "--clock"]),
        (run(NOW - 3000 * MS), SYSTEM, NOW, ["3.0 s after", "chrony or PTP"]),
        (run(NOW + 10_000 * MS), SYSTEM, NOW, ["10.0 s ahead", "chrony or PTP"]),
        (run(NOW + 400 * MS), SYSTEM, NOW, ["0.4 s ahead"]),
        (
            run(NOW + 36_950 * MS),
            SYSTEM,
            NOW,
            ["by TAI, as PTP does, 37 s apart", "utc_offset"],
        ),
        (run(NOW + 17_980 * MS), SYSTEM, NOW, ["18.0 s ahead", "by GPS time, 18 s apart"]),
        (run(NOW + 2 * HOUR - 50 * MS), SYSTEM, NOW, ["120 min ahead", "in local time, not UTC"]),
        (run(NOW - 8 * HOUR - 90 * MS), SYSTEM, NOW, ["8 h after", "in local time, not UTC"]),
        (run(1234 * MS), SYSTEM, NOW, ["days after", "counts from its own start"]),
        (run(BAG), Clocks(NOW, published=True), NOW, ["set use_sim_time to true"]),
        (run(NOW), SIMULATED, BAG, ["of the system's clock", "set use_sim_time to false"]),
        (run(BAG - HOUR), SIMULATED, BAG, ["/clock is not the clock", "--clock"]),
        (run(BAG), Clocks(NOW, simulated=True), 0, ["no time on /clock", "use_sim_time"]),
        ([NOW] * 10, SYSTEM, NOW, ["stamp of the one before", "stands still"]),
        ([BAG] * 10, SYSTEM, NOW, ["stamp of the one before", "stands still"]),
    ],
)
def test_absurd_stamps_are_said_with_the_likely_cause(
    stamps: list[int], clocks: Clocks, now_ns: int, texts: list[str]
) -> None:
    found = said(stamps, clocks, now_ns)
    assert all(text in found for text in texts), found


@pytest.mark.parametrize(
    ("late_ms", "clocks", "now_ns"),
    [(0, SYSTEM, NOW), (150, SYSTEM, NOW), (1500, SYSTEM, NOW), (-100, SIMULATED, BAG)],
)
def test_stamps_of_a_healthy_camera_are_not_accused(
    late_ms: int, clocks: Clocks, now_ns: int
) -> None:
    assert said(run(now_ns - late_ms * MS), clocks, now_ns) == ""


def test_what_a_bag_leaves_at_its_loop_is_not_said_and_a_fault_ends() -> None:
    assert said([*run(BAG, 8), BAG + HOUR, BAG + HOUR], SIMULATED, BAG) == ""
    assert said([0, 0, 0, *run(NOW + 300 * MS, 10)], SYSTEM, NOW) == ""
    assert said([], SYSTEM) == ""


def test_only_plausible_stamps_count() -> None:
    monitor = StampMonitor()
    stamps = (NOW, NOW, 0, NOW - HOUR, NOW + 10_000 * MS, NOW - 50 * MS)
    assert [monitor.image(stamp, NOW) for stamp in stamps] == [
        True,
        True,
        False,
        False,
        False,
        True,
    ]
    assert monitor.state().skew_ms == 50.0
    assert monitor.state().fault is None  # none of them is there three times
    for _ in range(2):
        monitor.image(0, NOW)
    assert monitor.state().fault is StampFault.ZERO


@pytest.mark.parametrize(
    ("ms", "text"),
    [
        (400.0, "0.4 s"),
        (90_000.0, "90.0 s"),
        (3.6e6, "60 min"),
        (7.2e6, "2 h"),
        (1.8e12, "20833 days"),
    ],
)
def test_durations_are_in_the_unit_that_people_say(ms: float, text: str) -> None:
    assert duration(ms) == text
