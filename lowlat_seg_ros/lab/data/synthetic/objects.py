"""Solid things beside and on the road: cars, posts, signs and houses, as meshes and walls."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from lowlat_seg_ros.lab.data.synthetic import pictures
from lowlat_seg_ros.lab.data.synthetic.canvas import Colour, Face, Mesh, Paintable, Texture, Wall
from lowlat_seg_ros.lab.data.synthetic.street import Light, Line
from lowlat_seg_ros.labels import CAMVID

BUILDING, POLE, SIGN, CAR = (CAMVID.index(n) for n in ("Building", "Pole", "SignSymbol", "Car"))

Points = list[tuple[float, float, float]]


class Model:
    """A mesh in the making, in its own axes: x right, y forward, z up, metres."""

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

    def placed(self, x: float, y: float, heading: float) -> Mesh:
        """The mesh standing at (x, y) with its y axis along ``heading``."""
        local = np.asarray(self.points)
        sin, cos = np.sin(heading), np.cos(heading)
        turn = np.array([[cos, -sin, 0.0], [sin, cos, 0.0], [0.0, 0.0, 1.0]])
        return Mesh(local @ turn + (x, y, 0.0), tuple(self.faces))

    def on_road(self, line: Line, s: float, d: float, turn: float) -> Mesh:
        """The mesh standing at (s, d) of ``line``, turned by ``turn`` rad against the road."""
        x, y, _ = line.at(s, d)
        return self.placed(float(x), float(y), line.frame(s)[2] + turn)


def points(rows: np.ndarray) -> Points:
    """The rows of (N, 3) as tuples."""
    return [(x, y, z) for x, y, z in rows.tolist()]


def shade(colour: Colour, light: float) -> Colour:
    """``colour`` times ``light``, within what can be shown."""
    r, g, b = (min(v * light, 255.0) for v in colour)
    return (r, g, b)


def ring(half_width: float, rear: float, front: float, z: float) -> Points:
    """The four corners of a horizontal rectangle, from left rear on."""
    left, right = -half_width, half_width
    return [(left, rear, z), (right, rear, z), (right, front, z), (left, front, z)]


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
    (196, 198, 202), (30, 32, 36), (130, 134, 140), (150, 24, 30), (28, 44, 90), (216, 216, 210),
    (70, 76, 84), (40, 76, 62), (172, 160, 130), (60, 110, 160)
)  # fmt: skip
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
                rim = [(side * size * np.cos(a), size * np.sin(a)) for a in angles[::-side]]
                model.detail([(x, y + dy, radius + dz) for dy, dz in rim], colour, CAR)


def _lights(
    model: Model, half: float, rear: float, front: float, waist: float, braking: bool
) -> None:
    red: Colour = (250, 40, 30) if braking else (140, 22, 22)
    for side in (-1, 1):
        x0, x1 = sorted((side * (half - 0.05), side * (half - 0.32)))
        white = (226.0, 226.0, 214.0)
        for y, colour, z0 in ((rear - 0.02, red, waist - 0.3), (front + 0.02, white, waist - 0.32)):
            box = [(x0, y, z0 + 0.2), (x1, y, z0 + 0.2), (x1, y, z0), (x0, y, z0)]
            model.detail(box if y < 0 else box[::-1], colour, CAR)
    for y, colour in ((rear - 0.02, (214.0, 190.0, 60.0)), (front + 0.02, (220.0, 220.0, 215.0))):
        plate = [(-0.26, y, 0.58), (0.26, y, 0.58), (0.26, y, 0.46), (-0.26, y, 0.46)]
        model.detail(plate if y < 0 else plate[::-1], colour, CAR)


def _post(
    model: Model, radius: float, z0: float, z1: float, colour: Colour, x: float = 0.0
) -> None:
    """A round post at ``x``, as two crossed blades so that it is as wide from every side."""
    for dx, dy in ((radius, 0.0), (0.0, radius)):
        blade = [(-dx, -dy, z1), (dx, dy, z1), (dx, dy, z0), (-dx, -dy, z0)]
        model.face([(px + x, py, pz) for px, py, pz in blade], colour, POLE)


def lamp_post(rng: np.random.Generator, side: int) -> Model:
    """A lamp whose arm reaches over the road; ``side`` is -1 left of it and 1 right of it."""
    model, height = Model(), float(rng.uniform(5.0, 9.0))
    grey = float(rng.uniform(50, 150))
    colour = (grey, grey * 1.02, grey)
    _post(model, 0.075, 0, height, colour)
    _post(model, 0.14, 0, 1.1, colour)
    reach = -side * float(rng.uniform(0.6, 2.0))
    arm = [(0.0, 0.0), (reach, 0.25), (reach, 0.13), (0.0, -0.14)]
    model.face([(x, 0.0, height + z) for x, z in arm], colour, POLE)
    tip = reach * 1.35
    head = [(reach, 0.3), (tip, 0.34), (tip, 0.12), (reach, 0.1)]
    model.face([(x, 0.0, height + z) for x, z in head], (190.0, 190.0, 180.0), POLE)
    return model


def bollard(rng: np.random.Generator) -> Model:
    """A waist-high post."""
    model = Model()
    colour = (40.0, 40.0, 44.0) if rng.random() < 0.6 else (190.0, 186.0, 170.0)
    _post(model, 0.09, 0, 1.0, colour)
    return model


_BOARDS: tuple[tuple[Colour, Colour], ...] = (
    ((200, 30, 34), (236, 236, 232)), ((30, 70, 160), (236, 236, 236)),
    ((20, 90, 56), (230, 230, 220)), ((236, 236, 230), (30, 30, 34)),
    ((224, 180, 30), (30, 30, 30))
)  # fmt: skip


def traffic_sign(rng: np.random.Generator) -> Model:
    """A disc, triangle or board with its border, facing the traffic, on one post or two."""
    model = Model()
    outer, inner = _BOARDS[int(rng.integers(len(_BOARDS)))]
    kind = int(rng.integers(4))
    size, foot = float(rng.uniform(0.35, 0.55)), float(rng.uniform(1.9, 2.6))
    if kind == 3:  # a direction board
        size = float(rng.uniform(0.7, 1.3))
    for x in (-0.6 * size, 0.6 * size) if kind == 3 else (0.0,):
        _post(model, 0.05, 0, foot + size, (120.0, 122.0, 122.0), x)
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
            x0, x1, y, top, bottom = -0.6 * size, 0.5 * size, -0.08, z + 0.08, z - 0.08
            words = [(x0, y, top), (x1, y, top), (x1, y, bottom), (x0, y, bottom)]
            model.face(words, outer, SIGN)
    return model


def traffic_light(rng: np.random.Generator) -> Model:
    """Three lamps in a black case on a post; CamVid's merge counts the case as SignSymbol."""
    model = Model()
    _post(model, 0.07, 0, 3.3, (60.0, 62.0, 64.0))
    case = [(-0.2, -0.08, 3.4), (0.2, -0.08, 3.4), (0.2, -0.08, 2.3), (-0.2, -0.08, 2.3)]
    model.face(case, (26.0, 28.0, 28.0), SIGN)
    lit = int(rng.integers(3))
    for n, colour in enumerate(((240.0, 40.0, 30.0), (240.0, 170.0, 30.0), (40.0, 220.0, 120.0))):
        z = 3.2 - 0.34 * n
        lamp = [(0.11 * np.cos(a), -0.1, z + 0.11 * np.sin(a)) for a in np.linspace(0, 5.5, 8)]
        model.face(lamp, colour if n == lit else shade(colour, 0.2), SIGN)
    return model


