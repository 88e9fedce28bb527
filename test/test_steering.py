"""Key-frame budgets: the steered threshold on its own, and in the engine."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowlat_seg_ros.config import EngineConfig
from lowlat_seg_ros.engine.engine import Engine
from lowlat_seg_ros.engine.schedule import GAIN, HIGH, LOW, KeyFrameBudget
from lowlat_seg_ros.frames import Frame
from lowlat_seg_ros.network.segmenter import Segmenter

shares = st.floats(0.01, 1.0)


@given(st.floats(0.0, 1.0), st.lists(st.tuples(st.booleans(), shares), max_size=200))
def test_threshold_stays_within_its_bounds(start: float, frames: list[tuple[bool, float]]) -> None:
    budget = KeyFrameBudget()
    for is_key, target in frames:
        assert LOW <= budget.threshold(start, target) <= HIGH
        budget.observe(is_key, target)


@given(st.floats(LOW, HIGH), shares, st.lists(st.floats(2 * LOW, HIGH), min_size=1, max_size=300))
def test_share_is_kept_whatever_the_deviations_are(
    start: float, target: float, deviations: list[float]
) -> None:
    budget, keys = KeyFrameBudget(), 0
    for deviation in deviations:
        is_key = deviation > budget.threshold(start, target)
        keys += is_key
        budget.observe(is_key, target)
    count = len(deviations)
    bound = (math.log(HIGH / LOW) + 2 * GAIN) / (GAIN * count)
    assert abs(keys / count - target) <= bound + 1e-9


@given(st.floats(0.05, 0.9), st.floats(LOW, HIGH), st.integers(0, 2**32))
def test_threshold_converges_on_the_quantile_of_a_stationary_stream(
    target: float, start: float, seed: int
) -> None:
    budget, dice, thresholds = KeyFrameBudget(), random.Random(seed), []
    for _ in range(1500):
        thresholds.append(budget.threshold(start, target))
        budget.observe(dice.uniform(0.1, 0.5) > thresholds[-1], target)
    wanted = 0.5 - 0.4 * target  # of which a share of ``target`` lies above
    settled = thresholds[500:]
    assert sum(settled) / len(settled) == pytest.approx(wanted, rel=0.15)


def test_a_busier_scene_raises_the_threshold_and_a_quiet_one_lowers_it() -> None:
    """Deviation grows with the distance from the key frame, as in Fig. 3 of the paper."""
    budget, age, keys = KeyFrameBudget(), 0, 0

    def frames(count: int, growth: float) -> float:
        nonlocal age, keys
        keys = 0
        for _ in range(count):
            age += 1
            is_key = age * growth > budget.threshold(0.1, 0.2)
            age, keys = (0, keys + 1) if is_key else (age, keys)
            budget.observe(is_key, 0.2)
        return budget.threshold(0.1, 0.2)

    quiet = frames(1000, 0.01)
    busy = frames(1000, 0.1)
    assert keys / 1000 == pytest.approx(0.2, abs=0.03)
    assert frames(1000, 0.01) == pytest.approx(quiet, rel=0.3)
    assert busy > 3 * quiet


def test_budget_is_off_at_zero_and_starts_at_the_fixed_threshold() -> None:
    budget = KeyFrameBudget()
    assert budget.threshold(0.3, 0.0) == 0.3
    budget.observe(True, 0.0)
    assert budget.threshold(0.3, 0.5) == pytest.approx(0.3)
    budget.observe(False, 0.5)  # too few key frames
    assert budget.threshold(0.3, 0.5) == pytest.approx(0.3 * math.exp(-0.1))
    assert budget.threshold(0.3, 0.0) == 0.3
    assert budget.threshold(0.3, 0.5) == pytest.approx(0.3)  # it starts there once more


def test_a_step_beyond_the_bounds_is_taken_back_by_the_next() -> None:
    for start, first in ((HIGH, True), (LOW, False)):
        budget = KeyFrameBudget()
        assert budget.threshold(start, 0.5) == pytest.approx(start)
        budget.observe(first, 0.5)
        assert budget.threshold(start, 0.5) == start  # beyond it, and so at it
        budget.observe(not first, 0.5)
        assert budget.threshold(start, 0.5) == pytest.approx(start)


def test_engine_observes_its_budget(tiny: Segmenter, make_frame: Callable[..., Frame]) -> None:
    config = EngineConfig(foreground_threads=1, key_frame_budget=0.5)
    engine = Engine.deterministic(tiny, config, threshold=1.0, delay_frames=2)
    results = [engine.process(make_frame(index, size=(16, 24))) for index in range(150)]
    newest = [result.selection for result in results[50:] if result.selection is not None]
    share = sum(selection.is_key for selection in newest) / len(newest)
    assert share == pytest.approx(0.5, abs=0.1)
    assert len({selection.threshold for selection in newest}) > 1
    assert engine.threshold == newest[-1].threshold
