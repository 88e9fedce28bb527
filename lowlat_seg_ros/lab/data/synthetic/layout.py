"""What stands along the road and does not move, laid out lot by lot on both sides."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lowlat_seg_ros.lab.data.synthetic import objects, pictures
from lowlat_seg_ros.lab.data.synthetic.canvas import Paintable
from lowlat_seg_ros.lab.data.synthetic.street import AHEAD, BEHIND, ByDistance, Line, Look
from lowlat_seg_ros.labels import CAMVID

BUILDING, TREE, FENCE = (CAMVID.index(n) for n in ("Building", "Tree", "Fence"))


@dataclass(frozen=True)
class Layout:
    """All that stands still: upright things, outlines of shadows, and where side roads cross."""

    things: ByDistance[Paintable]
    shadows: ByDistance[np.ndarray]
    crossings: tuple[tuple[float, float], ...]


class Builder:
    """Lays out one drive's street."""

    def __init__(self, rng: np.random.Generator, look: Look, line: Line, length: float) -> None:
        self.rng, self.look, self.line, self.length = rng, look, line, length
        self.things: list[tuple[float, Paintable]] = []
        self.shadows: list[tuple[float, np.ndarray]] = []
        self.crossings: list[tuple[float, float]] = []

    def build(self) -> Layout:
        self._crossings()
        for side in (-1, 1):
            self._lots(side)
            self._furniture(side)
            self._parked(side)
        return Layout(ByDistance(self.things), ByDistance(self.shadows), tuple(self.crossings))

    def _edge(self, side: int) -> float:
        """Distance of the pavement's outer edge from the centre line."""
        return self.look.street.half_road + self.look.street.pavements[0 if side < 0 else 1]

    def _add(self, s: float, *things: Paintable) -> None:
        self.things += [(s, thing) for thing in things]

    def _crossings(self) -> None:
        s = float(self.rng.uniform(5, 90))
        while s < self.length + AHEAD:
            wide = float(self.rng.uniform(6, 12))
            self.crossings.append((s, s + wide))
            s += float(self.rng.uniform(50, 160))

    def crossed(self, s: float, margin: float = 0.0) -> bool:
        """Whether a side road meets the street at ``s``."""
        return any(a - margin <= s <= b + margin for a, b in self.crossings)

    def _lots(self, side: int) -> None:
        s, end, district = -BEHIND - 10, self.length + AHEAD, self.look.street.built
        switch = s
        while s < end:
            if s > switch:  # a street changes its face every hundred metres or so
                switch = s + self.rng.uniform(40, 140)
                built = self.look.street.built + self.rng.normal(0, 0.25)
                district = float(np.clip(built, 0.05, 1))
            wide = float(self.rng.uniform(6, 16))
            stop = s + wide
            cut = [c for c in self.crossings if c[0] < stop and c[1] > s]
            if cut:
                if cut[0][0] - s > 4:
                    self._lot(side, s, cut[0][0], district)
                s = cut[0][1]
                continue
            self._lot(side, s, stop, district)
            s = stop

    def _lot(self, side: int, s0: float, s1: float, built: float) -> None:
        if self.rng.random() < built:
            setback = float(self.rng.choice([0.0, 1.5, 4.0, 8.0], p=self._setbacks()))
            self._house(side, s0, s1 - (self.rng.random() < 0.2) * 1.5, self._edge(side) + setback)
            if setback > 1:
                self._front(side, s0, s1)
                if setback > 3 and self.rng.random() < 0.5:
                    self._tree(side, self.rng.uniform(s0, s1), self._edge(side) + 1.5, 0.6)
            return
        self._front(side, s0, s1)
        self._bank(side, s0, s1, self._edge(side) + float(self.rng.uniform(6, 26)))
        for _ in range(int(self.rng.integers(0, 4))):
            self._tree(side, self.rng.uniform(s0, s1), self._edge(side) + self.rng.uniform(1, 12))

    def _setbacks(self) -> np.ndarray:
        u = self.look.street.urban
        weights = [0.1 + 0.75 * u, 0.2, 0.4 * (1 - u) + 0.03, 0.3 * (1 - u) + 0.02]
        return np.array(weights) / (1.05 + 0.05 * u)

    def _house(self, side: int, s0: float, s1: float, d: float) -> None:
        height = float(self.rng.uniform(6.0, 9.5))
        height += self.look.street.urban * float(self.rng.gamma(2.0, 2.8))
        deep = float(self.rng.uniform(7, 12))
        offsets = ((s0, d), (s1, d), (s1, d + deep), (s0, d + deep))
        corners = np.array([self.line.at(s, side * w) for s, w in offsets])
        self._add(s1, *objects.house(self.rng, self.look.light, side, corners, height))
        if self.rng.random() < 0.2 + 0.4 * self.look.street.urban:
            self._hanging_sign(side, self.rng.uniform(s0, s1), d)
        if self.look.light.sun_side == side:
            far = d - height * self.look.light.sun_cot
            outline = ((s0, d), (s1, d), (s1 - 2, far), (s0 - 2, far))
            self.shadows.append((s1, np.array([self.line.at(s, side * w) for s, w in outline])))

    def _hanging_sign(self, side: int, s: float, d: float) -> None:
        model, z = objects.Model(), float(self.rng.uniform(2.6, 3.8))
        x0, wide = -side * 0.2, -side * float(self.rng.uniform(0.5, 1.0))
        x1, top = x0 + wide, z + float(self.rng.uniform(0.5, 1.1))
        colour = objects.as_colour(self.rng.uniform(20, 220, 3))
        model.face([(x0, 0, top), (x1, 0, top), (x1, 0, z), (x0, 0, z)], colour, objects.SIGN)
        self._place(model, s, side * d)

    def _place(self, model: objects.Model, s: float, d: float, turn: float = 0.0) -> None:
        """Put ``model`` at (s, d), turned by ``turn`` rad against the road."""
        lit = model.lit(float(np.mean(self.look.light.ambient)))
        self._add(s, lit.on_road(self.line, s, d, turn))

    def _front(self, side: int, s0: float, s1: float) -> None:
        """What closes a garden off: fence, hedge, low wall or nothing."""
        kind = self.rng.choice(4, p=[0.42, 0.26, 0.14, 0.18])
        if kind == 3:
            return
        # All three are drawn, whichever is taken, so that later draws do not depend on it.
        heights = [self.rng.uniform(*limits) for limits in ((1.0, 1.8), (1.0, 2.2), (0.6, 1.4))]
        textures = (
            pictures.fence(int(self.rng.integers(pictures.FENCES))),
            pictures.hedge(int(self.rng.integers(pictures.HEDGES))),
            pictures.facade(int(self.rng.integers(pictures.FACADES))),
        )
        label = (FENCE, TREE, BUILDING)[kind]
        edge, light = side * (self._edge(side) + 0.1), self.look.light.on(side)
        start, stop = self.line.at(s0, edge), self.line.at(s1, edge)
        height, texture = float(heights[kind]), textures[kind]
        self._add(s1, objects.wall_between(start, stop, height, texture, light, label))

    def _bank(self, side: int, s0: float, s1: float, d: float) -> None:
        """Shrubs behind an open lot."""
        if self.rng.random() < 0.7:
            texture = pictures.hedge(int(self.rng.integers(pictures.HEDGES)))
            start, stop = self.line.at(s0 - 3, side * d), self.line.at(s1 + 3, side * d)
            height, light = float(self.rng.uniform(1.5, 7)), self.look.light.on(side)
            self._add(s1 + 1, objects.wall_between(start, stop, height, texture, light, TREE))

    def _tree(self, side: int, s: float, d: float, size: float = 1.0) -> None:
        rng = self.rng
        if rng.random() < self.look.street.bare:
            sprite = pictures.bare_tree(int(rng.integers(pictures.BARE)))
        else:
            sprite = pictures.leafy_tree(int(rng.integers(pictures.LEAFY)))
        height = float(rng.uniform(4.5, 12)) * size
        tint = objects.as_colour(np.asarray(self.look.light.ambient) * rng.uniform(0.75, 1.25))
        foot, mirrored = self.line.at(s, side * d), bool(rng.random() < 0.5)
        self._add(s, sprite.standing(foot, height, tint, TREE, mirrored))
        if self.look.light.sun_side != 0:
            wide = height * sprite.aspect
            reach = -self.look.light.sun_side * height * self.look.light.sun_cot * 0.6
            angles = np.linspace(0, 2 * np.pi, 12, endpoint=False)
            along = s + 0.35 * wide * np.sin(angles)
            across = side * d + reach * (0.6 + 0.4 * np.cos(angles))
            self.shadows.append((s, self.line.at(along, across)))

    def _furniture(self, side: int) -> None:
        """Lamps, signs, lights, bollards and street trees on the pavement."""
        rng, street = self.rng, self.look.street
        kerb, edge = street.half_road + 0.35, self._edge(side)
        spacing = float(rng.uniform(18, 40))
        for s in np.arange(rng.uniform(-15, 15), self.length + AHEAD, spacing):
            if not self.crossed(s):
                lamp, d = objects.lamp_post(rng, side), kerb if spacing < 30 else edge - 0.2
                self._place(lamp, s, side * d)
        for s in self._scattered(0.045):
            sign, d = objects.traffic_sign(rng), side * rng.uniform(kerb, edge)
            turn = rng.normal(0, 0.25) + np.pi * (side > 0) * (rng.random() < 0.3)
            self._place(sign, s, d, turn)
        for s in self._scattered(0.05 * rng.random() + 0.01):
            self._place(objects.bollard(rng), s, side * kerb)
        for a, _ in self.crossings:
            if rng.random() < 0.4:
                self._place(objects.traffic_light(rng), a - 1.5, side * kerb)
        for s in self._scattered(0.04 * rng.random() * (edge - kerb > 1.6)):
            self._tree(side, s, kerb + 0.4, 0.8)

    def _scattered(self, per_metre: float) -> list[float]:
        """Places along the street, clear of side roads."""
        span = self.length + AHEAD + BEHIND
        places = self.rng.uniform(-BEHIND, self.length + AHEAD, self.rng.poisson(per_metre * span))
        return [float(s) for s in places if not self.crossed(float(s), 1.0)]

    def _parked(self, side: int) -> None:
        rng, street = self.rng, self.look.street
        share = street.parked[0 if side < 0 else 1]
        s = -BEHIND
        while s < self.length + AHEAD and share > 0:
            if rng.random() < share and not self.crossed(s, 5):
                shape = objects.CAR_SHAPES[int(rng.integers(len(objects.CAR_SHAPES)))]
                paint = objects.PAINTS[int(rng.integers(len(objects.PAINTS)))]
                turn = rng.normal(0, 0.02) + np.pi * (rng.random() < (0.1 if side < 0 else 0.7))
                car = objects.car(shape, paint, rng)
                self._place(car, s, side * (street.half_road - 1.0), turn)
            s += float(rng.uniform(5.4, 7.5))
