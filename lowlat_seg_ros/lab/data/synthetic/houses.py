"""Houses: two textured walls and a roof, as seen from the street."""

from __future__ import annotations

import numpy as np

from lowlat_seg_ros.lab.data.synthetic import objects, textures
from lowlat_seg_ros.lab.data.synthetic.canvas import Colour, Mesh, Paintable, Texture, Wall
from lowlat_seg_ros.lab.data.synthetic.look import Light
from lowlat_seg_ros.labels import CAMVID

BUILDING = CAMVID.index("Building")

_ROOFS = ((84, 80, 84), (120, 74, 58), (70, 72, 80), (104, 92, 80))
_CHIMNEY = np.array([(-0.5, -0.5, 0), (0.5, -0.5, 0), (0.5, 0.5, 0), (-0.5, 0.5, 0)], float)


def as_colour(values: np.ndarray) -> Colour:
    """Three numbers as a colour, at most 255."""
    r, g, b = (float(min(v, 255.0)) for v in values)
    return (r, g, b)


def upright(
    start: np.ndarray, stop: np.ndarray, height: float, texture: Texture, light: Colour, label: int
) -> Wall:
    """A wall between two points (3,) on the ground."""
    top = np.array([0.0, 0.0, height])
    return Wall(start + top, stop - start, height, texture, light, label)


def house(
    rng: np.random.Generator, light: Light, side: int, corners: np.ndarray, height: float
) -> list[Paintable]:
    """A house on ``corners`` (4, 3): its front's near and far end, its back's far and near end."""
    front = int(rng.integers(textures.FACADES))
    end = front if rng.random() < 0.3 else int(rng.integers(textures.FACADES))
    tint = rng.uniform(0.8, 1.15) * rng.uniform(0.95, 1.05, 3)
    walls = [
        upright(
            corners[0], corners[other], height, textures.facade(number), as_colour(lit), BUILDING
        )
        for other, number, lit in (
            (3, end, 0.9 * np.asarray(light.ambient) * tint),
            (1, front, np.asarray(light.on(side)) * tint),
        )
    ]
    return [*_roof(rng, light, corners, height), *walls]


def _roof(rng: np.random.Generator, light: Light, corners: np.ndarray, height: float) -> list[Mesh]:
    """A pitched roof with its ridge along the street, or none on a flat one."""
    if rng.random() < 0.3:
        return []
    model, ambient = objects.Model(), np.asarray(light.ambient)
    eaves = corners + np.array([0, 0, height])
    rise = np.array([0, 0, rng.uniform(1.5, 3.5)])
    near, far = (eaves[0] + eaves[3]) / 2 + rise, (eaves[1] + eaves[2]) / 2 + rise
    slate = as_colour(np.array(_ROOFS[int(rng.integers(len(_ROOFS)))]) * ambient)
    gable = as_colour(np.array((130, 112, 96)) * ambient)
    if rng.random() < 0.6:
        foot = near * 0.3 + far * 0.7 + _CHIMNEY
        top = foot + np.array([0, 0, 1.5])
        model.box(objects.points(foot), objects.points(top), gable, BUILDING)
    model.face(objects.points(np.array([eaves[0], near, eaves[3]])), gable, BUILDING)
    model.face(objects.points(np.array([eaves[0], eaves[1], far, near])), slate, BUILDING)
    return [model.placed(0.0, 0.0, 0.0)]
