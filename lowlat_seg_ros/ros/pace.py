"""Whether the node keeps up with its cameras, and at which size it would."""

from __future__ import annotations

import math
import statistics
from collections import deque
from dataclasses import dataclass

from lowlat_seg_ros.ros.doctor import Finding, Severity

#: Frames over which the pace is measured, and as few as say something.
WINDOW, ENOUGH = 60, 20

#: Share of the time that a size which fits may need, by the number of its pixels.
ROOMY = 0.9

#: The network says little about images that are not as high as this.
LEAST_HEIGHT = 96


@dataclass(frozen=True)
class Pace:
    """What a frame takes, in the median, and the time between two images; 0 until both are known.

    ``takes_ms`` runs from the begin of its handling to its end, pictures of the mask included.
    ``height`` is that of the network's input.
    """

    takes_ms: float = 0.0
    period_ms: float = 0.0
    height: int = 0

    @property
    def load(self) -> float:
        """Share of the time that the camera's images need, above 1 if they need more."""
        return self.takes_ms / self.period_ms if self.period_ms else 0.0


class PaceMeter:
    """Over the newest frames of a camera; one thread writes, any may read."""

    def __init__(self) -> None:
        # When it began, images sent before it, what it took.
        self._frames: deque[tuple[int, int, float]] = deque(maxlen=WINDOW)

    def frame(self, began_ns: int, ended_ns: int, superseded: int) -> None:
        """A frame was worked on, on a monotonic clock; ``superseded`` images before it were not."""
        sent = self._frames[-1][1] + 1 + superseded if self._frames else 0
        self._frames.append((began_ns, sent, (ended_ns - began_ns) / 1e6))

    def pace(self, height: int) -> Pace:
        """How things stand now, with a network's input of this ``height``."""
        frames = self._frames.copy()
        if len(frames) < ENOUGH:
            return Pace()
        (began_ns, first, _), (ended_ns, last, _) = frames[0], frames[-1]
        takes_ms = statistics.median(took_ms for _, _, took_ms in frames)
        return Pace(takes_ms, (ended_ns - began_ns) / 1e6 / (last - first), height)


def examine_pace(pace: Pace, load: float) -> list[Finding]:
    """What to do where images come faster than frames are done.

    ``load``: share of the time that all cameras need together, which take turns.
    """
    if load <= 1.0:
        return []
    # The time goes with the pixels, nearly; whole cells of the network's features.
    fits = math.floor(pace.height * math.sqrt(ROOMY / load) / 8) * 8
    rate_hz = math.floor(10 * ROOMY * 1e3 / pace.period_ms / load) / 10
    slower = f"let the camera send at most {rate_hz:.1f} images a second"
    way = f"set inference_height, now {pace.height}, to {fits} or less, or {slower}"
    others = "" if load == pace.load else ", and the other cameras need the same thread"
    text = (
        f"images come every {pace.period_ms:.0f} ms but a frame takes {pace.takes_ms:.0f} ms "
        f"(median){others}, so that some are left out; {way if fits >= LEAST_HEIGHT else slower}"
    )
    return [Finding(Severity.WARN, text, "pace")]
