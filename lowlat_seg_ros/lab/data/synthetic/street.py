"""The street that a drive is set in: its measures, light and camera, and the road's course."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

from lowlat_seg_ros.lab.data.synthetic.canvas import Colour

#: How far ahead of the camera things are drawn, and how far behind, in metres.
AHEAD, BEHIND = 140.0, 22.0
#: What ends this far behind the camera is out of its view, unless it casts a shadow forward.
BESIDE = 4.0


@dataclass(frozen=True)
class Street:
    """Measures in metres; ``left`` and ``right`` pavements; densities are shares or per metre."""

    half_road: float
    pavements: tuple[float, float]
    kerb: float
    urban: float  # 0 in the suburbs, 1 in the centre
    built: float  # share of the lots that carry a house
    bare: float  # share of the trees without leaves
    parked: tuple[float, float]  # share of the kerb that is parked on, left and right
    people: float  # on foot, per metre of pavement
    traffic: float  # oncoming cars per second
    speed: float  # m/s, on average


@dataclass(frozen=True)
class Light:
    """Colours are 0 to 255, ``ambient`` a factor for each channel."""

    ambient: Colour
    sun_side: int  # -1 left, 1 right, 0 overcast
    sun_cot: float  # length of a shadow over the height that casts it
    zenith: Colour
    skyline: Colour
    cloud: Colour
    visibility: float  # m

    def on(self, side: int) -> Colour:
        """Light on what faces the road from ``side``: behind it the sun leaves it in the shade."""
        factor = {0: 1.0, side: 0.62}.get(self.sun_side, 1.12)
        r, g, b = (factor * v for v in self.ambient)
        return (r, g, b)


@dataclass(frozen=True)
class Lens:
    """``focal`` in image widths, ``horizon`` in image heights from the top, ``height`` in m."""

    focal: float
    horizon: float
    height: float
    noise: float  # standard deviation in grey levels
    blur: float  # standard deviation in pixels
    gain: Colour
    gamma: float


@dataclass(frozen=True)
class Look:
    """All of it, and the colours of the ground."""

    street: Street
    light: Light
    lens: Lens
    asphalt: Colour
    paving: Colour
    verge: Colour
    green_verge: bool
    sky: int


def _street(rng: np.random.Generator) -> Street:
    urban = float(rng.beta(0.9, 0.8))
    left, right = (float(v) for v in rng.uniform(2.4, 5.2 + 1.6 * urban, 2))
    parked = tuple(float(v) for v in rng.choice([0.0, 0.15, 0.6], 2, p=[0.5, 0.32, 0.18]))
    half = float(rng.uniform(2.6, 4.7)) + (0.9 if max(parked) > 0.3 else 0.0)
    return Street(
        half_road=half,
        pavements=(left, right),
        kerb=float(rng.uniform(0.08, 0.15)),
        urban=urban,
        built=float(np.clip(rng.normal(0.58 + 0.38 * urban, 0.15), 0.1, 0.97)),
        bare=float(rng.choice([0.0, 0.4, 1.0], p=[0.35, 0.3, 0.35])),
        parked=(parked[0], parked[1]),
        people=float(rng.uniform(0.02, 0.07) + 0.11 * urban * rng.random()),
        traffic=float(rng.uniform(0.03, 0.3)),
        speed=float(rng.uniform(4.0, 13.0)),
    )


def _tuple(values: np.ndarray) -> Colour:
    r, g, b = (float(v) for v in values)
    return (r, g, b)


def _light(rng: np.random.Generator) -> Light:
    weather = rng.choice(4, p=[0.3, 0.35, 0.2, 0.15])  # overcast, sunny, dusk, haze
    side = int(rng.choice([-1, 1])) if weather in (1, 2) else 0
    # A level is drawn for every weather, so that later draws do not depend on which it is.
    ranges = (0.7, 1.0), (0.85, 1.15), (0.4, 0.62), (0.7, 0.95)
    levels = [rng.uniform(*limits) for limits in ranges]
    tints = (0.97, 1.0, 1.04), (1.05, 1.0, 0.93), (1.02, 0.98, 1.0), (1.0, 1.0, 1.0)
    zeniths = (206, 210, 216), (104, 150, 214), (110, 124, 150), (222, 224, 226)
    skylines = (236, 238, 240), (206, 222, 240), (206, 200, 190), (234, 236, 236)
    level, tint = levels[weather], np.array(tints[weather])
    zenith, skyline = np.array(zeniths[weather]), np.array(skylines[weather])
    bright = rng.uniform(0.92, 1.12)
    return Light(
        ambient=_tuple(level * tint * rng.uniform(0.96, 1.04, 3)),
        sun_side=side,
        sun_cot=float(rng.uniform(0.4, 1.6)),
        zenith=_tuple(np.clip(zenith * bright, 0, 255)),
        skyline=_tuple(np.clip(skyline * bright, 0, 255)),
        cloud=_tuple(np.array((250, 250, 250)) if weather != 2 else np.array((84, 90, 102))),
        visibility=float((900, 1400, 500, rng.uniform(110, 260))[weather]),
    )


def draw_look(rng: np.random.Generator) -> Look:
    """A look at random; the ranges were chosen beside CamVid's train frames."""
    street, light = _street(rng), _light(rng)
    lens = Lens(
        focal=float(rng.uniform(0.85, 1.25)),
        horizon=float(rng.uniform(0.47, 0.58)),
        height=float(rng.uniform(1.15, 1.6)),
        noise=float(rng.uniform(1.0, 5.0)),
        blur=float(rng.uniform(0.0, 0.7)),
        gain=_tuple(rng.uniform(0.95, 1.05, 3)),
        gamma=float(rng.uniform(0.85, 1.2)),
    )
    ambient = np.asarray(light.ambient)
    grey = rng.uniform(72, 142)
    asphalt = grey * np.array((1.0, 1.0, 1.01)) + rng.normal(0, 2, 3)
    paving = rng.uniform(1.0, 1.45) * grey * np.array((1.03, 1.0, 0.96)) + rng.normal(0, 4, 3)
    green = bool(rng.random() < 0.75 - 0.6 * street.urban)
    verge = np.array((78, 100, 48)) * rng.uniform(0.7, 1.2) if green else paving * 0.93
    ground = _tuple(asphalt * ambient), _tuple(np.minimum(paving, 215) * ambient)
    return Look(
        street, light, lens, *ground, _tuple(verge * ambient), green, int(rng.integers(1 << 30))
    )


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
