"""The classes' colours and names, drawn into a corner of a picture."""

from __future__ import annotations

import cv2
import numpy as np

from lowlat_seg_ros.labels import ClassTable

#: A line's height in px: this share of the picture's, within bounds, so that it can be read.
LINE_SHARE, LINE_MIN, LINE_MAX = 1 / 30, 14, 40

_FONT, _SCALE = cv2.FONT_HERSHEY_SIMPLEX, 0.025  # of the letters, for a line of 1 px


class Legend:
    """Swatch and name of every class of ``table``; laid out once for each size of pictures."""

    def __init__(self, table: ClassTable) -> None:
        self._table = table
        self._size: tuple[int, ...] = ()
        self._ink: np.ndarray = np.zeros((0, 0, 3), np.float32)
        self._share = self._ink

    def draw(self, picture: np.ndarray) -> None:
        """Draw into the upper left corner of ``picture``, uint8 (H, W, 3) RGB, in place.

        What lies beneath is darkened. Where the names would take more than half of the width, or
        letters could not be read, nothing is drawn.
        """
        if picture.shape[:2] != self._size:
            self._size = picture.shape[:2]
            self._lay_out(*self._size)
        height, width = self._ink.shape[:2]
        corner = picture[:height, :width]
        # As float32: a corner is small, and rounding would show in the swatches.
        corner[:] = np.rint(corner * (1 - self._share) / 3 + self._ink)

    def _lay_out(self, height: int, width: int) -> None:
        """Set the ink, RGB in [0, 255] times its share, and the share of ink in every pixel."""
        names, line = self._table.names, round(min(max(height * LINE_SHARE, LINE_MIN), LINE_MAX))
        rows = min(len(names), height // line)
        scale = _SCALE * line
        text = max(cv2.getTextSize(name, _FONT, scale, 1)[0][0] for name in names)
        column, columns = text + 2 * line, -(-len(names) // rows) if rows else 0
        if not rows or columns * column > width / 2:
            self._ink = self._share = np.zeros((0, 0, 3), np.float32)
            return
        colours = np.full((rows * line, columns * column, 3), 255, np.uint8)
        share = np.zeros(colours.shape[:2], np.uint8)
        for index, (name, colour) in enumerate(zip(names, self._table.colours, strict=True)):
            left, top = index // rows * column, index % rows * line
            inset = line // 5
            swatch = np.s_[top + inset : top + line - inset, left + inset : left + line - inset]
            colours[swatch], share[swatch] = colour, 255
            corner = (left + line + inset, top + round(0.75 * line))
            cv2.putText(share, name, corner, _FONT, scale, 255, 1, cv2.LINE_AA)
        self._share = share[..., None].astype(np.float32) / 255
        self._ink = colours * self._share
