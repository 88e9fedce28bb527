"""Pictures, drawn once per process by number: of walls, ground and sky, trees and people."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np

from lowlat_seg_ros.lab.data.synthetic.canvas import Board, Colour, Texture

#: How many different pictures of each kind there are; drives tint them further.
FACADES, HEDGES, FENCES, SKIES = 48, 6, 9, 12
LEAFY, BARE, PEOPLE, CYCLISTS = 14, 12, 24, 12
#: Pictures of one step of a walk, or of one turn of the pedals.
PHASES = 6
#: Pixels and pixels a metre of the ground's noise, which repeats.
GROUND_SIZE, GROUND_SCALE = 512, 16.0

_WALLS = (
    (150, 84, 62), (168, 128, 84), (186, 160, 112), (205, 196, 180), (120, 74, 60),
    (224, 218, 206), (140, 134, 126), (96, 88, 82), (176, 150, 130), (116, 112, 116),
    (190, 175, 140), (70, 60, 58)
)  # fmt: skip
_FASCIAS = (
    (30, 50, 110), (20, 20, 24), (120, 20, 24), (20, 80, 50), (200, 190, 170), (150, 110, 30),
    (60, 60, 66), (190, 60, 30)
)  # fmt: skip


def noise(rng: np.random.Generator, shape: tuple[int, int], octaves: int, base: int) -> np.ndarray:
    """Smooth noise float32 of ``shape`` in about [-1, 1]; the coarsest grid has ``base`` cells."""
    out = np.zeros(shape, np.float32)
    for octave in range(octaves):
        cells = base << octave
        grid = rng.standard_normal((cells, cells)).astype(np.float32)
        size = (shape[1], shape[0])
        out += cv2.resize(grid, size, interpolation=cv2.INTER_CUBIC) * 0.5**octave
    return out / 2


def _finish(picture: np.ndarray, rng: np.random.Generator, rough: float) -> np.ndarray:
    stains = 10 * noise(rng, picture.shape[:2], 4, 3) + rng.normal(0, rough, picture.shape[:2])
    return np.clip(picture + stains[..., None], 0, 255).astype(np.uint8)


@lru_cache(maxsize=FACADES)
def facade(number: int) -> Texture:
    """A house front of three floors, the lowest sometimes a shop."""
    rng = np.random.default_rng([1, number])
    rows, columns = 288, 384
    picture = np.empty((rows, columns, 3), np.float32)
    picture[:] = np.array(_WALLS[number % len(_WALLS)]) + rng.normal(0, 8, 3)
    if rng.random() < 0.6:  # courses of bricks or stones
        course = int(rng.integers(4, 14))
        picture[::course] *= 0.9
        picture[:, :: 2 * course] *= 0.97
    floors = int(rng.integers(2, 5))
    shop = rng.random() < 0.45
    floor = rows / floors
    for n in range(floors):
        if shop and n == floors - 1:
            _shop(picture, int(n * floor), rng)
        else:
            _windows(picture, n * floor, floor, rng.spawn(1)[0], number)
        if rng.random() < 0.5:  # a string course between floors
            top = int(n * floor)
            cv2.rectangle(picture, (0, top), (columns, top + 3), _grey(rng), -1)
    return Texture(_finish(picture, rng, 5.0))


def _grey(rng: np.random.Generator) -> Colour:
    value = float(rng.uniform(90, 215))
    return (value, value * 0.98, value * 0.93)


def _glass(rng: np.random.Generator) -> Colour:
    value = float(rng.choice([28, 45, 65, 110])) + float(rng.normal(0, 6))
    return (value * 0.92, value, value * 1.08)


def _windows(
    picture: np.ndarray, top: float, floor: float, rng: np.random.Generator, style: int
) -> None:
    """One floor's windows; their number and size follow from the house's style."""
    shape = np.random.default_rng([2, style])
    count = int(shape.integers(2, 7))
    wide, high = shape.uniform(0.35, 0.8), shape.uniform(0.45, 0.75)
    frame, bars = _grey(shape), bool(shape.random() < 0.6)
    pitch = picture.shape[1] / count
    y0, y1 = int(top + floor * (1 - high) / 2), int(top + floor * (1 + high) / 2)
    for k in range(count):
        x0, x1 = int(pitch * (k + (1 - wide) / 2)), int(pitch * (k + (1 + wide) / 2))
        cv2.rectangle(picture, (x0 - 3, y0 - 3), (x1 + 3, y1 + 3), frame, -1)
        cv2.rectangle(picture, (x0, y0), (x1, y1), _glass(rng), -1)
        cv2.rectangle(picture, (x0, y0), (x1, y0 + 4), (20, 20, 22), -1)  # the lintel's shadow
        if bars:
            cv2.line(picture, ((x0 + x1) // 2, y0), ((x0 + x1) // 2, y1), frame, 2)
            cv2.line(picture, (x0, (y0 + y1) // 2), (x1, (y0 + y1) // 2), frame, 2)
        cv2.rectangle(picture, (x0 - 5, y1 + 3), (x1 + 5, y1 + 7), frame, -1)


def _shop(picture: np.ndarray, top: int, rng: np.random.Generator) -> None:
    """A row of shop fronts: name board, wide panes, goods behind them."""
    rows, columns = picture.shape[:2]
    left = 0
    while left < columns:
        right = min(left + int(rng.integers(90, 200)), columns)
        colour = tuple(float(v) for v in _FASCIAS[int(rng.integers(len(_FASCIAS)))])
        cv2.rectangle(picture, (left, top), (right, rows), colour, -1)
        board = top + int((rows - top) * 0.22)
        for x in range(left + 14, right - 14, 9):  # the letters of its name
            if rng.random() < 0.7:
                cv2.rectangle(picture, (x, top + 7), (x + 5, board - 6), (225, 220, 200), -1)
        for x in range(left + 5, right - 20, 44):
            pane = (x, board), (min(x + 38, right - 5), rows - 8)
            cv2.rectangle(picture, *pane, _glass(rng), -1)
            for _ in range(5):
                gx, gy = int(rng.integers(x, x + 30)), int(rng.integers(board + 8, rows - 16))
                goods = tuple(float(v) for v in rng.uniform(30, 200, 3))
                cv2.rectangle(picture, (gx, gy), (min(gx + 8, right - 5), gy + 12), goods, -1)
        left = right


@lru_cache(maxsize=HEDGES)
def hedge(number: int) -> Texture:
    """Leaves, for hedges and banks of shrubs."""
    rng = np.random.default_rng([3, number])
    greens = (52, 70, 34), (66, 74, 44), (40, 56, 34), (84, 80, 52), (60, 84, 40), (70, 62, 44)
    base = np.array(greens[number])
    depth = noise(rng, (96, 256), 5, 8) * 0.5 + rng.normal(0, 0.18, (96, 256))
    return Texture(np.clip(base * (1 + depth[..., None]), 0, 255).astype(np.uint8))


@lru_cache(maxsize=FENCES)
def fence(number: int) -> Texture:
    """Railings before dark shrubs, wooden boards, or metal panels, about 4 m by 1.2 m."""
    rng = np.random.default_rng([4, number])
    picture = np.empty((96, 320, 3), np.float32)
    if number % 3 == 0:
        picture[:] = (66, 70, 56)
        bar = (26, 28, 30) if number % 2 else (150, 152, 150)
        for x in range(4, 320, 12):
            cv2.line(picture, (x, 4), (x, 96), bar, 3)
        for y in (6, 86):
            cv2.line(picture, (0, y), (320, y), bar, 4)
    elif number % 3 == 1:
        picture[:] = np.array((112, 86, 58)) + rng.normal(0, 10, 3)
        for x in range(0, 320, 20):
            picture[:, x : x + 20] *= rng.uniform(0.85, 1.1)
            picture[:, x : x + 2] *= 0.6
    else:
        picture[:] = np.array((128, 132, 136)) + rng.normal(0, 14, 3)
        for x in range(0, 320, 80):
            cv2.line(picture, (x, 0), (x, 96), (80, 84, 88), 5)
        picture[::6] *= 0.85
    return Texture(_finish(picture, rng, 6.0))


@lru_cache(maxsize=SKIES)
def clouds(number: int) -> np.ndarray:
    """Cloud cover float32 (128, 1024) in [0, 1] by azimuth."""
    rng = np.random.default_rng([5, number])
    cover = noise(rng, (128, 1024), 6, 5) * rng.uniform(0.6, 1.4) + rng.uniform(-0.6, 0.8)
    return np.clip(cover, 0, 1)


@lru_cache(maxsize=1)
def ground_noise() -> np.ndarray:
    """Asphalt's grain uint8 (512, 512) about 128; it repeats without a seam."""
    rng = np.random.default_rng(6)
    spectrum = np.fft.rfft2(rng.standard_normal((GROUND_SIZE, GROUND_SIZE)))
    fy, fx = np.fft.fftfreq(GROUND_SIZE)[:, None], np.fft.rfftfreq(GROUND_SIZE)[None]
    grain = np.fft.irfft2(spectrum / (0.01 + np.hypot(fy, fx)) ** 0.8)
    grain = (grain - grain.mean()) / grain.std()
    return np.clip(128 + 36 * grain, 0, 255).astype(np.uint8)


