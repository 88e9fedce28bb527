"""Pictures that the walls, the ground and the sky carry; drawn once per process, by number."""

from __future__ import annotations

from functools import lru_cache

import cv2
import numpy as np

from lowlat_seg_ros.lab.data.synthetic.canvas import Texture

#: How many different pictures of each kind there are; drives tint them further.
FACADES, HEDGES, FENCES, SKIES = 48, 6, 9, 12
#: Metres that a facade picture shows; a longer front repeats it.
FACADE_METRES = (12.0, 9.0)
#: Pixels and pixels a metre of the ground's noise, which repeats.
GROUND_SIZE, GROUND_SCALE = 512, 16.0

_WALLS = (
    (150, 84, 62),
    (168, 128, 84),
    (186, 160, 112),
    (205, 196, 180),
    (120, 74, 60),
    (224, 218, 206),
    (140, 134, 126),
    (96, 88, 82),
    (176, 150, 130),
    (116, 112, 116),
    (190, 175, 140),
    (70, 60, 58),
)
_FASCIAS = (
    (30, 50, 110),
    (20, 20, 24),
    (120, 20, 24),
    (20, 80, 50),
    (200, 190, 170),
    (150, 110, 30),
    (60, 60, 66),
    (190, 60, 30),
)


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
            cv2.rectangle(
                picture, (0, int(n * floor)), (columns, int(n * floor) + 3), _grey(rng), -1
            )
    return Texture(_finish(picture, rng, 5.0))


def _grey(rng: np.random.Generator) -> tuple[float, float, float]:
    value = float(rng.uniform(90, 215))
    return (value, value * 0.98, value * 0.93)


def _glass(rng: np.random.Generator) -> tuple[float, float, float]:
    value = float(rng.choice([28, 45, 65, 110])) + float(rng.normal(0, 6))
    return (value * 0.92, value, value * 1.08)


def _windows(
    picture: np.ndarray, top: float, floor: float, rng: np.random.Generator, style: int
) -> None:
    """One floor's windows; their number and size follow from the house's style."""
    shape = np.random.default_rng([2, style])
    count, wide, high = (
        int(shape.integers(2, 7)),
        shape.uniform(0.35, 0.8),
        shape.uniform(0.45, 0.75),
    )
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
    base = np.array(
        ((52, 70, 34), (66, 74, 44), (40, 56, 34), (84, 80, 52), (60, 84, 40), (70, 62, 44))[number]
    )
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
