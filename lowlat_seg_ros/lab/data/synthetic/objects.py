"""Solid things beside and on the road, as meshes about their own foot."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from lowlat_seg_ros.lab.data.synthetic.canvas import Colour, Face, Mesh
from lowlat_seg_ros.labels import CAMVID

BUILDING, POLE, SIGN, CAR = (CAMVID.index(n) for n in ("Building", "Pole", "SignSymbol", "Car"))

Points = list[tuple[float, float, float]]


class Model:
    """A mesh under way in its own axes: x right, y forward, z up, metres."""

    def __init__(self) -> None:
        self.points: Points = []
        self.faces: list[Face] = []

    def face(self, points: Points, colour: Colour, label: int | None, solid: bool = False) -> None:
        start = len(self.points)
        self.points += points
        self.faces.append(Face(start, len(self.points), colour, label, solid))

    def box(self, low: Points, high: Points, colour: Colour, label: int) -> None:
        """A solid whose bottom and top run left rear, right rear, right front, left front."""
        sides = ((0, 1, 0.78), (1, 2, 0.88), (2, 3, 0.9), (3, 0, 0.82))
        for i, j, light in sides:
            self.face([high[i], high[j], low[j], low[i]], shade(colour, light), label, True)
        self.face([high[3], high[2], high[1], high[0]], shade(colour, 1.08), label, True)

    def detail(self, points: Points, colour: Colour, label: int) -> None:
        """A face on the surface of a solid, left out where it is too small to see."""
        self.face(points, colour, label, True)
        self.faces[-1] = replace(self.faces[-1], detail=True)

    def lit(self, light: float) -> Model:
        """The model in light of this strength."""
        model = Model()
        model.points = self.points
        model.faces = [replace(f, colour=shade(f.colour, light)) for f in self.faces]
        return model

    def placed(self, x: float, y: float, heading: float, z: float = 0.0) -> Mesh:
        """The mesh standing at (x, y, z) with its y axis along ``heading``."""
        local = np.asarray(self.points)
        sin, cos = np.sin(heading), np.cos(heading)
        turn = np.array([[cos, -sin, 0.0], [sin, cos, 0.0], [0.0, 0.0, 1.0]])
        return Mesh(local @ turn + (x, y, z), tuple(self.faces))


def points(rows: np.ndarray) -> Points:
    """The rows of (N, 3) as tuples."""
    return [(x, y, z) for x, y, z in rows.tolist()]


def shade(colour: Colour, light: float) -> Colour:
    """``colour`` times ``light``, within what can be shown."""
    r, g, b = (min(v * light, 255.0) for v in colour)
    return (r, g, b)


def ring(half_width: float, rear: float, front: float, z: float) -> Points:
    """The four corners of a horizontal rectangle, from left rear on."""
    return [
        (-half_width, rear, z),
        (half_width, rear, z),
        (half_width, front, z),
        (-half_width, front, z),
    ]


@dataclass(frozen=True)
class CarShape:
    """Sizes of a kind of vehicle in metres; ``cabin`` gives its ends as shares of the length."""

    length: float
    width: float
    waist: float
    height: float
    cabin: tuple[float, float]


CAR_SHAPES = (
    CarShape(4.0, 1.70, 0.88, 1.45, (0.02, 0.72)),  # hatchback
    CarShape(4.5, 1.78, 0.90, 1.42, (0.14, 0.70)),  # saloon
    CarShape(4.6, 1.85, 1.02, 1.75, (0.01, 0.74)),  # estate, off-roader
    CarShape(5.2, 1.95, 1.15, 2.25, (0.0, 0.86)),  # van
)
PAINTS: tuple[Colour, ...] = (
    (196, 198, 202),
    (30, 32, 36),
    (130, 134, 140),
    (150, 24, 30),
    (28, 44, 90),
    (216, 216, 210),
    (70, 76, 84),
    (40, 76, 62),
    (172, 160, 130),
    (60, 110, 160),
)
_GLASS: Colour = (44, 52, 60)
_TYRE: Colour = (22, 22, 24)


def car(shape: CarShape, paint: Colour, rng: np.random.Generator) -> Model:
    """A car that faces +y: shadow, body, cabin with windows, wheels, lights and plates."""
    model, half, long = Model(), shape.width / 2, shape.length
    rear, front = -long / 2, long / 2
    model.face(ring(half + 0.15, rear - 0.1, front + 0.1, 0.01), (26, 26, 28), None)
    body_low = ring(half - 0.05, rear + 0.1, front - 0.08, 0.24)
    middle = ring(half, rear, front, 0.55)
    top = ring(half - 0.08, rear + 0.06, front - 0.16, shape.waist)
    model.box(body_low, middle, shade(paint, 0.72), CAR)
    _wheels(model, half, rear, front)
    model.box(middle, top, paint, CAR)
    low, high = (rear + share * long for share in shape.cabin)
    cabin_low = ring(half - 0.1, low + 0.06, high, shape.waist)
    slope = 0.3 * (shape.height - shape.waist)
    cabin_top = ring(half - 0.26, low + 0.1 + slope, high - 2.2 * slope, shape.height)
    model.box(cabin_low, cabin_top, paint, CAR)
    for i, j in ((0, 1), (1, 2), (2, 3), (3, 0)):
        _pane(model, [cabin_top[i], cabin_top[j], cabin_low[j], cabin_low[i]])
    _lights(model, half, rear, front, shape.waist, bool(rng.random() < 0.3))
    return model


def bus(paint: Colour, rng: np.random.Generator) -> Model:
    """A bus or lorry of one box, 8 to 11 m long, with a band of windows."""
    model, half, long = Model(), 1.25, float(rng.uniform(8, 11))
    height = float(rng.choice([2.9, 3.2, 4.2]))
    rear, front = -long / 2, long / 2
    model.face(ring(half + 0.2, rear, front, 0.01), (26, 26, 28), None)
    low, high = ring(half, rear, front, 0.35), ring(half - 0.05, rear, front, height)
    model.box(low, high, paint, CAR)
    for floor in range(2 if height > 4 else 1):
        z0, z1 = 1.3 + 1.4 * floor, 2.3 + 1.4 * floor
        band_low, band_high = ring(half, rear, front, z0), ring(half - 0.02, rear, front, z1)
        for i, j in ((0, 1), (1, 2), (2, 3), (3, 0)):
            _pane(model, [band_high[i], band_high[j], band_low[j], band_low[i]], 0.04)
    _wheels(model, half, rear + 0.6, front - 0.6, 0.48)
    _lights(model, half, rear, front, 0.9, False)
    return model


def _pane(model: Model, corners: Points, inset: float = 0.1) -> None:
    """A window: the face drawn in by ``inset``."""
    outer = np.asarray(corners)
    model.face(points(outer + inset * (outer.mean(axis=0) - outer)), _GLASS, CAR, True)


def _wheels(model: Model, half: float, rear: float, front: float, radius: float = 0.32) -> None:
    angles = np.linspace(0, 2 * np.pi, 10, endpoint=False)
    for side in (-1, 1):
        for y in (rear + 0.8, front - 0.8):
            for size, colour in ((radius, _TYRE), (0.6 * radius, (120.0, 122.0, 126.0))):
                x = side * (half + 0.02)
                circle = [
                    (x, y + side * size * np.cos(a), radius + size * np.sin(a))
                    for a in angles[::-side]
                ]
                model.detail(circle, colour, CAR)


def _lights(
    model: Model, half: float, rear: float, front: float, waist: float, braking: bool
) -> None:
    red: Colour = (250, 40, 30) if braking else (140, 22, 22)
    for side in (-1, 1):
        x0, x1 = sorted((side * (half - 0.05), side * (half - 0.32)))
        for y, colour, z0 in (
            (rear - 0.02, red, waist - 0.3),
            (front + 0.02, (226.0, 226.0, 214.0), waist - 0.32),
        ):
            box = [(x0, y, z0 + 0.2), (x1, y, z0 + 0.2), (x1, y, z0), (x0, y, z0)]
            model.detail(box if y < 0 else box[::-1], colour, CAR)
    for y, colour in ((rear - 0.02, (214.0, 190.0, 60.0)), (front + 0.02, (220.0, 220.0, 215.0))):
        plate = [(-0.26, y, 0.58), (0.26, y, 0.58), (0.26, y, 0.46), (-0.26, y, 0.46)]
        model.detail(plate if y < 0 else plate[::-1], colour, CAR)


def _upright(model: Model, radius: float, z0: float, z1: float, colour: Colour, label: int) -> None:
    """A round post, as two crossed blades so that it is as wide from every side."""
    for dx, dy in ((radius, 0.0), (0.0, radius)):
        blade = [(-dx, -dy, z1), (dx, dy, z1), (dx, dy, z0), (-dx, -dy, z0)]
        model.face(blade, colour, label)


def lamp_post(rng: np.random.Generator, side: int) -> Model:
    """A lamp whose arm reaches over the road; ``side`` is -1 left of it and 1 right of it."""
    model, height = Model(), float(rng.uniform(5.0, 9.0))
    grey = float(rng.uniform(50, 150))
    colour = (grey, grey * 1.02, grey)
    _upright(model, 0.075, 0, height, colour, POLE)
    _upright(model, 0.14, 0, 1.1, colour, POLE)
    reach = -side * float(rng.uniform(0.6, 2.0))
    arm = [
        (0.0, 0.0, height),
        (reach, 0.0, height + 0.25),
        (reach, 0.0, height + 0.13),
        (0.0, 0.0, height - 0.14),
    ]
    model.face(arm, colour, POLE)
    head = [
        (reach, 0.0, height + 0.3),
        (reach * 1.35, 0.0, height + 0.34),
        (reach * 1.35, 0.0, height + 0.12),
        (reach, 0.0, height + 0.1),
    ]
    model.face(head, (190.0, 190.0, 180.0), POLE)
    return model


def bollard(rng: np.random.Generator) -> Model:
    """A waist-high post."""
    model = Model()
    colour = (40.0, 40.0, 44.0) if rng.random() < 0.6 else (190.0, 186.0, 170.0)
    _upright(model, 0.09, 0, 1.0, colour, POLE)
    return model


_BOARDS: tuple[tuple[Colour, Colour], ...] = (
    ((200, 30, 34), (236, 236, 232)),
    ((30, 70, 160), (236, 236, 236)),
    ((20, 90, 56), (230, 230, 220)),
    ((236, 236, 230), (30, 30, 34)),
    ((224, 180, 30), (30, 30, 30)),
)


def traffic_sign(rng: np.random.Generator) -> Model:
    """A disc, triangle or board with its border, facing the traffic, on one post or two."""
    model = Model()
    outer, inner = _BOARDS[int(rng.integers(len(_BOARDS)))]
    kind = int(rng.integers(4))
    size, foot = float(rng.uniform(0.35, 0.55)), float(rng.uniform(1.9, 2.6))
    if kind == 3:  # a direction board
        size = float(rng.uniform(0.7, 1.3))
    for x in (-0.6 * size, 0.6 * size) if kind == 3 else (0.0,):
        points_before = len(model.points)
        _upright(model, 0.05, 0, foot + size, (120.0, 122.0, 122.0), POLE)
        model.points[points_before:] = [
            (px + x, py, pz) for px, py, pz in model.points[points_before:]
        ]
    corners = {0: 12, 1: 3, 2: 4, 3: 4}[kind]
    turn = {0: 0.0, 1: np.pi / 2, 2: np.pi / 4, 3: np.pi / 4}[kind]
    angles = turn + 2 * np.pi * np.arange(corners) / corners
    wide = 1.5 if kind == 3 else 1.0
    for share, colour in ((1.0, outer), (0.72, inner)):
        outline = [
            (share * wide * size * np.cos(a), -0.07, foot + size + share * size * np.sin(a))
            for a in angles
        ]
        model.face(outline, colour, SIGN)
    if kind == 3:  # two lines of words
        for z in (foot + 0.85 * size, foot + 1.25 * size):
            words = [
                (-0.6 * size, -0.08, z + 0.08),
                (0.5 * size, -0.08, z + 0.08),
                (0.5 * size, -0.08, z - 0.08),
                (-0.6 * size, -0.08, z - 0.08),
            ]
            model.face(words, outer, SIGN)
    return model


def traffic_light(rng: np.random.Generator) -> Model:
    """Three lamps in a black case on a post; CamVid's merge counts the case as SignSymbol."""
    model = Model()
    _upright(model, 0.07, 0, 3.3, (60.0, 62.0, 64.0), POLE)
    case = [(-0.2, -0.08, 3.4), (0.2, -0.08, 3.4), (0.2, -0.08, 2.3), (-0.2, -0.08, 2.3)]
    model.face(case, (26.0, 28.0, 28.0), SIGN)
    lit = int(rng.integers(3))
    for n, colour in enumerate(((240.0, 40.0, 30.0), (240.0, 170.0, 30.0), (40.0, 220.0, 120.0))):
        z = 3.2 - 0.34 * n
        lamp = [(0.11 * np.cos(a), -0.1, z + 0.11 * np.sin(a)) for a in np.linspace(0, 5.5, 8)]
        model.face(lamp, colour if n == lit else shade(colour, 0.2), SIGN)
    return model
