"""Intervals by a bootstrap over blocks of frames."""

from __future__ import annotations

import numpy as np
from lowlat_seg_ros.lab.evaluation.bootstrap import BLOCK, draws_of, interval, mious


def matrix(right: int, wrong: int) -> np.ndarray:
    """Two classes alike, each with so many pixels right and wrong."""
    return np.array([[right, wrong, 0], [wrong, right, 0]])


def test_blocks_are_drawn_whole_and_as_many_as_there_are() -> None:
    draws = draws_of(50)
    assert (draws.sum(axis=1) == 50).all()
    blocks = draws.reshape(-1, 50 // BLOCK, BLOCK)
    assert (blocks == blocks[..., :1]).all()
    assert (draws != draws[0]).any()
    assert (draws_of(3).sum(axis=1) == 3).all()


def test_frames_that_are_alike_leave_no_doubt() -> None:
    values = mious([matrix(90, 10)] * 20)
    assert np.allclose(values, 90 / 110)
    assert interval(values) == (values[0], values[0])


def test_a_paired_difference_is_surer_than_either() -> None:
    rng = np.random.default_rng(0)
    hard = rng.integers(5, 60, 60)
    worse = mious([matrix(100 - h, h) for h in hard])
    better = mious([matrix(104 - h, h - 4) for h in hard])
    low, high = interval(better - worse)
    assert 0 < low < high
    assert high - low < 0.5 * np.subtract(*interval(worse)[::-1])
