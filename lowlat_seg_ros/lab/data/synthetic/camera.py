"""A pinhole camera above a road. World: x, y on the ground, z up, metres."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

#: Nothing nearer than this is drawn, in metres.
NEAR = 0.4


@dataclass(frozen=True)
class Camera:
    """Camera at ``position`` (x, y, z) m looking along ``heading`` (rad, clockwise from +y).

    ``horizon`` is the image row of the horizon and ``focal`` the focal length, both in pixels.
    The optical axis is level; the horizon's row is set by shifting the image plane, which keeps
    verticals vertical.
    """

    size: tuple[int, int]
    focal: float
    horizon: float
    position: tuple[float, float, float]
    heading: float

    def matrix(self) -> tuple[np.ndarray, np.ndarray]:
        """(3, 3) and (3,): ``m @ world + b`` is (u w, v w, w), w being the depth in metres."""
        sin, cos = np.sin(self.heading), np.cos(self.heading)
        rotation = np.array([[cos, -sin, 0.0], [0.0, 0.0, -1.0], [sin, cos, 0.0]])
        centre = (self.size[1] - 1) / 2
        intrinsic = np.array([[self.focal, 0, centre], [0, self.focal, self.horizon], [0, 0, 1]])
        m = intrinsic @ rotation
        return m, -m @ np.asarray(self.position)


def clip_near(points: np.ndarray) -> np.ndarray:
    """Clip a polygon (N, 3) of (u w, v w, w) at w = NEAR; (0, 3) if it lies behind."""
    depth = points[:, 2].tolist()
    if min(depth) >= NEAR:
        return points
    if max(depth) < NEAR:
        return points[:0]
    inside = [w >= NEAR for w in depth]
    kept = []
    for i in range(len(points)):
        j = (i + 1) % len(points)
        if inside[i]:
            kept.append(points[i])
        if inside[i] != inside[j]:
            share = (NEAR - depth[i]) / (depth[j] - depth[i])
            kept.append(points[i] + share * (points[j] - points[i]))
    return np.array(kept)


def to_pixels(points: np.ndarray) -> np.ndarray:
    """(N, 3) of (u w, v w, w), w > 0, to pixels (N, 2), kept within what OpenCV can draw."""
    return np.clip(points[:, :2] / points[:, 2:], -16000.0, 16000.0)
