"""Times, rates and lost images of a camera stream, on a clock set by hand; and throttled logs."""

from __future__ import annotations

import math

import pytest

pytest.importorskip("sensor_msgs", reason="needs ROS 2")

from lowlat_seg_ros.frames import Deadline, Ledger, NodeTiming, StageTiming
from lowlat_seg_ros.ros.connections import NO_SEQUENCE_NUMBER, SequenceGaps
from lowlat_seg_ros.ros.monitor import (
    RateMeter,
    Rates,
    StreamMonitor,
    StreamTimes,
    Throttle,
    patience_ms,
)

MS = 1_000_000


class HandClock:
    now_ns = 1000 * MS

    def __call__(self) -> int:
        return self.now_ns


def publish(monitor: StreamMonitor, began_ms: int, processing_ms: float, limit_ms: float) -> float:
    timing = NodeTiming(processing_ms=processing_ms, age_ms=2 * processing_ms)
    monitor.published(StageTiming(), timing, Deadline(1), began_ms * MS, limit_ms)
    return monitor.times().delayed_ms


def test_nothing_is_known_before_the_first_image_but_how_long_it_is_waited_for() -> None:
    clock = HandClock()
    monitor = StreamMonitor(clock)
    clock.now_ns += 20 * MS
    assert monitor.times() == StreamTimes(silent_ms=20.0)
    monitor.start()
    assert monitor.times() == StreamTimes()


def test_times_go_by_the_ros_clock_and_a_stamp_ahead_of_it_has_a_negative_age() -> None:
    clock = HandClock()
    monitor = StreamMonitor(clock)
    monitor.image(stamp_ns=970 * MS)
    clock.now_ns += 20 * MS
    publish(monitor, 0, 20.0, 0.0)
    clock.now_ns += 5 * MS
    times = monitor.times()
    assert (times.image_age_ms, times.since_image_ms, times.since_publish_ms) == (55.0, 25.0, 5.0)
    clock.now_ns = 0  # a bag loops
    times = monitor.times()
    assert (times.image_age_ms, times.since_image_ms, times.since_publish_ms) == (-970.0, 0.0, 0.0)


def test_the_period_is_the_cameras_own() -> None:
    """In the median, so that a pause or a clock that is set back says nothing."""
    clock = HandClock()
    monitor = StreamMonitor(clock)
    assert monitor.times().period_ms == 0.0
    for step_ms, superseded in [(0, 0), (2000, 0), (1990, 0), (9000, 0), (-50, 0), (6000, 2)]:
        clock.now_ns += step_ms * MS
        monitor.image(clock.now_ns, superseded)
    assert monitor.times().period_ms == 2000.0
    monitor.start()
    assert monitor.times().period_ms == 0.0
    for now_ms in (0, 100_000, 100_100):  # the first image came before /clock
        clock.now_ns = now_ms * MS
        monitor.image(clock.now_ns)
    assert monitor.times().period_ms == 100.0


@pytest.mark.parametrize(
    ("timeout_ms", "period_ms", "patience"),
    [(1000.0, 66.0, 1000.0), (1000.0, 2000.0, 6000.0), (1000.0, 0.0, 3000.0), (0.0, 500.0, 0.0)],
)
def test_a_slow_camera_is_waited_for(timeout_ms: float, period_ms: float, patience: float) -> None:
    assert patience_ms(timeout_ms, period_ms) == patience


def test_percentiles_are_over_the_masks() -> None:
    monitor = StreamMonitor(HandClock())
    monitor.image(1000 * MS)
    for value in range(1, 102):
        publish(monitor, 0, float(value), 0.0)
    times = monitor.times()
    assert (times.processing_ms.p50, times.processing_ms.max) == (51.0, 101.0)
    assert (times.age_ms.count, times.age_ms.p99) == (101, 200.0)
    assert times.deadline == Deadline(1)


