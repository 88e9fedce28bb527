"""How far figures of so few frames may be off: a bootstrap over blocks of frames.

Frames of a clip are alike, so single frames say less than their number; blocks of neighbours are
drawn instead (Künsch, "The Jackknife and the Bootstrap for General Stationary Observations", Annals
of Statistics 1989). The blocks of all methods are drawn alike, so that differences are paired.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np

from lowlat_seg_ros.lab.evaluation.metrics import miou_of

#: Neighbouring frames that are drawn together, draws, and what share of them an interval holds.
BLOCK, DRAWS, SHARE = 5, 1000, 0.95

Interval = tuple[float, float]


@functools.cache
def draws_of(frames: int, seed: int = 0) -> np.ndarray:
    """How often each frame counts in each draw, int64 (:data:`DRAWS`, frames)."""
    blocks = np.array_split(np.arange(frames), max(1, round(frames / BLOCK)))
    rng = np.random.default_rng(seed)
    counts = np.zeros((DRAWS, frames), np.int64)
    for draw in counts:
        for block in rng.integers(len(blocks), size=len(blocks)):
            draw[blocks[block]] += 1
    return counts


def mious(matrices: Sequence[np.ndarray]) -> np.ndarray:
    """mIoU of each draw, (:data:`DRAWS`,), of ``matrices``, one (classes, classes + 1) a frame."""
    stacked = np.stack(matrices)
    counts = draws_of(len(stacked))
    pooled = np.einsum("df,fij->dij", counts, stacked)
    return np.array([miou_of(matrix) for matrix in pooled])


def interval(values: np.ndarray) -> Interval:
    """The middle :data:`SHARE` of ``values``."""
    rest = 50 * (1 - SHARE)
    low, high = np.nanpercentile(values, [rest, 100 - rest])
    return float(low), float(high)
