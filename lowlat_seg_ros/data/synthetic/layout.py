"""What stands along the road and does not move, laid out lot by lot on both sides."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from lowlat_seg_ros.data.labels import CAMVID
from lowlat_seg_ros.data.synthetic import objects, sprites, textures
from lowlat_seg_ros.data.synthetic.canvas import Board, Colour, Mesh, Texture, Wall
from lowlat_seg_ros.data.synthetic.look import Look

BUILDING, ROAD, TREE, FENCE = (CAMVID.index(n) for n in ("Building", "Road", "Tree", "Fence"))

Paintable = Mesh | Wall | Board

#: How far ahead of the camera things are drawn, and how far behind, in metres.
AHEAD, BEHIND = 170.0, 22.0


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


@dataclass(frozen=True)
class Marking:
    """A flat patch (4, 3) of road that ends at arc length ``s``."""

    s: float
    corners: np.ndarray
    colour: Colour


@dataclass
class Layout:
    """``markings`` in the order in which they lie on each other; the rest things by the arc length of their far end: painted in falling order, they overlap rightly."""

    things: list[tuple[float, Paintable]] = field(default_factory=list)
    markings: list[Marking] = field(default_factory=list)
    shadows: list[tuple[float, np.ndarray]] = field(default_factory=list)
    crossings: list[tuple[float, float]] = field(default_factory=list)


class Builder:
    """Lays out one drive's street."""

    def __init__(self, rng: np.random.Generator, look: Look, line: Line, length: float) -> None:
        self.rng, self.look, self.line, self.length = rng, look, line, length
        self.layout = Layout()

    def build(self) -> Layout:
        self._crossings()
        for side in (-1, 1):
            self._lots(side)
            self._furniture(side)
            self._parked(side)
        for items in (self.layout.things, self.layout.shadows):
            items.sort(key=lambda item: item[0])
        return self.layout

    def _edge(self, side: int) -> float:
        """Distance of the pavement's outer edge from the centre line."""
        return self.look.street.half_road + self.look.street.pavements[0 if side < 0 else 1]

    def _add(self, s: float, *things: Paintable) -> None:
        self.layout.things += [(s, thing) for thing in things]

    def _light(self, toward_sun: bool) -> Colour:
        light = self.look.light
        factor = 1.0 if light.sun_side == 0 else (1.12 if toward_sun else 0.62)
        r, g, b = (factor * v for v in light.ambient)
        return (r, g, b)

    def _crossings(self) -> None:
        s = float(self.rng.uniform(5, 90))
        while s < self.length + AHEAD:
            wide = float(self.rng.uniform(6, 12))
            self.layout.crossings.append((s, s + wide))
            s += float(self.rng.uniform(50, 160))

    def crossed(self, s: float, margin: float = 0.0) -> bool:
        """Whether a side road meets the street at ``s``."""
        return any(a - margin <= s <= b + margin for a, b in self.layout.crossings)

    def _lots(self, side: int) -> None:
        s, end, district = -BEHIND - 10, self.length + AHEAD, self.look.street.built
        switch = s
        while s < end:
            if s > switch:  # a street changes its face every hundred metres or so
                switch = s + self.rng.uniform(40, 140)
                district = float(np.clip(self.look.street.built + self.rng.normal(0, 0.25), 0.05, 1))  # fmt: skip
            wide = float(self.rng.uniform(6, 16))
            stop = s + wide
            cut = [c for c in self.layout.crossings if c[0] < stop and c[1] > s]
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
        return np.array([0.1 + 0.75 * u, 0.2, 0.4 * (1 - u) + 0.03, 0.3 * (1 - u) + 0.02]) / (1.05 + 0.05 * u)  # fmt: skip

    def _upright(self, start: np.ndarray, stop: np.ndarray, height: float, texture: Texture,
                 light: Colour, label: int) -> Wall:  # fmt: skip
        return Wall(start + [0, 0, height], stop - start, height, texture, light, label)

    def _house(self, side: int, s0: float, s1: float, d: float) -> None:
        rng, urban = self.rng, self.look.street.urban
        height = float(rng.uniform(5.0, 7.5) + urban * rng.gamma(1.6, 2.6))
        deep = float(rng.uniform(7, 12))
        number = int(rng.integers(textures.FACADES))
        tint = rng.uniform(0.8, 1.15) * rng.uniform(0.95, 1.05, 3)
        lit, dark = (np.asarray(self._light(v)) * tint for v in (self.look.light.sun_side != side, True))  # fmt: skip
        at = self.line.at
        corners = [at(s, side * w) for s, w in ((s0, d), (s1, d), (s1, d + deep), (s0, d + deep))]
        end_texture = textures.facade(number if rng.random() < 0.3 else int(rng.integers(textures.FACADES)))  # fmt: skip
        end = self._upright(corners[0], corners[3], height, end_texture, _colour(dark * 0.85), BUILDING)  # fmt: skip
        front = self._upright(corners[0], corners[1], height, textures.facade(number), _colour(lit), BUILDING)  # fmt: skip
        roof = self._roof(corners, height, bool(rng.random() < 0.7))
        self._add(s1, *([roof] if roof else []), end, front)
        if rng.random() < 0.35 * urban:  # a shop's sign that juts out
            self._hanging_sign(side, rng.uniform(s0, s1), d)
        if self.look.light.sun_side == side:
            reach = height * self.look.light.sun_cot
            outline = np.array([at(s0, side * d), at(s1, side * d), at(s1 - 2, side * (d - reach)), at(s0 - 2, side * (d - reach))])  # fmt: skip
            self.layout.shadows.append((s1, outline))

    def _roof(self, corners: list[np.ndarray], height: float, pitched: bool) -> Mesh | None:
        if not pitched:
            return None
        rng, model = self.rng, objects.Model()
        rise = float(rng.uniform(1.5, 3.5))
        up, top = np.array([0, 0, height]), np.array([0, 0, height + rise])
        ridge = [(corners[0] + corners[3]) / 2 + top, (corners[1] + corners[2]) / 2 + top]
        slate = _colour(np.array([(84, 80, 84), (120, 74, 58), (70, 72, 80), (104, 92, 80)][int(rng.integers(4))]) * np.asarray(self.look.light.ambient))  # fmt: skip
        wall = _colour(np.array((130, 112, 96)) * np.asarray(self.look.light.ambient))
        if rng.random() < 0.6:  # a chimney
            foot = ridge[0] * 0.3 + ridge[1] * 0.7
            model.box([tuple(foot + o) for o in _OFFSETS], [tuple(foot + o + [0, 0, 1.5]) for o in _OFFSETS], wall, BUILDING)  # fmt: skip
        model.face([tuple(p) for p in (corners[0] + up, ridge[0], corners[3] + up)], wall, BUILDING)
        model.face([tuple(p) for p in (corners[0] + up, corners[1] + up, ridge[1], ridge[0])], slate, BUILDING)  # fmt: skip
        return model.placed(0, 0, 0, 1.0)

    def _hanging_sign(self, side: int, s: float, d: float) -> None:
        model, z = objects.Model(), float(self.rng.uniform(2.6, 3.8))
        x, wide, high = -side * 0.2, -side * float(self.rng.uniform(0.5, 1.0)), float(self.rng.uniform(0.5, 1.1))  # fmt: skip
        colour = _colour(self.rng.uniform(20, 220, 3))
        model.face([(x, 0, z + high), (x + wide, 0, z + high), (x + wide, 0, z), (x, 0, z)], colour, objects.SIGN)  # fmt: skip
        self._place(model, s, side * d)

    def _place(self, model: objects.Model, s: float, d: float, z: float = 0.0, turn: float = 0.0) -> None:  # fmt: skip
        x, y, _ = self.line.at(s, d)
        light = float(np.mean(self.look.light.ambient))
        self._add(s, model.placed(float(x), float(y), self.line.frame(s)[2] + turn, light, z))

    def _front(self, side: int, s0: float, s1: float) -> None:
        """What closes a garden off: fence, hedge, low wall or nothing."""
        kind = self.rng.choice(4, p=[0.36, 0.24, 0.2, 0.2])
        if kind == 3:
            return
        height = float((self.rng.uniform(1.0, 1.8), self.rng.uniform(1.0, 2.2), self.rng.uniform(0.6, 1.4))[kind])  # fmt: skip
        texture = (
            textures.fence(int(self.rng.integers(textures.FENCES))),
            textures.hedge(int(self.rng.integers(textures.HEDGES))),
            textures.facade(int(self.rng.integers(textures.FACADES))),
        )[kind]
        label = (FENCE, TREE, BUILDING)[kind]
        at, edge = self.line.at, side * (self._edge(side) + 0.1)
        light = self._light(self.look.light.sun_side != side)
        self._add(s1, self._upright(at(s0, edge), at(s1, edge), height, texture, light, label))

    def _bank(self, side: int, s0: float, s1: float, d: float) -> None:
        """Shrubs behind an open lot."""
        if self.rng.random() < 0.7:
            texture = textures.hedge(int(self.rng.integers(textures.HEDGES)))
            start, stop = self.line.at(s0 - 3, side * d), self.line.at(s1 + 3, side * d)
            light = self._light(self.look.light.sun_side != side)
            self._add(s1 + 1, self._upright(start, stop, float(self.rng.uniform(1.5, 7)), texture, light, TREE))  # fmt: skip

    def _tree(self, side: int, s: float, d: float, size: float = 1.0) -> None:
        rng = self.rng
        bare = rng.random() < self.look.street.bare
        sprite = (
            sprites.bare_tree(int(rng.integers(sprites.BARE)))
            if bare
            else sprites.leafy_tree(int(rng.integers(sprites.LEAFY)))
        )
        height = float(rng.uniform(4.5, 12)) * size
        tint = _colour(np.asarray(self.look.light.ambient) * rng.uniform(0.75, 1.25))
        foot, wide = self.line.at(s, side * d), height * sprite.aspect
        self._add(s, Board(foot, wide, height, sprite.picture, sprite.cover, tint, TREE, bool(rng.random() < 0.5)))  # fmt: skip
        if self.look.light.sun_side != 0:
            reach = -self.look.light.sun_side * height * self.look.light.sun_cot * 0.6
            angles = np.linspace(0, 2 * np.pi, 12, endpoint=False)
            ellipse = self.line.at(s + 0.35 * wide * np.sin(angles), side * d + reach * (0.6 + 0.4 * np.cos(angles)))  # fmt: skip
            self.layout.shadows.append((s, ellipse))

    def _furniture(self, side: int) -> None:
        """Lamps, signs, lights, bollards and street trees on the pavement."""
        rng, street = self.rng, self.look.street
        kerb, edge = street.half_road + 0.35, self._edge(side)
        spacing = float(rng.uniform(18, 40))
        for s in np.arange(rng.uniform(-15, 15), self.length + AHEAD, spacing):
            if not self.crossed(s):
                self._place(objects.lamp_post(rng, side), s, side * (kerb if spacing < 30 else edge - 0.2))  # fmt: skip
        for s in self._scattered(0.03):
            self._place(objects.traffic_sign(rng), s, side * rng.uniform(kerb, edge), turn=rng.normal(0, 0.25) + np.pi * (side > 0) * (rng.random() < 0.3))  # fmt: skip
        for s in self._scattered(0.05 * rng.random() + 0.01):
            self._place(objects.bollard(rng), s, side * kerb)
        for a, _ in self.layout.crossings:
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
                self._place(objects.car(shape, paint, rng), s, side * (street.half_road - 1.0), turn=turn)  # fmt: skip
            s += float(rng.uniform(5.4, 7.5))


_OFFSETS = np.array([(-0.5, -0.5, 0), (0.5, -0.5, 0), (0.5, 0.5, 0), (-0.5, 0.5, 0)], float)


def _colour(values: np.ndarray) -> Colour:
    r, g, b = (float(min(v, 255.0)) for v in values)
    return (r, g, b)
