"""Videos of a run: input beside overlay, with a caption that says where the mask comes from."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np

from lowlat_seg_ros.lab.evaluation.summary import Answer
from lowlat_seg_ros.labels import ClassTable, overlay

#: Height of a line of the caption, and of its letters, at a picture width of 960 px.
_LINE, _SCALE = 24, 0.45
_WHITE, _GREY, _KEY = (255, 255, 255), (150, 150, 150), (238, 102, 170)


class VideoWriter:
    """H.264 in MP4 (yuv420p, which every player knows); a context manager.

    ``size`` (H, W) of the pictures; an odd height or width is extended by a copy of its last line.
    """

    def __init__(self, path: Path, size: tuple[int, int], rate_hz: float) -> None:
        self._size = size
        # The index goes to the front, so that browsers play before all is loaded.
        self._container = av.open(str(path), "w", options={"movflags": "faststart"})
        rate = Fraction(rate_hz).limit_denominator(1000)
        self._stream = self._container.add_stream("libx264", rate=rate, options={"crf": "20"})
        self._stream.height, self._stream.width = (side + side % 2 for side in size)
        self._stream.pix_fmt = "yuv420p"

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def write(self, picture: np.ndarray) -> None:
        """Add one picture, uint8 (H, W, 3) RGB; ValueError if it has another size."""
        if picture.shape != (*self._size, 3):
            raise ValueError(f"picture is {picture.shape}; it must be {(*self._size, 3)}")
        odd = [(0, side % 2) for side in self._size]
        even = np.pad(picture, (*odd, (0, 0)), mode="edge")
        self._container.mux(self._stream.encode(av.VideoFrame.from_ndarray(even, "rgb24")))

    def close(self) -> None:
        """Write what is still in the encoder, and the index."""
        self._container.mux(self._stream.encode(None))
        self._container.close()


class Storyboard:
    """Pictures for a clip of ``count`` frames of ``size`` (H, W): input, overlay, a caption."""

    def __init__(self, count: int, size: tuple[int, int], table: ClassTable) -> None:
        self._count, self._table = count, table
        self._unit = 2 * size[1] / 960
        self._line = max(1, round(_LINE * self._unit))
        self._legend = self._strip()
        self._draw_legend(self._legend)
        self.size = (size[0] + 3 * self._line, 2 * size[1])

    def picture(self, index: int, image: np.ndarray, answer: Answer | None) -> np.ndarray:
        """uint8 RGB of :attr:`size` for frame ``index``; without an ``answer`` it says so."""
        right = image // 3
        if answer is not None:
            right = overlay(image, answer.segmentation.mask, self._table)
        first, second = self._strip(), self._strip()
        self._write(first, 0.01, f"frame {index + 1} of {self._count}", _WHITE)
        if answer is None:
            self._write(first, 0.17, "no mask: superseded by a newer frame, or lost", _KEY)
        else:
            self._caption(first, second, answer)
        return np.concatenate([np.hstack([image, right]), first, second, self._legend])

    def _caption(self, first: np.ndarray, second: np.ndarray, answer: Answer) -> None:
        source = answer.segmentation.provenance
        origin = source.kind.value
        if source.reset is not None:
            origin += f": {source.reset.value.replace('_', ' ')}"
        if source.key_age_frames:
            exact = "exact" if source.exact else "provisional"
            frames = "1 frame" if source.key_age_frames == 1 else f"{source.key_age_frames} frames"
            origin += f" from {exact} key frame {frames} ({source.key_age_ms:.0f} ms) ago"
        self._write(first, 0.17, origin, _WHITE)
        engine_ms = answer.segmentation.timing.latency_ms
        times = f"engine {engine_ms:.0f} ms, camera to mask {answer.received_ms:.0f} ms"
        self._write(first, 0.66, times, _WHITE)
        selection = answer.segmentation.selection
        if selection is not None:
            relation = ">" if selection.deviation > selection.threshold else "<="
            verdict = f"predicted deviation {selection.deviation:.3f} {relation} "
            self._write(second, 0.17, verdict + f"{selection.threshold:.3f}", _GREY)
            if selection.is_key:
                why = "" if selection.deviation > selection.threshold else ", Sh being idle"
                self._write(second, 0.66, f"becomes the key frame{why}", _KEY)

    def _strip(self) -> np.ndarray:
        return np.zeros((self._line, round(960 * self._unit), 3), np.uint8)

    def _draw_legend(self, strip: np.ndarray) -> None:
        """Swatch and name of each class, as wide as their names ask for."""
        lengths = [len(name) + 3 for name in self._table.names]
        starts = np.cumsum([0, *lengths]) / sum(lengths)
        side = self._line // 2
        for name, colour, start in zip(
            self._table.names, self._table.colours, starts, strict=False
        ):
            left, top = round((0.01 + 0.98 * start) * strip.shape[1]), self._line // 4
            strip[top : top + side, left : left + side] = colour
            self._write(strip, 0.01 + 0.98 * start + 1.3 * side / strip.shape[1], name, _WHITE)

    def _write(
        self, strip: np.ndarray, left: float, text: str, colour: tuple[int, int, int]
    ) -> None:
        """Draw ``text`` from ``left``, a share of the width."""
        corner = round(left * strip.shape[1]), round(0.7 * self._line)
        cv2.putText(strip, text, corner, cv2.FONT_HERSHEY_SIMPLEX, _SCALE * self._unit, colour, 1,
                    cv2.LINE_AA)  # fmt: skip
