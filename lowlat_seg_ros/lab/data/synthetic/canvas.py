"""Camera and canvas: image and label are painted far to near, from the same projected shapes.

World: x, y on the ground, z up, metres.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np

from lowlat_seg_ros.frames import IGNORE_LABEL

#: Nothing nearer than this is drawn, in metres.
NEAR = 0.4
#: Fraction bits of the coordinates handed to OpenCV: shapes move by sixteenths of a pixel.
_SHIFT = 4
#: Height in pixels below which an object loses its details.
_DETAIL_PX = 14.0
_RAMP = np.arange(256, dtype=np.float32)[:, None]

Colour = tuple[float, float, float]


@dataclass(frozen=True)
class Camera:
    """Camera at ``position`` (x, y, z) m looking along ``heading`` (rad, clockwise from +y).

    ``horizon`` is the image row of the horizon and ``focal`` the focal length, both in pixels.
    The optical axis is level; the horizon's row is set by shifting the image plane, which keeps
    verticals vertical.
    """

    size: tuple[int, int]
    focal: float
    horizon: float
    position: tuple[float, float, float]
    heading: float

    def matrix(self) -> tuple[np.ndarray, np.ndarray]:
        """(3, 3) and (3,): ``m @ world + b`` is (u w, v w, w), w being the depth in metres."""
        sin, cos = np.sin(self.heading), np.cos(self.heading)
        rotation = np.array([[cos, -sin, 0.0], [0.0, 0.0, -1.0], [sin, cos, 0.0]])
        centre = (self.size[1] - 1) / 2
        intrinsic = np.array([[self.focal, 0, centre], [0, self.focal, self.horizon], [0, 0, 1]])
        m = intrinsic @ rotation
        return m, -m @ np.asarray(self.position)


def clip_near(points: np.ndarray) -> np.ndarray:
    """Clip a polygon (N, 3) of (u w, v w, w) at w = NEAR; (0, 3) if it lies behind."""
    depth = points[:, 2].tolist()
    if min(depth) >= NEAR:
        return points
    if max(depth) < NEAR:
        return points[:0]
    inside = [w >= NEAR for w in depth]
    kept = []
    for i in range(len(points)):
        j = (i + 1) % len(points)
        if inside[i]:
            kept.append(points[i])
        if inside[i] != inside[j]:
            share = (NEAR - depth[i]) / (depth[j] - depth[i])
            kept.append(points[i] + share * (points[j] - points[i]))
    return np.array(kept)


def to_pixels(points: np.ndarray) -> np.ndarray:
    """(N, 3) of (u w, v w, w), w > 0, to pixels (N, 2), kept within what OpenCV can draw."""
    return np.clip(points[:, :2] / points[:, 2:], -16000.0, 16000.0)


@dataclass(frozen=True)
class Face:
    """A convex polygon: rows ``start`` to ``stop`` of its mesh's vertices.

    ``label`` None leaves the label as it is (shadows). A ``solid`` face is seen from the side on
    which its vertices run clockwise in the image, others from both. A ``detail`` is left out
    where it would be too small to see.
    """

    start: int
    stop: int
    colour: Colour
    label: int | None
    solid: bool = False
    detail: bool = False


@dataclass(frozen=True)
class Mesh:
    """Faces in the order in which they are painted; ``vertices`` (N, 3) in metres."""

    vertices: np.ndarray
    faces: tuple[Face, ...]

    def paint(self, canvas: Canvas) -> None:
        canvas.mesh(self.vertices, self.faces)


class Texture:
    """A picture uint8 (H, W, C) with its halved copies, against flicker where it is far."""

    def __init__(self, pixels: np.ndarray) -> None:
        self.levels = [pixels]
        while min(self.levels[-1].shape[:2]) >= 8:
            h, w = self.levels[-1].shape[:2]
            half = cv2.resize(self.levels[-1], (w // 2, h // 2), interpolation=cv2.INTER_AREA)
            self.levels.append(half)

    def level(self, height_px: float) -> np.ndarray:
        """The smallest copy that still has ``height_px`` rows."""
        halvings = int(self.levels[0].shape[0] / max(height_px, 1.0)).bit_length() - 1
        return self.levels[min(max(halvings, 0), len(self.levels) - 1)]


@dataclass(frozen=True)
class Wall:
    """A textured upright rectangle: its top left corner, the way along it and its height, m."""

    corner: np.ndarray
    along: np.ndarray
    height: float
    texture: Texture
    light: Colour
    label: int

    @cached_property
    def outline(self) -> np.ndarray:
        down = np.array([0.0, 0.0, -self.height])
        c, a = self.corner, self.along
        return np.array([c, c + a, c + a + down, c + down])

    def paint(self, canvas: Canvas) -> None:
        canvas.wall(self)


@dataclass(frozen=True)
class Board:
    """A picture (RGBA) that stands on ``foot`` (3,) and faces the camera; sizes in metres.

    Pixels get ``label`` where the second picture, one channel, is above half.
    """

    foot: np.ndarray
    width: float
    height: float
    picture: Texture
    cover: Texture
    light: Colour
    label: int
    mirrored: bool = False

    def paint(self, canvas: Canvas) -> None:
        canvas.board(self)


Paintable = Mesh | Wall | Board


class Canvas:
    """Image and label in the making, seen by ``camera`` through haze of ``haze_colour``.

    ``visibility`` is the distance in metres at which a colour has faded to 37 %.
    """

    def __init__(self, camera: Camera, haze_colour: Colour, visibility: float) -> None:
        self.camera, self.visibility = camera, visibility
        self.haze_colour = np.asarray(haze_colour, np.float32)
        self.matrix, self.offset = camera.matrix()
        self.image = np.zeros((*camera.size, 3), np.uint8)
        self.label = np.full(camera.size, IGNORE_LABEL, np.uint8)

    def project(self, points: np.ndarray) -> np.ndarray:  # world (N, 3) to (u w, v w, w)
        return points @ self.matrix.T + self.offset

    def mesh(self, vertices: np.ndarray, faces: tuple[Face, ...]) -> None:
        projected = self.project(vertices)
        depth = projected[:, 2]
        if depth.max() <= 0.5:  # behind the camera
            return
        fade = float(np.exp(-max(depth.mean(), 0.0) / self.visibility))
        haze = ((1.0 - fade) * self.haze_colour).tolist()
        near = depth.min() > 0.5
        pixels = to_pixels(projected) if near else None
        if pixels is not None and self._box(pixels) is None:
            return
        small = pixels is not None and float(np.ptp(pixels[:, 1])) < _DETAIL_PX
        for face in faces:
            if small and face.detail:
                continue
            if pixels is not None:
                corners = pixels[face.start : face.stop]
            else:
                clipped = clip_near(projected[face.start : face.stop])
                if len(clipped) < 3:
                    continue
                corners = to_pixels(clipped)
            if face.solid and _turns_left(corners):
                continue
            r, g, b = face.colour
            colour = (fade * r + haze[0], fade * g + haze[1], fade * b + haze[2])
            self.fill(corners, colour, face.label)

    def fill(self, corners: np.ndarray, colour: Colour, label: int | None) -> None:
        """Fill a convex polygon (N, 2) in pixels."""
        fixed = np.rint(corners * (1 << _SHIFT)).astype(np.int32)
        cv2.fillConvexPoly(self.image, fixed, colour, cv2.LINE_AA, _SHIFT)
        if label is not None:
            cv2.fillConvexPoly(self.label, fixed, (label,), cv2.LINE_8, _SHIFT)

    def quads(self, corners: np.ndarray, colours: list[Colour], label: int) -> None:
        """Fill quadrilaterals (N, 4, 3) in metres, in their order."""
        projected = self.project(corners.reshape(-1, 3)).reshape(-1, 4, 3)
        ahead = projected[..., 2].min(axis=1) > 0.5
        pixels = to_pixels(np.where(ahead[:, None, None], projected, 1.0).reshape(-1, 3))
        pixels = pixels.reshape(-1, 4, 2)
        height, width = self.camera.size
        low, high = pixels.min(axis=1), pixels.max(axis=1)
        seen = (high > 0).all(axis=1) & (low[:, 0] < width) & (low[:, 1] < height)
        for i in np.flatnonzero(seen | ~ahead):
            if ahead[i]:
                self.fill(pixels[i], colours[i], label)
            elif len(clipped := clip_near(projected[i])) >= 3:
                self.fill(to_pixels(clipped), colours[i], label)

    def strip(self, left: np.ndarray, right: np.ndarray, colour: Colour, label: int) -> None:
        """The ribbon between two world lines (N, 3) that run away from the camera."""
        clipped = clip_near(self.project(np.concatenate([left, right[::-1]])))
        if len(clipped) >= 3:
            fixed = [np.rint(to_pixels(clipped) * (1 << _SHIFT)).astype(np.int32)]
            cv2.fillPoly(self.image, fixed, colour, cv2.LINE_AA, _SHIFT)
            cv2.fillPoly(self.label, fixed, (label,), cv2.LINE_8, _SHIFT)

    def darken(self, outlines: list[np.ndarray], share: float) -> None:
        """Multiply the image by ``share`` inside world polygons (N, 3): shadows on the ground."""
        mask = np.zeros(self.label.shape, np.uint8)
        for outline in outlines:
            clipped = clip_near(self.project(outline))
            if len(clipped) >= 3:
                fixed = np.rint(to_pixels(clipped) * (1 << _SHIFT)).astype(np.int32)
                cv2.fillPoly(mask, [fixed], (255,), cv2.LINE_8, _SHIFT)
        dark = cv2.convertScaleAbs(self.image, alpha=share)
        cv2.copyTo(dark, mask, self.image)

    def wall(self, wall: Wall) -> None:
        projected = clip_near(self.project(wall.outline))
        if len(projected) < 3:
            return
        corners = to_pixels(projected)
        box = self._box(corners)
        if box is None:
            return
        top, bottom, left, right = box
        if right - left < 3:  # seen edge on: its picture would not show
            self.fill(corners, self._flat(wall, projected), wall.label)
            return
        nearest = self.camera.focal * wall.height / projected[:, 2].min()
        texture = wall.texture.level(nearest)
        rows, columns = texture.shape[:2]
        # Columns of the map: a step along the wall, a step down it, and its top left corner.
        step = np.column_stack([wall.along / columns, [0.0, 0.0, -wall.height / rows], wall.corner])
        to_image = self.matrix @ step
        to_image[:, 2] += self.offset
        shift = np.array([[1.0, 0, -left], [0, 1.0, -top], [0, 0, 1.0]])
        size, border = (right - left, bottom - top), cv2.BORDER_REPLICATE
        patch = cv2.warpPerspective(
            texture, shift @ to_image, size, flags=cv2.INTER_LINEAR, borderMode=border
        )
        patch = cv2.LUT(patch, self._tone(wall.light, float(projected[:, 2].mean())))
        mask = np.zeros(patch.shape[:2], np.uint8)
        fixed = np.rint((corners - (left, top)) * (1 << _SHIFT)).astype(np.int32)
        cv2.fillConvexPoly(mask, fixed, (255,), cv2.LINE_8, _SHIFT)
        cv2.copyTo(patch, mask, self.image[top:bottom, left:right])
        labels = self.label[top:bottom, left:right]
        cv2.fillConvexPoly(labels, fixed, (wall.label,), cv2.LINE_8, _SHIFT)

    def _flat(self, wall: Wall, projected: np.ndarray) -> Colour:
        """The wall's mean colour as it is seen from here."""
        mean = np.rint(wall.texture.levels[-1].mean(axis=(0, 1))).astype(int)
        tone = self._tone(wall.light, float(projected[:, 2].mean()))[0]
        r, g, b = (float(tone[v, channel]) for channel, v in enumerate(mean))
        return (r, g, b)

    def board(self, board: Board) -> None:
        foot = self.project(board.foot[None])[0]
        if foot[2] < 1.0:
            return
        per_metre = self.camera.focal / foot[2]
        x, y = foot[0] / foot[2], foot[1] / foot[2]
        width, height = board.width * per_metre, board.height * per_metre
        corners = np.array([[x - width / 2, y - height], [x + width / 2, y]])
        box = self._box(corners)
        if box is None or height < 1.5:
            return
        top, bottom, left, right = box
        picture, cover = board.picture.level(height), board.cover.level(height)
        rows, columns = picture.shape[:2]
        sign = -1.0 if board.mirrored else 1.0
        step_x, step_y = sign * width / columns, height / rows
        start_x, start_y = x - left - sign * width / 2, corners[0, 1] - top
        affine = np.array([[step_x, 0.0, start_x], [0.0, step_y, start_y]])
        size = (right - left, bottom - top)
        patch = cv2.warpAffine(picture, affine, size, flags=cv2.INTER_LINEAR)
        alpha, tone = (
            patch[..., 3].astype(np.float32) / 255,
            self._tone(board.light, float(foot[2])),
        )
        colours = cv2.LUT(np.ascontiguousarray(patch[..., :3]), tone)
        view = self.image[top:bottom, left:right]
        view[:] = cv2.blendLinear(colours, np.ascontiguousarray(view), alpha, 1.0 - alpha)
        covered = cv2.warpAffine(cover, affine, size, flags=cv2.INTER_LINEAR) > 127
        self.label[top:bottom, left:right][covered] = board.label

    def _tone(self, light: Colour, depth: float) -> np.ndarray:
        """Look-up table (1, 256, 3) of a surface's light and of the haze before it."""
        fade = np.exp(-max(depth, 0.0) / self.visibility)
        table = _RAMP * (fade * np.asarray(light, np.float32)) + (1 - fade) * self.haze_colour
        return np.rint(np.clip(table, 0, 255)).astype(np.uint8)[None]

    def _box(self, corners: np.ndarray) -> tuple[int, int, int, int] | None:
        """Pixel box (top, bottom, left, right) around ``corners`` within the image, or None."""
        xs, ys = corners[:, 0].tolist(), corners[:, 1].tolist()  # faster than NumPy for few points
        height, width = self.camera.size
        if max(xs) < 0 or max(ys) < 0:
            return None
        left, top = max(math.floor(min(xs)), 0), max(math.floor(min(ys)), 0)
        right, bottom = min(math.ceil(max(xs)) + 1, width), min(math.ceil(max(ys)) + 1, height)
        return (top, bottom, left, right) if bottom > top and right > left else None


def _turns_left(corners: np.ndarray) -> bool:
    """Whether a convex polygon's corners run anticlockwise as seen in the image (y down)."""
    third = len(corners) // 3
    (ax, ay), (bx, by), (cx, cy) = corners[[0, third, 2 * third]].tolist()
    return bool((bx - ax) * (cy - ay) - (by - ay) * (cx - ax) < 0.0)
