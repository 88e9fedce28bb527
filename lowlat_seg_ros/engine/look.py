"""A cheap look at an image: a grid of its pixels, and whether it is the one before once more.

Made once a frame, after the mask is out, for all who judge the image: the estimate of a mask's
accuracy (:mod:`.expected_accuracy`) and the node's input monitor.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lowlat_seg_ros.frames import Look

#: The grid has about so many rows and columns.
ROWS, COLUMNS = 32, 48


@dataclass(frozen=True, eq=False)
class _Last:
    image: np.ndarray
    stamp_ns: int
    look: Look


class Looker:
    """Looks at the images of one camera, in order; used by one thread at a time."""

    def __init__(self) -> None:
        self._last: _Last | None = None

    def look(self, image: np.ndarray, stamp_ns: int) -> Look:
        """At ``image``, uint8 (H, W, 3) RGB, taken at ``stamp_ns``."""
        # Odd distances: so it sees every second row, whichever it is.
        height, width = image.shape[:2]
        grid = image[:: height // ROWS | 1, :: width // COLUMNS | 1].copy()
        look = Look(grid, self._unchanged(image, grid, stamp_ns))
        self._last = _Last(image, stamp_ns, look)
        return look

    def _unchanged(self, image: np.ndarray, grid: np.ndarray, stamp_ns: int) -> int:
        last = self._last
        if last is None:
            return 0
        count = last.look.unchanged
        if stamp_ns == last.stamp_ns:
            return count
        # The whole image is compared only where the grid is the same.
        same = image.shape == last.image.shape and np.array_equal(grid, last.look.grid)
        return count + 1 if same and np.array_equal(image, last.image) else 0
