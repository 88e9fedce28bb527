"""Decisions of the scheduler."""

import math

import numpy as np
import pytest

from lowlat_seg_ros.config import EngineConfig
from lowlat_seg_ros.engine.schedule import (
    LEVELS,
    effective_threshold,
    fills_idle_time,
    is_key,
    needs_reset,
)
from lowlat_seg_ros.frames import Frame, ResetReason

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
    ],
)
def test_reset(later: Frame, reason: ResetReason | None) -> None:
    assert needs_reset(frame(1000), later, CONFIG) is reason


def test_first_frame() -> None:
    assert needs_reset(None, frame(0), CONFIG) is ResetReason.FIRST_FRAME


def test_zero_gap_means_never() -> None:
    assert needs_reset(frame(0), frame(1e9), EngineConfig(max_gap_ms=0)) is None


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


def test_threshold_comes_from_the_checkpoint_unless_set() -> None:
    assert effective_threshold(0.25, EngineConfig()) == 0.25
    assert effective_threshold(0.25, EngineConfig(deviation_threshold=0.0)) == 0.0


def test_the_time_of_a_full_frame_is_no_gap() -> None:
    assert needs_reset(frame(0), frame(501), CONFIG) is ResetReason.GAP
    assert needs_reset(frame(0), frame(501), CONFIG, after_sh=True) is None
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
