"""Which load is shed for which latencies; no clock, no engine."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowlat_seg_ros.engine.schedule import (
    DOWN_FRAMES,
    LEVELS,
    MARGIN,
    UP_MISSES,
    UP_WINDOW,
    LoadShedder,
    growth,
)
from lowlat_seg_ros.frames import Deadline

LIMIT_MS = 100.0
TOP = len(LEVELS) - 1

#: Stretches of equal frames, so that levels go up and down rather than flicker.
LATENCIES = st.lists(
    st.tuples(st.sampled_from([5.0, 60.0, 79.0, 100.0, 101.0, 500.0]), st.integers(1, 70)),
    max_size=12,
).map(lambda runs: [latency for latency, length in runs for _ in range(length)])


def feed(latencies: list[float], limit_ms: float = LIMIT_MS) -> list[Deadline]:
    shedder, found = LoadShedder(), []
    for latency in latencies:
        shedder.begin(limit_ms)
        found.append(shedder.mask_out(latency))
    return found


@given(LATENCIES)
def test_changes_have_their_reason(latencies: list[float]) -> None:
    found = feed(latencies)
    assert [d.latency_ms for d in found] == latencies
    assert [d.missed for d in found] == [latency > LIMIT_MS for latency in latencies]
    since = 0  # first frame of the present level
    for index, (now, after) in enumerate(itertools.pairwise(found)):
        if after.level == now.level:
            continue
        seen = found[since : index + 1]
        if after.level > now.level:
            assert after.level == now.level + 1 <= TOP
            assert sum(d.missed for d in seen[-UP_WINDOW:]) == UP_MISSES
        else:
            assert after.level == now.level - 1 >= 0
            assert len(seen) >= DOWN_FRAMES
            fits = [d.latency_ms * growth(now.level) <= LIMIT_MS for d in seen[-DOWN_FRAMES:]]
            assert all(fits)
        since = index + 1


@given(LATENCIES)
def test_without_a_deadline_nothing_is_missed_or_shed(latencies: list[float]) -> None:
    assert feed(latencies, 0.0) == [Deadline(0, latency, False) for latency in latencies]


@given(st.floats(1.0, 2000.0))
def test_a_steady_load_finds_its_level_and_stays_there(full_size_ms: float) -> None:
    """Frames cost what their pixels do; a level is left for good once it is."""
    shedder = LoadShedder()
    costs, levels = [], []
    for _ in range(6 * DOWN_FRAMES):
        level = shedder.begin(LIMIT_MS)
        costs.append(full_size_ms * level.scale**2)
        levels.append(shedder.mask_out(costs[-1]).level)
    assert levels == sorted(levels)
    assert costs[-1] <= LIMIT_MS or levels[-1] == TOP
    assert levels[UP_MISSES * TOP :] == [levels[-1]] * (len(levels) - UP_MISSES * TOP)


def test_sustained_misses_shed_everything_and_ease_takes_all_of_it_up_again() -> None:
    late, quick = [500.0] * UP_MISSES * TOP, [10.0] * DOWN_FRAMES * TOP
    found = [d.level for d in feed([*late, *quick, 10.0])]
    up = [level for level in range(TOP) for _ in range(UP_MISSES)]
    down = [level for level in range(TOP, 0, -1) for _ in range(DOWN_FRAMES)]
    assert found == [*up, *down, 0]


def test_scattered_late_frames_shed_nothing() -> None:
    rare = ([500.0] * (UP_MISSES - 1) + [10.0] * UP_WINDOW) * 20
    assert {d.level for d in feed(rare)} == {0}


def test_a_full_first_frame_sheds_nothing() -> None:
    assert {d.level for d in feed([900.0, *[60.0] * 100])} == {0}


@pytest.mark.parametrize("level", range(1, TOP + 1))
def test_a_level_that_just_fits_is_kept(level: int) -> None:
    kept = LIMIT_MS / growth(level) + 0.1
    found = feed([500.0] * UP_MISSES * level + [kept] * 5 * DOWN_FRAMES)
    assert found[-1].level == level


def test_the_next_level_s_frames_cost_what_their_pixels_do() -> None:
    assert [growth(level) for level in range(TOP + 1)] == [
        MARGIN, MARGIN, MARGIN, pytest.approx((4 / 3) ** 2), pytest.approx(1.5**2)
    ]  # fmt: skip


def test_what_exactly_fits_does_fit() -> None:
    late = [LIMIT_MS + 1.0] * UP_MISSES
    found = feed([*late, *[LIMIT_MS / MARGIN] * DOWN_FRAMES, 1.0])
    assert [found[-2].level, found[-1].level] == [1, 0]
    assert not feed([LIMIT_MS])[0].missed


def test_a_shorter_limit_keeps_the_level() -> None:
    shedder = LoadShedder()
    for _ in range(UP_MISSES):
        shedder.begin(LIMIT_MS)
        shedder.mask_out(500.0)
    assert shedder.begin(LIMIT_MS) is LEVELS[1]
    assert shedder.begin(1.0) is LEVELS[1]


def test_a_new_limit_counts_afresh_and_none_sheds_nothing() -> None:
    shedder = LoadShedder()
    for _ in range(UP_MISSES + UP_MISSES - 1):
        shedder.begin(LIMIT_MS)
        shedder.mask_out(500.0)
    for _ in range(UP_MISSES):
        assert shedder.begin(200.0) is LEVELS[1]
        shedder.mask_out(500.0)
    assert shedder.begin(200.0) is LEVELS[2]
    assert shedder.begin(0.0) is LEVELS[0]
    assert shedder.begin(LIMIT_MS) is LEVELS[0]


def test_each_level_sheds_what_those_below_do_and_more() -> None:
    assert LEVELS[0].doc == "nothing is shed"
    for below, level in itertools.pairwise(LEVELS):
        assert level.selector_every >= below.selector_every
        assert level.pictures <= below.pictures
        assert 0 < level.slow_share <= below.slow_share
        assert 0 < level.scale <= below.scale
        assert level != below
        assert level.doc != below.doc
    # What does not touch the mask comes first.
    assert [level.scale for level in LEVELS[:3]] == [1.0] * 3
