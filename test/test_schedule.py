"""Decisions of the scheduler."""

import math
from dataclasses import replace

import numpy as np
import pytest

from lowlat_seg_ros.config import EngineConfig
from lowlat_seg_ros.engine.schedule import (
    LEVELS,
    UP_MISSES,
    StreamSchedule,
    effective_threshold,
    fills_idle_time,
    is_key,
    needs_reset,
    repeats,
    selects,
)
from lowlat_seg_ros.frames import Deadline, Frame, ResetReason

CONFIG = EngineConfig(max_gap_ms=500)


def frame(stamp_ms: float, size: tuple[int, int] = (8, 8), frame_id: str = "a") -> Frame:
    return Frame(np.zeros((*size, 3), np.uint8), round(stamp_ms * 1e6), frame_id)


@pytest.mark.parametrize(
    ("later", "reason"),
    [
        (frame(1100), None),
        (frame(1000), None),  # a duplicate
        (frame(1500), None),  # exactly the longest gap allowed
        (frame(1501), ResetReason.GAP),
        (frame(999.999999), ResetReason.TIME_JUMPED_BACK),
        (frame(1100, size=(8, 16)), ResetReason.SIZE_CHANGED),
        (frame(1100, frame_id="b"), ResetReason.FRAME_ID_CHANGED),
        (frame(900, size=(16, 8)), ResetReason.SIZE_CHANGED),
        (replace(frame(1100), encoding="mono8"), ResetReason.ENCODING_CHANGED),
    ],
)
def test_reset(later: Frame, reason: ResetReason | None) -> None:
    assert needs_reset(frame(1000), later, CONFIG) is reason


def test_first_frame() -> None:
    assert needs_reset(None, frame(0), CONFIG) is ResetReason.FIRST_FRAME


def test_zero_gap_means_never_and_a_millisecond_means_that() -> None:
    assert needs_reset(frame(0), frame(1e9), EngineConfig(max_gap_ms=0)) is None
    shortest = EngineConfig(max_gap_ms=1.0)
    assert needs_reset(frame(0), frame(1), shortest) is None
    assert needs_reset(frame(0), frame(1.000001), shortest) is ResetReason.GAP


@pytest.mark.parametrize(
    ("deviation", "threshold", "expected"),
    [(0.3, 0.2, True), (0.2, 0.2, False), (0.1, 0.2, False), (math.nan, 0.2, True)],
)
def test_deviation_decides(deviation: float, threshold: float, expected: bool) -> None:
    assert is_key(deviation, threshold, 1000, EngineConfig()) is expected


def test_key_interval_is_an_upper_bound() -> None:
    config = EngineConfig(max_key_interval=5)
    assert not is_key(0.0, 0.2, 4, config)
    assert is_key(0.0, 0.2, 5, config)
    assert is_key(0.3, 0.2, 1, config)


def test_every_frame_may_be_a_key_frame_or_none_for_its_age() -> None:
    assert is_key(0.0, 0.2, 1, EngineConfig(max_key_interval=1))
    assert not is_key(0.0, 0.2, 10**6, EngineConfig(max_key_interval=0))


@pytest.mark.parametrize(
    ("age", "every", "interval", "expected"),
    [
        (1, 1, 0, True),
        (2, 3, 0, False),
        (3, 3, 0, True),
        (2, 3, 2, True),  # it becomes the key frame for its age
        (1, 3, 2, False),
        (4, 3, 1, True),
    ],
)
def test_the_selector_runs_where_its_answer_counts(
    age: int, every: int, interval: int, expected: bool
) -> None:
    assert selects(age, every, EngineConfig(max_key_interval=interval)) is expected


def test_a_stamp_is_repeated_by_the_frame_after_it_alone() -> None:
    assert repeats(frame(1), frame(1))
    assert not repeats(frame(1), frame(2))
    assert not repeats(None, frame(1))


def test_threshold_comes_from_the_checkpoint_unless_set() -> None:
    assert effective_threshold(0.25, EngineConfig()) == 0.25
    assert effective_threshold(0.25, EngineConfig(deviation_threshold=0.0)) == 0.0


