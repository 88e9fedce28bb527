"""Rendered drives: a camera car in a made-up street, with exact labels in CamVid's classes."""

from __future__ import annotations

import cv2
import numpy as np

from lowlat_seg_ros.lab.data.sequence import LabelledFrame, check_index
from lowlat_seg_ros.lab.data.synthetic import pictures
from lowlat_seg_ros.lab.data.synthetic.canvas import Camera, Canvas
from lowlat_seg_ros.lab.data.synthetic.ground import Sky, mark_road, paint_ground
from lowlat_seg_ros.lab.data.synthetic.layout import Builder
from lowlat_seg_ros.lab.data.synthetic.street import Line, draw_look
from lowlat_seg_ros.lab.data.synthetic.traffic import Ego, Traffic
from lowlat_seg_ros.labels import CAMVID


class RenderedDrive:
    """``frames`` frames at ``rate_hz`` of ``size`` (H, W), made up from ``seed``.

    A frame depends on the seed, the drive's duration, the size and its time alone: frames may be
    read in any order, and two rates show the same drive. Image and label are painted with the same
    projected shapes. ValueError if a number is out of range.
    """

    def __init__(
        self, seed: int, frames: int, rate_hz: float = 15.0, size: tuple[int, int] = (360, 480)
    ) -> None:
        if frames < 1 or rate_hz <= 0 or min(size) < 16:
            raise ValueError(
                f"frames={frames}, rate_hz={rate_hz}, size={size}; a drive needs at least one "
                "frame, a positive rate and 16 pixels each way"
            )
        self.seed, self.size, self._frames = seed, size, frames
        self.table, self.rate_hz = CAMVID, float(rate_hz)
        # Each part has a stream of its own; their lengths follow the drive's.
        streams = [np.random.default_rng([seed, part]) for part in range(6)]
        seconds = frames / rate_hz
        self.look = draw_look(streams[0])
        self.ego = Ego(streams[1], self.look, seconds)
        self.line = Line(streams[2], self.ego.length)
        self.layout = Builder(streams[3], self.look, self.line, self.ego.length).build()
        self._markings = mark_road(streams[4], self.look, self.line, self.layout, self.ego.length)
        self.traffic = Traffic(streams[5], self.look, self.line, self.ego, seconds)
        self._sky = Sky(self.look, size, self.look.lens.focal * size[1])
        self._tone = _tone_curve(self.look.lens.gain, self.look.lens.gamma)

    def __len__(self) -> int:
        return self._frames

    def drive(self, index: int) -> str:
        check_index(index, len(self))
        return f"rendered_{self.seed}"

    def __getitem__(self, index: int) -> LabelledFrame:
        index = check_index(index, len(self))
        t = index / self.rate_hz
        canvas = self.paint(t)
        stamp_ns = round(index * 1e9 / self.rate_hz)
        name = f"rendered_{self.seed}_{index:06d}"
        return LabelledFrame(self._developed(canvas.image, t), canvas.label, stamp_ns, name)

    def camera(self, t: float) -> Camera:
        """The camera at ``t`` seconds."""
        lens, s, d = self.look.lens, self.ego.distance(t), self.ego.offset(t)
        x, y, _ = self.line.at(s, d)
        focal = lens.focal * self.size[1]
        # It follows the road as a car does: its heading is the road's, a little ahead.
        heading = self.line.frame(s + 2.0)[2] + self.ego.yaw(t)
        horizon = lens.horizon * self.size[0] + focal * self.ego.pitch(t)
        return Camera(self.size, focal, horizon, (float(x), float(y), lens.height), heading)

    def paint(self, t: float) -> Canvas:
        """The scene at ``t`` seconds, before the lens' blur, noise and tone."""
        canvas = Canvas(self.camera(t), self.look.light.skyline, self.look.light.visibility)
        s = self.ego.distance(t)
        self._sky.paint(canvas)
        paint_ground(canvas, self.look, self.line, self.layout, self._markings, s)
        things = self.layout.things.in_view(s) + self.traffic.at(t)
        for _, thing in sorted(things, key=lambda item: -item[0]):
            thing.paint(canvas)
        return canvas

    def _developed(self, image: np.ndarray, t: float) -> np.ndarray:
        """``image`` as the camera delivers it: exposure that drifts, blur, grain."""
        lens = self.look.lens
        drift = 1.0 + 0.06 * np.sin(0.7 * t + self.seed) + 0.03 * np.sin(2.3 * t)
        table = np.clip(self._tone * drift, 0, 255).astype(np.uint8)
        image = cv2.LUT(image, table)
        if lens.blur > 0.25:
            image = cv2.GaussianBlur(image, (0, 0), lens.blur)
        height, width = self.size
        grain = pictures.film_grain(height, width)
        rng = np.random.default_rng([self.seed, 99, round(t * 1e6)])
        top, left = (int(v) for v in rng.integers((height, width)))
        part = np.ascontiguousarray(grain[top : top + height, left : left + width])
        return cv2.addWeighted(image, 1.0, part, lens.noise / 16, 0.0, dtype=cv2.CV_8U)


def _tone_curve(gain: tuple[float, float, float], gamma: float) -> np.ndarray:
    """Look-up table float (1, 256, 3) of white balance, contrast and gamma."""
    level = np.linspace(0.0, 1.0, 256)[:, None]
    return (255 * level**gamma * np.asarray(gain))[None]
