"""Pairs (key frame, later frame) with labels: rendered drives, or made from labelled stills."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from lowlat_seg_ros.lab.data.sequence import Sequence
from lowlat_seg_ros.lab.data.warp import (
    MOVING,
    View,
    draw_motion,
    guess_scene,
    move,
    reversed_motion,
)
from lowlat_seg_ros.labels import CAMVID, ClassTable

#: Frames a second that the motion of warped pairs is drawn for.
WARPED_HZ = 20.0


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


def rendered_pair(drive: Sequence, index: int, lag: int) -> Pair:
    """Frames ``index - lag`` and ``index`` of a drive all of whose frames are labelled."""
    if not 0 <= index - lag < len(drive) or index >= len(drive):
        raise ValueError(f"index {index} and lag {lag} leave the drive of {len(drive)} frames")
    key, frame = drive[index - lag], drive[index]
    seconds = (frame.stamp_ns - key.stamp_ns) / 1e9
    return Pair(key.image, key.label, frame.image, frame.label, seconds)


def make_pair(
    image: np.ndarray,
    label: np.ndarray,
    lag: int,
    rng: np.random.Generator,
    table: ClassTable = CAMVID,
) -> Pair:
    """A pair ``lag`` frames apart at 15 to 30 Hz from one still (uint8 (H, W, 3) and (H, W)).

    The still is the key frame or the later one, as chance has it; the other is warped from it.
    """
    if lag < 0:
        raise ValueError(f"lag is {lag}; it must be 0 frames or more")
    motion = draw_motion(lag, image.shape[1], rng)
    still_is_key = bool(rng.random() < 0.5)
    seconds = lag / WARPED_HZ
    scene = guess_scene(label, seconds if still_is_key else -seconds, rng, table)
    moved = move(image, label, scene, motion if still_is_key else reversed_motion(motion))
    views = [(image, label), moved]
    if not still_is_key:
        views.reverse()
    if rng.random() < 0.3:
        views = _occluded(views, image, label, lag, rng, table)
    (key_image, key_label), (later_image, later_label) = views
    key_image, later_image = _lit_apart(key_image, later_image, rng)
    return Pair(key_image, key_label, later_image, later_label, seconds)


def _occluded(
    views: list[View],
    image: np.ndarray,
    label: np.ndarray,
    lag: int,
    rng: np.random.Generator,
    table: ClassTable,
) -> list[View]:
    """Both views with a thing of the still pasted in, which has moved between them."""
    ids = [number for number, name in enumerate(table.names) if name.lower() in MOVING]
    mask = np.isin(label, ids).astype(np.uint8)
    count, regions, stats, _ = cv2.connectedComponentsWithStats(mask)
    areas = stats[1:, cv2.CC_STAT_AREA]
    large = 1 + np.flatnonzero((areas >= 80) & (areas < 0.15 * label.size))
    if count == 1 or len(large) == 0:
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


def _lit_apart(
    first: np.ndarray, second: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Both images with exposures a little apart and grain of their own."""
    out = []
    for image in (first, second):
        gain, lift, noise = rng.normal(1.0, 0.03), rng.normal(0.0, 2.0), rng.uniform(0.0, 3.0)
        grain = rng.standard_normal(image.shape, dtype=np.float32)
        out.append(np.clip(image * gain + lift + noise * grain, 0, 255).astype(np.uint8))
    return out[0], out[1]