@lru_cache(maxsize=4)
def film_grain(height: int, width: int) -> np.ndarray:
    """Normal noise int8 (2 height, 2 width, 3) of standard deviation 16."""
    rng = np.random.default_rng(7)
    grain = 16 * rng.standard_normal((2 * height, 2 * width, 3), dtype=np.float32)
    return np.clip(grain, -127, 127).astype(np.int8)


_CLOTHES = (
    (30, 32, 40), (60, 62, 70), (90, 30, 34), (36, 54, 96), (150, 140, 120), (40, 70, 52),
    (180, 176, 170), (120, 84, 50), (24, 24, 26), (190, 160, 40)
)  # fmt: skip
_SKIN = ((224, 180, 150), (196, 146, 112), (120, 84, 62))


@dataclass(frozen=True)
class Sprite:
    """``picture`` RGBA and ``cover``, 255 where the label goes; ``aspect`` is width over height."""

    picture: Texture
    cover: Texture
    aspect: float

    def standing(
        self, foot: np.ndarray, height: float, light: Colour, label: int, mirrored: bool
    ) -> Board:
        """The sprite on ``foot`` (3,), ``height`` metres high."""
        width = height * self.aspect
        return Board(foot, width, height, self.picture, self.cover, light, label, mirrored)


def _sprite(colour: np.ndarray, alpha: np.ndarray, cover: np.ndarray) -> Sprite:
    """A sprite without the empty margins; the foot stays on the lowest row."""
    rows, columns = np.flatnonzero(alpha.any(axis=1)), np.flatnonzero(alpha.any(axis=0))
    part = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    colour, alpha, cover = colour[part], alpha[part], np.ascontiguousarray(cover[part])
    picture = np.dstack([np.clip(colour, 0, 255).astype(np.uint8), alpha])
    return Sprite(Texture(picture), Texture(cover), alpha.shape[1] / alpha.shape[0])


