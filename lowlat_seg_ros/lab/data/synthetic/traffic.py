"""What moves: the camera's own car, other cars, people on foot and on bicycles.

Everything is a function of time, so any frame can be drawn without the ones before it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lowlat_seg_ros.lab.data.synthetic import objects, pictures
from lowlat_seg_ros.lab.data.synthetic.canvas import Colour, Paintable
from lowlat_seg_ros.lab.data.synthetic.street import AHEAD, BEHIND, BESIDE, Line, Look
from lowlat_seg_ros.labels import CAMVID

PEDESTRIAN, BICYCLIST = CAMVID.index("Pedestrian"), CAMVID.index("Bicyclist")

#: Step of the ego motion's integration, in seconds.
_STEP = 1 / 60


class Ego:
    """The camera's way: arc length, offset from the centre line and heading against it."""

    def __init__(self, rng: np.random.Generator, look: Look, seconds: float) -> None:
        self._t = np.arange(0.0, seconds + 2 * _STEP, _STEP)
        speed = np.full_like(self._t, look.street.speed)
        for _ in range(3):
            period, phase = rng.uniform(6, 25), rng.uniform(0, 2 * np.pi)
            speed *= 1 + 0.28 * np.sin(2 * np.pi * self._t / period + phase)
        for stop in np.arange(rng.uniform(0, 60), seconds, 60.0):  # a red light now and then
            speed *= np.clip((np.abs(self._t - stop) - 2.0) / 4.0, 0.0, 1.0)
        self._s = np.concatenate([[0.0], np.cumsum(speed[:-1]) * _STEP])
        half, parked = look.street.half_road, look.street.parked
        self._lane = -min(half / 2, half - 3.2) if parked[0] > 0 else -half / 2
        self._sway = rng.uniform(0.05, 0.35), rng.uniform(4, 9), rng.uniform(0, 2 * np.pi)
        self._nod = rng.uniform(0.0, 0.0025), rng.uniform(0.5, 1.1), rng.uniform(0, 2 * np.pi)

    @property
    def length(self) -> float:
        """Metres driven in all."""
        return float(self._s[-1])

    def distance(self, t: float) -> float:
        return float(np.interp(t, self._t, self._s))

    def offset(self, t: float) -> float:
        """Metres to the right of the centre line; it drives on the left."""
        size, period, phase = self._sway
        return float(self._lane + size * np.sin(2 * np.pi * t / period + phase))

    def yaw(self, t: float) -> float:
        """Heading against the road's, in rad: it looks where it sways to."""
        size, period, phase = self._sway
        return float(0.06 * size * np.cos(2 * np.pi * t / period + phase))

    def pitch(self, t: float) -> float:
        """Shift of the horizon as a share of the focal length."""
        size, period, phase = self._nod
        return float(size * np.sin(2 * np.pi * t / period + phase))


@dataclass(frozen=True)
class Movers:
    """Arrays (N,): arc length ``s + v t`` and offset ``d + w t``, in metres and seconds."""

    s: np.ndarray
    v: np.ndarray
    d: np.ndarray
    w: np.ndarray

    def near(self, t: float, ego: float) -> list[tuple[int, float, float]]:
        """(index, s, d) at time ``t`` of those in view of a camera at ``ego``."""
        s = self.s + self.v * t
        return [
            (int(i), float(s[i]), float(self.d[i] + self.w[i] * t))
            for i in np.flatnonzero((s > ego - BESIDE) & (s < ego + AHEAD))
        ]


