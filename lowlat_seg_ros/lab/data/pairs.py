"""Pairs (key frame, later frame) with labels: of rendered drives, or made from labelled stills.

A still is warped to what a moving camera would see: the road is a plane, the sky lies at infinity,
walls run along the street, and every car and person stands at its own distance. One map moves image
and label, so that they stay aligned.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from lowlat_seg_ros.frames import IGNORE_LABEL
from lowlat_seg_ros.lab.data.sequence import LabelledFrame
from lowlat_seg_ros.labels import CAMVID

#: Frames a second that the motion of warped pairs is drawn for.
WARPED_HZ = 20.0

#: Roles of CamVid's classes.
_FLAT, _FAR = {"Road", "Pavement"}, {"Sky"}
_MOVING = {"Car", "Pedestrian", "Bicyclist"}
_OBJECTS = _MOVING | {"Pole", "SignSymbol"}

#: Height of the camera in metres, and the share of the way to a thing that a pair may cover.
_CAMERA_HEIGHT = 1.4
_NEAREST = 0.6
_ITERATIONS = 6
#: Pixels of the smallest thing that gets a depth of its own.
_SMALLEST = 30
#: Row of the vanishing point as a share of the height.
_VANISHING = 0.52


#: An image uint8 (H, W, 3) and its label uint8 (H, W).
View = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Pair:
    """Images uint8 (H, W, 3) RGB and labels uint8 (H, W); 255 where nothing is known.

    ``seconds``: from the key frame to the later one.
    """

    key_image: np.ndarray
    key_label: np.ndarray
    image: np.ndarray
    label: np.ndarray
    seconds: float


def pair_of(key: LabelledFrame, frame: LabelledFrame) -> Pair:
    """Two labelled frames of a drive as they are."""
    seconds = (frame.stamp_ns - key.stamp_ns) / 1e9
    return Pair(key.image, key.label, frame.image, frame.label, seconds)


def make_pair(image: np.ndarray, label: np.ndarray, lag: int, rng: np.random.Generator) -> Pair:
    """A pair ``lag`` frames apart at 15 to 30 Hz from one still (uint8 (H, W, 3) and (H, W)).

    The still is the key frame or the later one, as chance has it; the other is warped from it.
    """
    motion = draw_motion(lag, image.shape[1], rng)
    still_is_key = bool(rng.random() < 0.5)
    seconds = lag / WARPED_HZ
    scene = guess_scene(label, seconds if still_is_key else -seconds, rng)
    moved = move(image, label, scene, motion if still_is_key else motion.reversed())
    views = [(image, label), moved] if still_is_key else [moved, (image, label)]
    if rng.random() < 0.3:
        views = _with_passing_thing(views, image, label, lag, rng)
    (key_image, key_label), (later_image, later_label) = views
    # The two exposures differ a little, and each image has grain of its own.
    key_image, later_image = _exposed(key_image, rng), _exposed(later_image, rng)
    return Pair(key_image, key_label, later_image, later_label, seconds)


def _with_passing_thing(
    views: list[View], image: np.ndarray, label: np.ndarray, lag: int, rng: np.random.Generator
) -> list[View]:
    """Both views with a thing of the still pasted in, which has moved between them."""
    mask = np.isin(label, _ids(_MOVING)).astype(np.uint8)
    _, regions, stats, _ = cv2.connectedComponentsWithStats(mask)
    areas = stats[1:, cv2.CC_STAT_AREA]
    large = 1 + np.flatnonzero((areas >= 80) & (areas < 0.15 * label.size))
    if len(large) == 0:
        return views
    number = int(rng.choice(large))
    x, y, w, h = (int(v) for v in stats[number, :4])
    box = slice(y, y + h), slice(x, x + w)
    thing = image[box], label[box], regions[box] == number
    at_x = int(rng.integers(-w // 2, label.shape[1] - w // 2))
    shift = round(float(rng.normal(0.0, 2.0)) * lag)
    return [
        _pasted(view, thing, (at_x + k * shift, y + int(rng.integers(-2, 3))))
        for k, view in enumerate(views)
    ]


def _pasted(
    view: View, thing: tuple[np.ndarray, np.ndarray, np.ndarray], corner: tuple[int, int]
) -> View:
    """``view`` with ``thing`` (image, label, mask) at ``corner`` (x, y), cut off at the edges."""
    image, label = view[0].copy(), view[1].copy()
    (x, y), (height, width) = corner, label.shape
    rows, columns = thing[2].shape
    x0, y0, x1, y1 = max(x, 0), max(y, 0), min(x + columns, width), min(y + rows, height)
    if x0 >= x1 or y0 >= y1:
        return view
    part = slice(y0 - y, y1 - y), slice(x0 - x, x1 - x)
    mask = thing[2][part]
    image[y0:y1, x0:x1][mask] = thing[0][part][mask]
    label[y0:y1, x0:x1][mask] = thing[1][part][mask]
    return image, label


def _exposed(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    gain, lift, noise = rng.normal(1.0, 0.03), rng.normal(0.0, 2.0), rng.uniform(0.0, 3.0)
    grain = rng.standard_normal(image.shape, dtype=np.float32)
    return np.clip(image * gain + lift + noise * grain, 0, 255).astype(np.uint8)


@dataclass(frozen=True)
class Motion:
    """How the camera moves from the still to the view."""

    forward: float  # m
    sideways: float = 0.0  # m, to the right
    yaw: float = 0.0  # to the right, by so many pixels of the image, far things alike
    pitch: float = 0.0  # down, in the same way
    roll: float = 0.0  # rad

    def reversed(self) -> Motion:
        return Motion(-self.forward, -self.sideways, -self.yaw, -self.pitch, -self.roll)


def draw_motion(lag: int, width: int, rng: np.random.Generator) -> Motion:
    """A plausible motion of a car in town over ``lag`` frames, for images of ``width`` pixels."""
    seconds = lag / rng.uniform(15.0, 30.0)
    speed = 0.0 if rng.random() < 0.12 else rng.uniform(1.0, 13.0)
    turning = rng.normal(0.0, 0.03) + (rng.random() < 0.15) * rng.normal(0.0, 0.18)  # rad/s
    still = 0.0 if lag == 0 else 1.0
    return Motion(
        forward=float(speed * seconds),
        sideways=float(rng.normal(0.0, 0.15) * seconds),
        yaw=float(width * turning * seconds),
        pitch=float(still * rng.normal(0.0, 0.003) * width),
        roll=float(still * rng.normal(0.0, 0.003)),
    )


@dataclass(frozen=True)
class Thing:
    """A connected region that stands on the ground: pixels ``mask`` (h, w) at ``corner`` (x, y).

    ``along`` and ``across`` are its own way in metres.
    """

    mask: np.ndarray
    corner: tuple[int, int]
    inverse_depth: float
    along: float
    across: float


@dataclass(frozen=True)
class Scene:
    """Inverse depth float32 (H, W) in 1/m of what stands still, and things, far to near."""

    inverse_depth: np.ndarray
    things: list[Thing]


def guess_scene(label: np.ndarray, seconds: float, rng: np.random.Generator) -> Scene:
    """A guess at the scene behind ``label``; camera and street are drawn at random."""
    height, width = label.shape
    focal, horizon = width * rng.uniform(0.9, 1.2), height * rng.uniform(0.48, 0.56)
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    ground = np.clip(y - horizon, 0.0, None) / (focal * _CAMERA_HEIGHT)
    # Upright surfaces along the street: the farther from the vanishing point, the nearer.
    left, right = rng.uniform(4.0, 14.0, 2)
    offset = x - width / 2
    walls = np.maximum(np.where(offset < 0, -offset / left, offset / right) / focal, 1 / 200)
    # What lies behind things, and what is unlabelled low in the picture, is ground as a rule.
    low = np.isin(label, [*_ids(_OBJECTS), IGNORE_LABEL]) & (y > horizon)
    flat, far = np.isin(label, _ids(_FLAT)), np.isin(label, _ids(_FAR))
    depth = np.where(far, 0.0, np.where(flat | low, ground, walls)).astype(np.float32)
    things = [
        thing
        for i in _ids(_OBJECTS)
        for thing in _things(label == i, ground[:, 0], i in _ids(_MOVING), seconds, rng)
    ]
    things.sort(key=lambda thing: thing.inverse_depth)
    return Scene(cv2.GaussianBlur(depth, (0, 0), 1.0), things)


def _ids(names: set[str]) -> list[int]:
    return [number for number, name in enumerate(CAMVID.names) if name in names]


def _things(
    mask: np.ndarray, ground: np.ndarray, moving: bool, seconds: float, rng: np.random.Generator
) -> list[Thing]:
    """Every larger region of ``mask``, at the depth of the ground (H,) where it ends below."""
    count, regions, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8))
    found = []
    for number in range(1, count):
        x, y, w, h, area = (int(v) for v in stats[number])
        if area < _SMALLEST:
            continue
        depth = max(float(ground[y + h - 1]), 1 / 80)
        part = regions[y : y + h, x : x + w] == number
        own = moving and rng.random() < 0.6
        along = float(rng.uniform(-9.0, 9.0)) * seconds if own else 0.0
        across = float(rng.normal(0.0, 0.5)) * seconds if own else 0.0
        found.append(Thing(part, (x, y), depth, along, across))
    return found


def move(image: np.ndarray, label: np.ndarray, scene: Scene, motion: Motion) -> View:
    """Image and label after the motion: the background is warped, then things are drawn upon it."""
    source = warp_map(scene.inverse_depth, motion)
    behind = label.copy()
    for thing in scene.things:
        # Nothing is known of what a thing hid, and its picture is no label for it.
        (x, y), (h, w) = thing.corner, thing.mask.shape
        behind[y : y + h, x : x + w][thing.mask] = IGNORE_LABEL
    view = warp_image(image, source), warp_label(behind, source)
    for thing in scene.things:
        _draw_thing(view, image, label, thing, motion)
    return view


def _draw_thing(
    view: View, image: np.ndarray, label: np.ndarray, thing: Thing, motion: Motion
) -> None:
    """Draw ``thing`` into ``view``, grown and shifted as its depth demands."""
    height, width = label.shape
    (x, y), (h, w) = thing.corner, thing.mask.shape
    middle = np.array([x + w / 2, y + h / 2], np.float32)
    depth, way = np.array(thing.inverse_depth), (thing.along, thing.across)
    shrink, shift_x, shift_y = _displacement(depth, motion, middle, label.shape, way).tolist()
    grow = 1.0 / shrink
    centre = width / 2, height * _VANISHING
    at = centre[0] * (1 - grow) + shift_x, centre[1] * (1 - grow) + shift_y
    x0, y0 = max(int(grow * x + at[0]), 0), max(int(grow * y + at[1]), 0)
    x1 = min(int(np.ceil(grow * (x + w) + at[0])), width)
    y1 = min(int(np.ceil(grow * (y + h) + at[1])), height)
    if x0 >= x1 or y0 >= y1:
        return
    # From the still (or, for mask and label, from the thing's box in it) to the box in the view.
    to_box = np.array([[grow, 0.0, at[0] - x0], [0.0, grow, at[1] - y0]])
    from_mask = to_box + np.array([[0.0, 0.0, grow * x], [0.0, 0.0, grow * y]])
    size = (x1 - x0, y1 - y0)
    mask = cv2.warpAffine(thing.mask.astype(np.uint8), from_mask, size, flags=cv2.INTER_NEAREST)
    picture = cv2.warpAffine(image, to_box, size, flags=cv2.INTER_LINEAR)
    chosen = mask > 0
    view[0][y0:y1, x0:x1][chosen] = picture[chosen]
    box = thing.mask.nonzero()
    view[1][y0:y1, x0:x1][chosen] = label[y + box[0][0], x + box[1][0]]


def warp_map(inverse_depth: np.ndarray, motion: Motion) -> np.ndarray:
    """Where each pixel of the moved view lies in the still: float32 (H, W, 2), x then y.

    A pixel p of the still, from the vanishing point c, goes to q = c + (p - c) g(p) + t(p) with a
    growth g and a shift t. The map solves for p = c + (q - t(p) - c) / g(p) by damped iteration,
    which also decides occlusions, in one way for image and label.
    """
    height, width = inverse_depth.shape
    pixels = np.dstack(np.meshgrid(np.arange(width), np.arange(height))).astype(np.float32)
    centre = np.array([width / 2, height * _VANISHING], np.float32)
    field = _displacement(inverse_depth, motion, pixels, inverse_depth.shape)
    source = pixels
    for _ in range(_ITERATIONS):
        at_source = _remap(field, source, cv2.INTER_LINEAR, cv2.BORDER_REPLICATE)
        shrink, shift = at_source[..., :1], at_source[..., 1:]
        target = centre + (pixels - centre - shift) * shrink
        # Plain substitution would oscillate on the road close by, where g grows fastest.
        source = 0.5 * (source + target)
    return source


def _displacement(
    inverse_depth: np.ndarray,
    motion: Motion,
    pixels: np.ndarray,
    size: tuple[int, ...],
    own: tuple[float, float] = (0.0, 0.0),
) -> np.ndarray:
    """Float32 (..., 3) at ``pixels`` (..., 2): 1 / g, and the shift t in pixels (x, y).

    ``own`` is the way of what is seen there, along and across, in metres.
    """
    height, width = size
    # Moving forward by m brings depth Z to Z - m and magnifies by g = Z / (Z - m).
    share = np.clip((motion.forward - own[0]) * inverse_depth, -4.0, _NEAREST)
    shift_x = width * (own[1] - motion.sideways) * inverse_depth - motion.yaw
    shift_x = shift_x - motion.roll * (pixels[..., 1] - height * _VANISHING)
    shift_y = motion.roll * (pixels[..., 0] - width / 2) - motion.pitch
    return np.stack([1.0 - share, shift_x, shift_y], axis=-1).astype(np.float32)


def warp_image(image: np.ndarray, source: np.ndarray) -> np.ndarray:
    """``image`` seen through the map (bilinear, mirrored beyond the edges)."""
    return _remap(image, source, cv2.INTER_LINEAR, cv2.BORDER_REFLECT_101)


def warp_label(label: np.ndarray, source: np.ndarray) -> np.ndarray:
    """``label`` seen through the map (nearest, 255 beyond the edges)."""
    return _remap(label, source, cv2.INTER_NEAREST, cv2.BORDER_CONSTANT)


def _remap(picture: np.ndarray, source: np.ndarray, how: int, border: int) -> np.ndarray:
    # None: both coordinates are in the one map. OpenCV's type hints leave that case out.
    return cv2.remap(  # type: ignore[call-overload]
        picture, source, None, how, borderMode=border, borderValue=float(IGNORE_LABEL)
    )