@lru_cache(maxsize=LEAFY)
def leafy_tree(number: int) -> Sprite:
    """A trunk under a crown of leaves; every third one is a conifer or a shrub."""
    rng = np.random.default_rng([10, number])
    rows, columns = 256, 208
    alpha = np.zeros((rows, columns), np.uint8)
    middle, crown = columns // 2, int(rng.integers(120, 200))
    for _ in range(60):
        u, v = rng.normal(0, 0.3), rng.uniform(0.05, 0.95)
        spread = v if number % 3 == 0 else np.sin(np.pi * v) ** 0.5
        centre = int(middle + u * columns * 0.75 * spread), int(8 + v * crown)
        cv2.circle(alpha, centre, int(rng.integers(7, 22)), 255, -1)
    alpha[noise(rng, alpha.shape, 5, 16) < -0.75] = 0
    colour = np.empty((rows, columns, 3), np.float32)
    greens = (58, 74, 36), (74, 84, 44), (46, 62, 34), (92, 96, 52), (96, 78, 46)
    green = np.array(greens[number % 5])
    light = 0.95 + 0.35 * noise(rng, alpha.shape, 6, 5) + rng.normal(0, 0.14, alpha.shape)
    light *= np.linspace(1.2, 0.75, rows)[:, None]
    colour[:] = green * light[..., None]
    trunk = np.zeros_like(alpha)
    width = int(rng.integers(3, 8))
    cv2.line(trunk, (middle, crown // 2), (middle, rows), 255, 2 * width)
    visible = (trunk > 0) & (alpha == 0)
    colour[visible] = (62, 52, 42) * rng.uniform(0.7, 1.2, (int(visible.sum()), 1))
    alpha |= trunk
    return _sprite(colour, alpha, alpha)


@lru_cache(maxsize=BARE)
def bare_tree(number: int) -> Sprite:
    """A tree in winter: the picture shows the branches, the label covers the crown they span."""
    rng = np.random.default_rng([11, number])
    rows, columns = 384, 512
    alpha = np.zeros((rows, columns), np.uint8)
    stack = [(columns / 2, float(rows), -np.pi / 2, rng.uniform(60, 95), rng.uniform(7, 11), 0)]
    while stack:
        x, y, angle, length, thick, depth = stack.pop()
        x1, y1 = x + length * np.cos(angle), y + length * np.sin(angle)
        ends, strength = ((int(x), int(y)), (int(x1), int(y1))), 255 if depth < 5 else 200
        cv2.line(alpha, *ends, strength, max(int(thick), 1), cv2.LINE_AA)
        if depth < 8:
            for _ in range(3 if rng.random() < 0.35 else 2):
                turn, shrink = rng.normal(0, 0.5), rng.uniform(0.66, 0.88)
                stack.append((x1, y1, angle + turn, length * shrink, thick * 0.62, depth + 1))
    colour = np.empty((rows, columns, 3), np.float32)
    colour[:] = np.array(((58, 50, 42), (76, 66, 52), (48, 44, 42))[number % 3])
    colour *= 1 + 0.25 * noise(rng, alpha.shape, 5, 8)[..., None]
    branches = (alpha > 90).astype(np.uint8) * 255
    cover = cv2.morphologyEx(branches, cv2.MORPH_CLOSE, np.ones((11, 11)))
    return _sprite(colour, alpha, cover)


@lru_cache(maxsize=PEOPLE * PHASES)
def walker(number: int, phase: int) -> Sprite:
    """A person on foot at one ``phase`` of the step."""
    rng = np.random.default_rng([12, number])
    coat, legs = (_CLOTHES[i] for i in rng.integers(len(_CLOTHES), size=2))
    skin, hair = _SKIN[int(rng.integers(3))], _CLOTHES[int(rng.integers(3))]
    bag, skirt = rng.random() < 0.4, rng.random() < 0.25
    figure = _Figure(192, 96)
    swing = np.sin(2 * np.pi * phase / PHASES) * 20
    for side in (-1, 1):
        figure.limb((48 + 4 * side, 104), (48 + 5 * side + side * swing, 188), legs, 12)
    figure.limb((48, 44), (48, 100), coat, 32)
    if skirt:
        figure.limb((48, 100), (48, 128), coat, 34)
    for side in (-1, 1):
        figure.limb((48 + 15 * side, 44), (48 + 19 * side - side * swing * 0.5, 96), coat, 9)
    if bag:
        figure.limb((68, 92), (70, 112), _CLOTHES[int(rng.integers(10))], 14)
    figure.disc((48, 18), 12, skin)
    figure.disc((48, 12), 11, hair)
    return figure.sprite(rng)


@lru_cache(maxsize=CYCLISTS * PHASES)
def cyclist(number: int, phase: int) -> Sprite:
    """A person on a bicycle, seen from behind (even numbers) or from the side."""
    rng = np.random.default_rng([13, number])
    coat, legs = (_CLOTHES[i] for i in rng.integers(len(_CLOTHES), size=2))
    turn = 2 * np.pi * phase / PHASES
    if number % 2 == 0:
        figure, x = _Figure(192, 80), 40
        figure.limb((x, 120), (x, 188), (18, 18, 20), 6)
        for side in (-1, 1):
            foot = 158 + side * 14 * np.sin(turn)
            figure.limb((x + 7 * side, 104), (x + 9 * side, foot), legs, 11)
            figure.limb((x + 13 * side, 50), (x + 20 * side, 86), coat, 9)
        figure.limb((x - 24, 88), (x + 24, 88), (30, 30, 34), 4)
        figure.limb((x, 46), (x, 100), coat, 30)
        figure.disc((x, 20), 12, _CLOTHES[int(rng.integers(10))])
        return figure.sprite(rng)
    figure = _Figure(192, 200)
    for x in (42, 158):
        figure.disc((x, 150), 36, (20, 20, 22), 5)  # a ring
    frame = _CLOTHES[int(rng.integers(10))]
    for a, b in (((42, 150), (80, 100)), ((80, 100), (142, 96)), ((92, 150), (142, 96)),
                 ((142, 86), (158, 150)), ((42, 150), (92, 150))):  # fmt: skip
        figure.limb(a, b, frame, 5)
    pedal = (92 + 14 * np.cos(turn), 150 + 14 * np.sin(turn))
    figure.limb((80, 94), (112, 122), legs, 13)
    figure.limb((112, 122), pedal, legs, 11)
    figure.limb((80, 90), (114, 46), coat, 26)
    figure.limb((114, 50), (142, 84), coat, 9)
    figure.disc((122, 22), 13, _SKIN[int(rng.integers(3))])
    return figure.sprite(rng)


class _Figure:
    """A picture in the making, of thick lines and discs."""

    def __init__(self, rows: int, columns: int) -> None:
        self.colour = np.full((rows, columns, 3), 50, np.uint8)
        self.alpha = np.zeros((rows, columns), np.uint8)

    def limb(self, a: tuple, b: tuple, colour: tuple, thick: int) -> None:
        ends = tuple(int(v) for v in a), tuple(int(v) for v in b)
        cv2.line(self.colour, *ends, colour, thick)
        cv2.line(self.alpha, *ends, 255, thick)

    def disc(self, centre: tuple, radius: int, colour: tuple, thick: int = -1) -> None:
        cv2.circle(self.colour, centre, radius, colour, thick)
        cv2.circle(self.alpha, centre, radius, 255, thick)

    def sprite(self, rng: np.random.Generator) -> Sprite:
        folds = 1 + 0.3 * noise(rng, self.alpha.shape, 4, 4)
        filled = cv2.morphologyEx(self.alpha, cv2.MORPH_CLOSE, np.ones((5, 5)))
        return _sprite(self.colour * folds[..., None], self.alpha, filled)