class Traffic:
    """All that moves in a drive, by time."""

    def __init__(
        self, rng: np.random.Generator, look: Look, line: Line, ego: Ego, seconds: float
    ) -> None:
        self.line, self.ego, self.look = line, ego, look
        light = float(np.mean(look.light.ambient))
        span = (-BEHIND, ego.length + AHEAD)
        self._cars = self._oncoming(rng, seconds)
        self._car_models = [_vehicle(rng).lit(light) for _ in self._cars.s]
        self._lead = _vehicle(rng).lit(light) if rng.random() < 0.4 else None
        self._gap = rng.uniform(10, 36), rng.uniform(1, 4), rng.uniform(5, 14)
        self._walkers = self._on_foot(rng, span)
        self._walker_ids = rng.integers(pictures.PEOPLE, size=len(self._walkers.s))
        self._cyclists = self._on_wheels(rng, span, seconds)
        self._tints = rng.uniform(0.8, 1.15, 4096)

    def _oncoming(self, rng: np.random.Generator, seconds: float) -> Movers:
        street, ego = self.look.street, self.ego
        v = -rng.uniform(0.7, 1.2) * street.speed
        stretch = ego.length + AHEAD - v * seconds
        per_metre = street.traffic / max(street.speed - v, 1.0)
        s, at = [], float(rng.uniform(8, 60))
        while at < stretch:
            s.append(at)
            at += float(rng.exponential(1 / per_metre)) + 11.0
        lane = street.half_road / 2 - (0.8 if street.parked[1] > 0 else 0.0)
        n = len(s)
        return Movers(np.array(s), np.full(n, v), lane + rng.normal(0, 0.15, n), np.zeros(n))

    def _on_foot(self, rng: np.random.Generator, span: tuple[float, float]) -> Movers:
        street = self.look.street
        n = int(rng.poisson(2 * street.people * (span[1] - span[0])))
        side = rng.choice([-1, 1], n)
        inner = street.half_road + 0.4
        outer = street.half_road + np.where(side < 0, *street.pavements) - 0.2
        crossing = rng.random(n) < 0.07  # about to cross, or just crossing
        on_road, on_pavement = rng.uniform(0.0, street.half_road, n), rng.uniform(inner, outer)
        d = side * np.where(crossing, on_road, on_pavement)
        v = np.where(crossing, 0.0, rng.choice([-1.3, 1.3, 0.0], n) * rng.uniform(0.8, 1.2, n))
        w = np.where(crossing, -side * rng.uniform(0.8, 1.5, n), 0.0)
        return Movers(rng.uniform(*span, n), v, d, w)

    def _on_wheels(
        self, rng: np.random.Generator, span: tuple[float, float], seconds: float
    ) -> Movers:
        street = self.look.street
        n = int(rng.poisson((span[1] - span[0]) * 0.022))
        side = rng.choice([-1, 1], n)
        v = -side * rng.uniform(2.5, 5.5, n)
        s = rng.uniform(*span, n) - np.where(v > 0, v * seconds * rng.random(n), 0.0)
        d = side * (street.half_road - 0.5 - 1.6 * (np.where(side < 0, *street.parked) > 0))
        return Movers(s, v, d, np.zeros(n))

    def at(self, t: float) -> list[tuple[float, Paintable]]:
        """What is in view at ``t``, with the arc length by which it is painted."""
        ego = self.ego.distance(t)
        things: list[tuple[float, Paintable]] = [
            (s + 1.5, self._car_models[i].on_road(self.line, s, d, np.pi))
            for i, s, d in self._cars.near(t, ego)
        ]
        if self._lead is not None:
            gap, change, period = self._gap
            s = ego + gap + change * np.sin(2 * np.pi * t / period)
            things.append((s + 1.5, self._lead.on_road(self.line, s, self.ego.offset(0.0), 0.0)))
        things += [self._person(i, s, d, t) for i, s, d in self._walkers.near(t, ego)]
        things += [self._rider(i, s, d, t) for i, s, d in self._cyclists.near(t, ego)]
        return things

    def _person(self, index: int, s: float, d: float, t: float) -> tuple[float, Paintable]:
        number = int(self._walker_ids[index])
        moves = self._walkers.v[index] != 0 or self._walkers.w[index] != 0
        phase = int(t * 9 + index) % pictures.PHASES if moves else index % 2
        sprite, height = pictures.walker(number, phase), 1.5 + 0.02 * number
        z = self.look.street.kerb if abs(d) > self.look.street.half_road else 0.0
        foot = self.line.at(s, d, z)
        return s, sprite.standing(foot, height, self._tint(index), PEDESTRIAN, False)

    def _rider(self, index: int, s: float, d: float, t: float) -> tuple[float, Paintable]:
        # Even pictures are seen from behind, as on this road; every fifth is one from the side.
        number = (2 * index + (index % 5 == 0)) % pictures.CYCLISTS
        sprite = pictures.cyclist(number, int(t * 7 + index) % pictures.PHASES)
        mirrored = bool(self._cyclists.v[index] > 0)
        foot = self.line.at(s, d)
        return s, sprite.standing(foot, 1.75, self._tint(index), BICYCLIST, mirrored)

    def _tint(self, index: int) -> Colour:
        """The light on a person, a little different for each."""
        r, g, b = (v * float(self._tints[index % 4096]) for v in self.look.light.ambient)
        return (r, g, b)


def _vehicle(rng: np.random.Generator) -> objects.Model:
    paint = objects.PAINTS[int(rng.integers(len(objects.PAINTS)))]
    if rng.random() < 0.1:
        return objects.bus(paint, rng)
    return objects.car(objects.CAR_SHAPES[int(rng.integers(len(objects.CAR_SHAPES)))], paint, rng)
