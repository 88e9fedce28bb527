"""What lies behind and beneath everything: the sky, the far skyline, the ground and its paint."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from lowlat_seg_ros.lab.data.synthetic import objects, pictures
from lowlat_seg_ros.lab.data.synthetic.canvas import Canvas, Colour
from lowlat_seg_ros.lab.data.synthetic.layout import Layout
from lowlat_seg_ros.lab.data.synthetic.street import AHEAD, BEHIND, BESIDE, Line, Look
from lowlat_seg_ros.labels import CAMVID

SKY, BUILDING, ROAD, PAVEMENT, TREE = (
    CAMVID.index(n) for n in ("Sky", "Building", "Road", "Pavement", "Tree")
)
#: Distance in metres to which paint on the road can be made out.
_MARKED = 90.0
#: Stations ahead of the camera at which the ground's edges bend, in metres.
_STATIONS = np.concatenate([np.arange(-4.0, 20.0, 2.0), np.geomspace(20.0, AHEAD + 40, 22)])


class Sky:
    """The sky and the skyline beyond the modelled street, by azimuth; it turns with the camera."""

    def __init__(self, look: Look, size: tuple[int, int], focal: float) -> None:
        rng = np.random.default_rng(look.sky)
        rows, around = int(size[0] * 0.68), int(2 * np.pi * focal) + 1
        cover = pictures.clouds(int(rng.integers(pictures.SKIES)))[..., None]
        height = np.linspace(1.0, 0.0, len(cover), dtype=np.float32)[:, None, None] ** 1.4
        light = look.light
        sky = height * np.array(light.zenith) + (1 - height) * np.array(light.skyline)
        sky = sky * (1 - 0.8 * cover) + 0.8 * cover * np.array(light.cloud)
        picture = cv2.resize(np.clip(sky, 0, 255).astype(np.uint8), (around, rows))
        # The start again at the end, so that every view is one slice.
        self._picture = np.concatenate([picture, picture[:, : size[1] + 2]], axis=1)
        self._around = around
        fade = np.exp(-220 / light.visibility)
        #: Far rows, each with its heights in pixels by azimuth column, its colour and its class.
        self._far = [
            (
                _skyline(rng, around, focal * share),
                _mixed(colour, light.ambient, light.skyline, fade),
                label,
            )
            for share, colour, label in (
                (0.045, (118, 108, 102), BUILDING),
                (0.03, (66, 76, 52), TREE),
            )
        ]

    def paint(self, canvas: Canvas) -> None:
        height, width = canvas.camera.size
        start = canvas.camera.heading / (2 * np.pi) % 1.0 * self._around
        left, horizon = int(start), int(np.ceil(canvas.camera.horizon))
        rows = min(max(horizon + 2, 1), height, len(self._picture))
        canvas.image[:rows] = self._picture[len(self._picture) - rows :, left : left + width]
        canvas.label[:rows] = SKY
        columns = (left + np.arange(width + 1)) % self._around
        for heights, colour, label in self._far:
            tops = canvas.camera.horizon - heights[columns]
            line = np.column_stack([np.arange(width + 1) - (start - left), tops])
            ends = [[width + 1, canvas.camera.horizon + 4], [-1, canvas.camera.horizon + 4]]
            fixed = np.rint(np.concatenate([line, ends]) * 16).astype(np.int32)
            cv2.fillPoly(canvas.image, [fixed], colour, cv2.LINE_AA, 4)
            cv2.fillPoly(canvas.label, [fixed], (label,), cv2.LINE_8, 4)


def _skyline(rng: np.random.Generator, around: int, height: float) -> np.ndarray:
    """Heights in pixels of a far row of roofs or trees, for every azimuth column."""
    blocks = np.repeat(rng.uniform(0.0, 1.0, around // 9 + 1), 9)[:around]
    swell = pictures.noise(rng, (1, around), 6, 24)[0]
    return np.maximum(height * (0.55 * blocks + 0.9 * np.clip(swell + 0.2, 0, 1.6)), 0.0)


def _mixed(colour: Colour, ambient: Colour, haze: Colour, fade: float) -> Colour:
    r, g, b = (fade * c * a + (1 - fade) * h for c, a, h in zip(colour, ambient, haze, strict=True))
    return (float(r), float(g), float(b))


@dataclass(frozen=True)
class Markings:
    """Flat patches of road in the order in which they lie on each other.

    ``corners`` (N, 4, 3) in metres; ``ends`` (N,) the arc lengths at which they end.
    """

    corners: np.ndarray
    ends: np.ndarray
    colours: tuple[Colour, ...]


def paint_ground(
    canvas: Canvas, look: Look, line: Line, layout: Layout, markings: Markings, s: float
) -> None:
    """Road, kerbs, pavements, side roads and markings around arc length ``s``."""
    street = look.street
    top = int(np.clip(np.ceil(canvas.camera.horizon + 1), 0, canvas.camera.size[0]))
    canvas.image[top:] = np.array(look.verge, np.uint8)
    canvas.label[top:] = TREE if look.green_verge else PAVEMENT
    stations = s + _STATIONS
    half, kerb = street.half_road, street.kerb
    canvas.strip(line.at(stations, -half), line.at(stations, half), look.asphalt, ROAD)
    face = objects.shade(look.paving, 0.72)
    edge = objects.shade(look.paving, 1.12)
    for side, wide in zip((-1, 1), street.pavements, strict=True):
        inner, outer = side * half, side * (half + wide)
        raised = line.at(stations, inner, kerb)
        canvas.strip(line.at(stations, inner), raised, face, PAVEMENT)
        canvas.strip(raised, line.at(stations, outer, kerb), look.paving, PAVEMENT)
        canvas.strip(raised, line.at(stations, inner + side * 0.18, kerb), edge, PAVEMENT)
    near = np.flatnonzero((markings.ends > s - BESIDE) & (markings.ends < s + _MARKED))
    canvas.quads(markings.corners[near], [markings.colours[i] for i in near], ROAD)
    _grain(canvas, top)
    shadows = [outline for _, outline in layout.shadows.in_view(s, BEHIND)]
    if shadows:
        canvas.darken(shadows, 0.52)


def _grain(canvas: Canvas, top: int) -> None:
    """Add the ground's grain below row ``top``, as it lies in the world."""
    camera = canvas.camera
    rows = camera.size[0] - top
    if rows < 2:
        return
    ground = np.column_stack([canvas.matrix[:, 0], canvas.matrix[:, 1], canvas.offset])
    # The camera's position is wrapped: far coordinates would lose the grain to rounding.
    scale, period = pictures.GROUND_SCALE, pictures.GROUND_SIZE / pictures.GROUND_SCALE
    base = np.array([np.floor(v / period) * period for v in camera.position[:2]])
    to_world = np.linalg.inv(ground) @ np.array([[1, 0, 0], [0, 1, top], [0, 0, 1.0]])
    to_world[:2] -= np.outer(base, to_world[2])
    to_texel = np.diag([scale, scale, 1.0]) @ to_world
    size, flags = (camera.size[1], rows), cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    grain = cv2.warpPerspective(
        pictures.ground_noise(), to_texel, size, flags=flags, borderMode=cv2.BORDER_WRAP
    )
    # Towards the horizon a pixel spans many grains, which average out.
    fade = np.clip(np.arange(rows, dtype=np.float32) / (0.22 * camera.size[0]), 0.04, 1.0)
    factor = 1.0 + (grain.astype(np.float32) - 128.0) * (fade[:, None] / 420.0)
    below = canvas.image[top:].astype(np.float32) * factor[..., None]
    canvas.image[top:] = np.clip(below, 0, 255).astype(np.uint8)


