"""Pictures that stand upright in the scene: trees, people on foot and on bicycles."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np

from lowlat_seg_ros.lab.data.synthetic.canvas import Texture
from lowlat_seg_ros.lab.data.synthetic.textures import noise

LEAFY, BARE, PEOPLE, CYCLISTS = 14, 12, 24, 12
#: Pictures of a step, repeated as people walk and pedal.
PHASES = 6

_CLOTHES = (
    (30, 32, 40),
    (60, 62, 70),
    (90, 30, 34),
    (36, 54, 96),
    (150, 140, 120),
    (40, 70, 52),
    (180, 176, 170),
    (120, 84, 50),
    (24, 24, 26),
    (190, 160, 40),
)
_SKIN = ((224, 180, 150), (196, 146, 112), (120, 84, 62))


@dataclass(frozen=True)
class Sprite:
    """``picture`` RGBA and ``cover``, 255 where the label goes; ``aspect`` is width over height."""

    picture: Texture
    cover: Texture
    aspect: float


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
    green = np.array(
        [(58, 74, 36), (74, 84, 44), (46, 62, 34), (92, 96, 52), (96, 78, 46)][number % 5]
    )
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
        strength = 255 if depth < 5 else 200
        cv2.line(
            alpha, (int(x), int(y)), (int(x1), int(y1)), strength, max(int(thick), 1), cv2.LINE_AA
        )
        if depth < 8:
            for _ in range(3 if rng.random() < 0.35 else 2):
                turn, shrink = rng.normal(0, 0.5), rng.uniform(0.66, 0.88)
                stack.append((x1, y1, angle + turn, length * shrink, thick * 0.62, depth + 1))
    colour = np.empty((rows, columns, 3), np.float32)
    colour[:] = np.array(((58, 50, 42), (76, 66, 52), (48, 44, 42))[number % 3])
    colour *= 1 + 0.25 * noise(rng, alpha.shape, 5, 8)[..., None]
    cover = cv2.morphologyEx(
        (alpha > 90).astype(np.uint8) * 255, cv2.MORPH_CLOSE, np.ones((11, 11))
    )
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
        figure, x = _Figure(192, 80), 40.0
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
        figure.ring((x, 150), 36, (20, 20, 22), 5)
    frame = _CLOTHES[int(rng.integers(10))]
    for a, b in (
        ((42, 150), (80, 100)),
        ((80, 100), (142, 96)),
        ((92, 150), (142, 96)),
        ((142, 86), (158, 150)),
        ((42, 150), (92, 150)),
    ):
        figure.limb(a, b, frame, 5)
    pedal = (92 + 14 * np.cos(turn), 150 + 14 * np.sin(turn))
    figure.limb((80, 94), (112, 122), legs, 13)
    figure.limb((112, 122), pedal, legs, 11)
    figure.limb((80, 90), (114, 46), coat, 26)
    figure.limb((114, 50), (142, 84), coat, 9)
    figure.disc((122, 22), 13, _SKIN[int(rng.integers(3))])
    return figure.sprite(rng)


class _Figure:
    """A picture under way, made of thick lines and discs."""

    def __init__(self, rows: int, columns: int) -> None:
        self.colour = np.full((rows, columns, 3), 50, np.uint8)
        self.alpha = np.zeros((rows, columns), np.uint8)

    def limb(self, a: tuple, b: tuple, colour: tuple, thick: int) -> None:
        ends = tuple(int(v) for v in a), tuple(int(v) for v in b)
        cv2.line(self.colour, *ends, colour, thick)
        cv2.line(self.alpha, *ends, 255, thick)

    def disc(self, centre: tuple, radius: int, colour: tuple) -> None:
        at = tuple(int(v) for v in centre)
        cv2.circle(self.colour, at, radius, colour, -1)
        cv2.circle(self.alpha, at, radius, 255, -1)

    def ring(self, centre: tuple, radius: int, colour: tuple, thick: int) -> None:
        cv2.circle(self.colour, centre, radius, colour, thick)
        cv2.circle(self.alpha, centre, radius, 255, thick)

    def sprite(self, rng: np.random.Generator) -> Sprite:
        folds = 1 + 0.3 * noise(rng, self.alpha.shape, 4, 4)
        filled = cv2.morphologyEx(self.alpha, cv2.MORPH_CLOSE, np.ones((5, 5)))
        return _sprite(self.colour * folds[..., None], self.alpha, filled)