@pytest.mark.parametrize(
    ("stamp_ms", "age_ms"),
    [(0, 3.6e6), (1000, 3.6e6), (3_610_000, -1e4), (3_600_100, -60.0)],
    ids=["zero", "an hour old", "ahead", "a little ahead"],
)
def test_ages_that_cannot_be_true_are_in_no_statistic(stamp_ms: int, age_ms: float) -> None:
    clock = HandClock()
    clock.now_ns = 3_600_000 * MS
    monitor = StreamMonitor(clock)
    for stamp, age in [(clock.now_ns, 40.0), (stamp_ms * MS, age_ms)]:
        monitor.image(stamp)
        timing = NodeTiming(processing_ms=20.0, age_ms=age)
        monitor.published(StageTiming(), timing, Deadline(1), 0, 0.0)
    times = monitor.times()
    assert (times.age_ms.count, times.age_ms.max) == (1, 40.0)
    assert times.processing_ms.count == 2
    assert math.isnan(times.timing.age_ms)
    assert times.stamps.skew_ms == 3.6e6 - stamp_ms


def test_delay_lasts_from_the_first_late_frame_to_the_next_in_time() -> None:
    monitor = StreamMonitor(HandClock())
    monitor.image(0)
    assert publish(monitor, 0, 50.0, 100.0) == 0.0
    assert publish(monitor, 100, 150.0, 100.0) == 150.0
    assert publish(monitor, 300, 120.0, 100.0) == 320.0
    assert publish(monitor, 500, 100.0, 100.0) == 0.0
    assert publish(monitor, 600, 101.0, 100.0) == 101.0
    assert publish(monitor, 700, 101.0, 0.0) == 0.0  # 0 for never


def test_rates_are_since_the_last_call() -> None:
    meter = RateMeter(0.0)
    first = Ledger(received=8, published=5, rejected=2, failed=1)
    found = meter.update(first, 2.0, busy_s=0.5)
    assert found == Rates(4.0, 2.5, refused=3, received=8, busy_share=0.25)
    later = Ledger(received=10, published=7, rejected=2, failed=1, superseded=4)
    expected = Rates(2.0, 2.0, received=2, superseded=4, busy_share=0.75)
    assert meter.update(later, 3.0, busy_s=1.25) == expected


def missing(*numbers: int | None, publishers: int = 1) -> list[int]:
    gaps = SequenceGaps()
    return [gaps.missing(number, publishers) for number in numbers]


def test_gaps_in_sequence_numbers_are_missing_messages() -> None:
    assert missing(7, 8, 11, 12) == [0, 0, 2, 0]


def test_publisher_that_starts_again_has_lost_nothing() -> None:
    assert missing(90, 1, 2, 4) == [0, 0, 0, 1]


@pytest.mark.parametrize("number", [None, NO_SEQUENCE_NUMBER])
def test_middleware_without_numbers(number: int | None) -> None:
    assert missing(1, number, 9, 10) == [0, 0, 0, 0]


def test_what_a_publisher_that_is_gone_left_over_is_no_base_for_counting() -> None:
    gaps = SequenceGaps()
    assert gaps.missing(1000, 1) == 0
    gaps.restart()  # another came and went; its last message, 7, is still to come
    assert [gaps.missing(number, 1) for number in (7, 1003, 1004, 1006)] == [0, 0, 0, 1]


def test_numbers_of_several_publishers_say_nothing() -> None:
    assert missing(1, 500, 2, 501, publishers=2) == [0, 0, 0, 0]


def test_one_line_of_a_kind_in_a_period_and_the_rest_counted() -> None:
    lines: list[str] = []
    now = [0.0]
    log = Throttle(lines.append, lambda: now[0])
    for at, kind in [(0.0, "a"), (1.0, "a"), (1.0, "b"), (4.9, "a"), (5.0, "a"), (11.0, "a")]:
        now[0] = at
        log(kind, f"{kind} at {at}", 5.0)
    assert lines == ["a at 0.0", "b at 1.0", "a at 5.0 (2 more like this since)", "a at 11.0"]


def test_period_of_zero_writes_everything() -> None:
    lines: list[str] = []
    log = Throttle(lines.append, lambda: 0.0)
    for number in range(3):
        log("a", str(number), 0.0)
    assert lines == ["0", "1", "2"]


def test_a_clock_that_begins_is_no_silence() -> None:
    """Before /clock comes it is 0, and a bag's time is years later."""
    now = 0
    monitor = StreamMonitor(lambda: now)
    monitor.start()
    now = 1_700_000_000 * 10**9
    assert monitor.times().silent_ms == 0.0
    now = 0
    monitor = StreamMonitor(lambda: now)
    monitor.start()
    monitor.image(100 * 10**9)  # it was faster than the clock
    now = 102 * 10**9
    assert monitor.times().silent_ms == 0.0
    now += 3 * 10**9
    assert monitor.times().silent_ms == 3000.0
