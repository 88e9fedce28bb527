"""Stopwatch and percentiles, and what a frame costs at the camera's pace."""

from itertools import count

import numpy as np
import pytest

from lowlat_seg_ros.config import EngineConfig
from lowlat_seg_ros.engine.runner import Stopwatch
from lowlat_seg_ros.engine.timing import FRAMES, Percentiles, PercentileTracker, measure
from lowlat_seg_ros.network.segmenter import Segmenter


def test_stages_add_up_and_the_mask_ends_the_latency() -> None:
    ticks = count(0, 1_000_000)  # every look at the clock is 1 ms later
    watch = Stopwatch(lambda: next(ticks))
    for _ in range(2):
        with watch.stage("lower_ms"):
            pass
    watch.mask_out()
    with watch.stage("selector_ms"):
        pass
    timing = watch.timing()
    assert timing.lower_ms == pytest.approx(2.0)
    assert timing.latency_ms == pytest.approx(5.0)
    assert timing.selector_ms == pytest.approx(1.0)
    assert timing.higher_ms == 0.0


def test_a_stage_that_raises_is_measured_too() -> None:
    ticks = count(0, 1_000_000)
    watch = Stopwatch(lambda: next(ticks))
    with pytest.raises(ValueError, match="x"), watch.stage("higher_ms"):
        raise ValueError("x")
    assert watch.timing().higher_ms == pytest.approx(1.0)


def test_percentiles_are_of_the_newest_values() -> None:
    tracker = PercentileTracker(window=100)
    assert tracker.percentiles() == Percentiles()
    for value in range(1000):
        tracker.add(float(value))
    found = tracker.percentiles()
    newest = np.arange(900, 1000)
    assert found.count == 100
    assert found.max == 999
    assert (found.p50, found.p95, found.p99) == tuple(np.percentile(newest, (50, 95, 99)))


def test_frames_are_as_far_apart_as_the_camera_s(tiny: Segmenter) -> None:
    pauses: list[float] = []
    one = EngineConfig(foreground_threads=1)
    # A frame takes less than 10 s, whatever else the machine does.
    cost = measure(tiny, one, (48, 64), rate_hz=0.1, sleep=pauses.append)
    assert (cost.width, cost.height) == (64, 48)
    assert len(pauses) == FRAMES > 4
    assert all(0 < pause < 10 for pause in pauses)
    pauses.clear()
    measure(tiny, one, (48, 64), sleep=pauses.append)
    assert set(pauses) == {0.0}  # back to back
