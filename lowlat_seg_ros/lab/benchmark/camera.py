"""Frames as a camera gives them: the same drive again and again, stamped and paced."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence

import cv2
import numpy as np

from lowlat_seg_ros.frames import Frame
from lowlat_seg_ros.lab.evaluation import clip

#: Different images of a run; time does not depend on what is seen.
IMAGES = 20


class Camera:
    """Cycles through ``images``, uint8 (H, W, 3) of one size; stamps are the machine's time."""

    def __init__(self, images: Sequence[np.ndarray]) -> None:
        self.images = tuple(images)
        self._next = itertools.cycle(self.images)

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) in pixels."""
        height, width = self.images[0].shape[:2]
        return height, width

    def frame(self) -> Frame:
        """The next frame, taken now."""
        return Frame(next(self._next), time.perf_counter_ns())

    def resized(self, height: int, width: int) -> Camera:
        """A camera that sees the same at another size."""
        return Camera([cv2.resize(image, (width, height)) for image in self.images])


def rendered(
    size: tuple[int, int] | None, rate_hz: float, images: int, progress: Callable[[int], object]
) -> Camera:
    """A rendered drive of ``size`` (H, W), as a camera of ``rate_hz`` sees it.

    Raises ``DataError`` for a size that cannot be rendered.
    """
    _, drive = clip.rendered(1, images, rate_hz, size)
    seen = []
    for index in range(images):
        seen.append(drive[index].image)
        progress(1)
    return Camera(seen)


class Pace:
    """Waits for each next frame of a camera of ``rate_hz``; 0 for one that is always ready.

    A frame that comes late does not make the ones after it come early: as with a real camera and a
    queue of one, what was missed is gone.
    """

    def __init__(self, rate_hz: float) -> None:
        self._period_s = 1 / rate_hz if rate_hz else 0.0
        self._due = time.perf_counter()

    def wait(self) -> None:
        """Return when the next frame is due, at once if it is overdue."""
        now = time.perf_counter()
        if now < self._due:
            time.sleep(self._due - now)
        self._due = max(now, self._due) + self._period_s