def mark_road(
    rng: np.random.Generator, look: Look, line: Line, layout: Layout, length: float
) -> Markings:
    """Side roads, patches, lane markings, zebra crossings: from the ground up."""
    spans: list[tuple[float, float, float, float]] = []  # two arc lengths and two offsets
    colours: list[Colour] = []

    def quad(s0: float, s1: float, d0: float, d1: float, colour: Colour) -> None:
        spans.append((s0, s1, d0, d1))
        colours.append(colour)

    half, ambient = look.street.half_road, np.asarray(look.light.ambient)
    white: Colour = tuple(float(v) for v in np.minimum(rng.uniform(170, 235) * ambient, 255))  # type: ignore[assignment]
    yellow: Colour = tuple(float(v) for v in np.minimum(np.array((200, 172, 70)) * ambient, 255))  # type: ignore[assignment]
    for a, b in layout.crossings:
        for side in (-1, 1):
            quad(a, b, side * (half - 0.05), side * 55.0, look.asphalt)
            quad(a, b, side * (half + 0.3), side * (half + 0.55), white)
    for s in np.arange(-BEHIND, length + AHEAD, 9.0):
        shade = objects.shade(look.asphalt, float(rng.uniform(0.82, 1.12)))
        d, wide = rng.uniform(-half, half - 0.8), rng.uniform(0.3, 1.6)
        quad(s, s + rng.uniform(0.5, 8), d, min(d + wide, half), shade)
    dash, gap = ((2.0, 4.0), (4.0, 2.0), (1.0, 5.0))[int(rng.integers(3))]
    if rng.random() < 0.85:
        for s in np.arange(-BEHIND, length + AHEAD, dash + gap):
            quad(s, s + dash, -0.07, 0.07, white)
    style = int(rng.integers(4))  # edges: none, single yellow, double yellow, white
    for side in (-1, 1):
        for offset in ((), (0.3,), (0.25, 0.5), (0.4,))[style]:
            for s in np.arange(-BEHIND, length + AHEAD, 6.0):
                d = side * (half - offset)
                quad(s, s + 6.0, d - 0.05, d + 0.05, white if style == 3 else yellow)
    for a, b in layout.crossings:
        if rng.random() < 0.35:
            for d in np.arange(-half + 0.3, half - 0.5, 1.1):
                quad(a - 5.5, a - 2.5, d, d + 0.55, white)
        elif rng.random() < 0.4:
            quad(a - 1.2, a - 0.9, -half, 0.0, white)
        if rng.random() < 0.12:  # a yellow box
            for d in np.arange(-half, half, 1.2):
                quad(a, b, d, d + 0.12, yellow)
    s_and_d = np.array(spans)
    corners = line.at(s_and_d[:, [0, 0, 1, 1]], s_and_d[:, [2, 3, 3, 2]])
    return Markings(corners, s_and_d[:, 1], tuple(colours))
