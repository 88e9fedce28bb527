"""Stopwatch and percentiles."""

from itertools import count

import numpy as np
import pytest

from lowlat_seg_ros.engine.runner import Stopwatch
from lowlat_seg_ros.engine.timing import Percentiles, PercentileTracker


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