def test_the_time_of_a_full_frame_is_no_gap() -> None:
    assert needs_reset(frame(0), frame(501), CONFIG) is ResetReason.GAP
    assert needs_reset(frame(0), frame(501), CONFIG, after_sh=True) is None
    assert needs_reset(frame(0), frame(40_000), CONFIG, after_sh=True) is ResetReason.GAP
    assert needs_reset(frame(501), frame(0), CONFIG, after_sh=True) is not None


@pytest.mark.parametrize(
    ("error", "age", "level", "settings", "expected"),
    [
        ("", 1, 0, {}, True),
        ("", 1, 1, {}, True),
        ("", 1, 2, {}, False),  # load is shed at Sh's cost
        ("Sh failed", 29, 0, {}, False),  # a frame that deviates tries again
        ("Sh failed", 30, 0, {}, True),  # and where none does this one
        ("Sh failed", 30, 2, {}, False),
        ("", 1, 0, {"key_frame_policy": "deviation"}, False),
        ("", 1, 0, {"key_frame_budget": 0.1}, False),
    ],
)
def test_an_idle_slow_track_is_given_the_frame(
    error: str, age: int, level: int, settings: dict[str, object], expected: bool
) -> None:
    config = EngineConfig(**settings)  # type: ignore[arg-type]
    assert fills_idle_time(error, age, LEVELS[level], config) is expected


def go_through(
    schedule: StreamSchedule, now: Frame, config: EngineConfig, *, ran_sh: bool = False
) -> tuple[ResetReason | None, bool]:
    """A frame of 10 ms; why it begins an epoch, and whether it counts as a duplicate."""
    _, reason, duplicate = schedule.begin(now, config)
    schedule.mask_out(now, 10.0, ran_sh=ran_sh)
    schedule.finish(False, config)
    return reason, duplicate


def test_the_first_of_frames_with_one_stamp_is_the_duplicate_until_the_clock_goes_on() -> None:
    schedule = StreamSchedule(0.2, CONFIG)
    found = [go_through(schedule, frame(stamp), CONFIG)[1] for stamp in (0, 0, 0, 10, 20, 20, 20)]
    assert found == [False, True, False, False, False, True, False]


def test_the_gap_after_a_full_frame_is_forgiven_once() -> None:
    schedule = StreamSchedule(0.2, CONFIG)
    assert go_through(schedule, frame(0), CONFIG, ran_sh=True)[0] is ResetReason.FIRST_FRAME
    assert go_through(schedule, frame(1000), CONFIG)[0] is None
    assert go_through(schedule, frame(2000), CONFIG)[0] is ResetReason.GAP


def test_a_frame_that_fails_is_not_the_one_before() -> None:
    schedule = StreamSchedule(0.2, CONFIG)
    go_through(schedule, frame(0), CONFIG)
    schedule.begin(frame(100, size=(4, 4)), CONFIG)  # no mask comes of it
    assert go_through(schedule, frame(200), CONFIG) == (None, False)


def test_the_threshold_is_the_checkpoint_s_the_setting_or_the_steered_one() -> None:
    schedule = StreamSchedule(0.25, CONFIG)
    assert schedule.threshold == 0.25
    go_through(schedule, frame(0), EngineConfig(deviation_threshold=0.5))
    assert schedule.threshold == 0.5
    budget = EngineConfig(key_frame_budget=0.5)
    go_through(schedule, frame(10), budget)
    assert schedule.threshold == pytest.approx(0.25)
    go_through(schedule, frame(20), budget)  # the frame before it was no key frame
    assert schedule.threshold == pytest.approx(0.25 * math.exp(-0.1))


def test_masks_that_come_late_shed_load_from_the_next_frame_on() -> None:
    config = EngineConfig(max_latency_ms=50.0)
    schedule, now = StreamSchedule(0.2, config), frame(0)
    for _ in range(UP_MISSES):
        assert schedule.begin(now, config)[0] is LEVELS[0]
        assert schedule.mask_out(now, 51.0, ran_sh=False) == Deadline(0, 51.0, True)
    assert schedule.begin(now, config)[0] is LEVELS[1]
