"""The road's course, and what lies along it by distance."""

from __future__ import annotations

from typing import Generic, TypeVar

import numpy as np

#: How far ahead of the camera things are drawn, and how far behind, in metres.
AHEAD, BEHIND = 140.0, 22.0
#: What ends this far behind the camera is out of its view, unless it casts a shadow forward.
BESIDE = 4.0


class Line:
    """The road's centre line by arc length, in metres, from -60 on."""

    def __init__(self, rng: np.random.Generator, length: float) -> None:
        self.s = np.arange(-60.0, length + AHEAD + 80.0)
        bend = np.zeros_like(self.s)
        for middle in np.arange(-40.0, length + AHEAD, 60.0):
            # Up to 35 degrees a bend: no radius falls below what the house fronts need.
            turn = rng.normal(0, 0.22) * (rng.random() < 0.6)
            width, at = rng.uniform(12, 28), middle + rng.uniform(0, 40)
            shape = np.exp(-0.5 * ((self.s - at) / width) ** 2) / (width * np.sqrt(2 * np.pi))
            bend += np.clip(turn, -0.6, 0.6) * shape
        self.heading = np.cumsum(bend)
        self.x, self.y = np.cumsum(np.sin(self.heading)), np.cumsum(np.cos(self.heading))

    def frame(self, s: float) -> tuple[float, float, float]:
        """(x, y, heading) of the centre line at ``s``."""
        x, y, heading = (np.interp(s, self.s, v) for v in (self.x, self.y, self.heading))
        return float(x), float(y), float(heading)

    def at(self, s: np.ndarray | float, d: np.ndarray | float, z: float = 0.0) -> np.ndarray:
        """World points (..., 3) at ``s`` along, ``d`` to the right and ``z`` above the line."""
        heading = np.interp(s, self.s, self.heading)
        x = np.interp(s, self.s, self.x) + np.cos(heading) * d
        y = np.interp(s, self.s, self.y) - np.sin(heading) * d
        return np.stack(np.broadcast_arrays(x, y, z), axis=-1)


Item = TypeVar("Item")


class ByDistance(Generic[Item]):
    """Items by the arc length of their far end, so that those in view are found quickly.

    Painted in falling order, things beside a road overlap rightly.
    """

    def __init__(self, items: list[tuple[float, Item]]) -> None:
        self._items = sorted(items, key=lambda item: item[0])
        self._keys = np.array([key for key, _ in self._items])

    def in_view(self, s: float, behind: float = BESIDE) -> list[tuple[float, Item]]:
        """Those that end at most ``behind`` metres behind a camera at ``s``, nearest first."""
        first, last = np.searchsorted(self._keys, [s - behind, s + AHEAD])
        return self._items[first:last]