_ROOFS = ((84, 80, 84), (120, 74, 58), (70, 72, 80), (104, 92, 80))
_CHIMNEY = np.array([(-0.5, -0.5, 0), (0.5, -0.5, 0), (0.5, 0.5, 0), (-0.5, 0.5, 0)], float)


def as_colour(values: np.ndarray) -> Colour:
    """Three numbers as a colour, at most 255."""
    r, g, b = (float(min(v, 255.0)) for v in values)
    return (r, g, b)


def wall_between(
    start: np.ndarray, stop: np.ndarray, height: float, texture: Texture, light: Colour, label: int
) -> Wall:
    """A wall between two points (3,) on the ground."""
    top = np.array([0.0, 0.0, height])
    return Wall(start + top, stop - start, height, texture, light, label)


def house(
    rng: np.random.Generator, light: Light, side: int, corners: np.ndarray, height: float
) -> list[Paintable]:
    """A house on ``corners`` (4, 3): its front's near and far end, its back's far and near end."""
    front = int(rng.integers(pictures.FACADES))
    end = front if rng.random() < 0.3 else int(rng.integers(pictures.FACADES))
    tint = rng.uniform(0.8, 1.15) * rng.uniform(0.95, 1.05, 3)
    shaded = as_colour(0.9 * np.asarray(light.ambient) * tint)
    lit = as_colour(np.asarray(light.on(side)) * tint)
    near, picture = corners[0], pictures.facade
    walls = [
        wall_between(near, corners[3], height, picture(end), shaded, BUILDING),
        wall_between(near, corners[1], height, picture(front), lit, BUILDING),
    ]
    return [*_roof(rng, light, corners, height), *walls]


def _roof(rng: np.random.Generator, light: Light, corners: np.ndarray, height: float) -> list[Mesh]:
    """A pitched roof with its ridge along the street, or none on a flat one."""
    if rng.random() < 0.3:
        return []
    model, ambient = Model(), np.asarray(light.ambient)
    eaves = corners + np.array([0, 0, height])
    rise = np.array([0, 0, rng.uniform(1.5, 3.5)])
    near, far = (eaves[0] + eaves[3]) / 2 + rise, (eaves[1] + eaves[2]) / 2 + rise
    slate = as_colour(np.array(_ROOFS[int(rng.integers(len(_ROOFS)))]) * ambient)
    gable = as_colour(np.array((130, 112, 96)) * ambient)
    if rng.random() < 0.6:
        foot = near * 0.3 + far * 0.7 + _CHIMNEY
        top = foot + np.array([0, 0, 1.5])
        model.box(points(foot), points(top), gable, BUILDING)
    model.face(points(np.array([eaves[0], near, eaves[3]])), gable, BUILDING)
    model.face(points(np.array([eaves[0], eaves[1], far, near])), slate, BUILDING)
    return [model.placed(0.0, 0.0, 0.0)]
