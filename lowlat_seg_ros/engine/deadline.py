"""The deadline: which masks come too late, and what load is shed while too many do.

The latency that counts runs from a frame's arrival on this machine to its mask: the time that it
waited for the engine, and the engine's own. It is not the engine's time alone, because what comes
after a mask (selector, pictures) makes no mask later but the next one, by that wait. It is not the
age since the image's stamp either: exposure and transport cannot be shed, and the stamp is of the
camera's clock, of a bag or of a simulation. The age stands in every report beside it.

Nothing here knows a clock or a thread: latencies go in, the level comes out.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from lowlat_seg_ros.frames import Deadline

#: One level up after so many late masks among the newest UP_WINDOW of the present level: one slow
#: frame (a full one, say) sheds nothing.
UP_MISSES = 3
UP_WINDOW = 10
#: One level down after so many frames in a row that would fit there too. Should they not fit after
#: all, UP_MISSES of them are late, so that trying costs at most one late mask in ten.
DOWN_FRAMES = 30
#: A frame is taken to cost this much more a level further down, where its size stays the same.
MARGIN = 1.25


@dataclass(frozen=True)
class Level:
    """What is done less of, and said of it in diagnostics.

    ``selector_every``: the selector runs on every so-many-th frame after the key frame.
    ``pictures``: whether the node makes overlays and colour masks. ``slow_share``: upper bound of
    ``EngineConfig.slow_track_min_share``. ``scale``: of the sides of the network's input.
    """

    doc: str
    selector_every: int = 1
    pictures: bool = True
    slow_share: float = 1.0
    scale: float = 1.0


#: Each sheds what those before it do, and more. Masks do not drift without end on any of them: the
#: verdict on a key frame comes two frames later at most, max_key_interval is kept to the frame, and
#: Sh keeps a share, as with none its exact features might not arrive while the load lasts.
LEVELS = (
    Level("nothing is shed"),
    Level("the selector runs on every third frame", 3),
    Level("also no overlay or colour mask, and Sh has 5 % of a busy time at most", 3, False, 0.05),
    Level("also the network runs at 3/4 of its width and height", 3, False, 0.05, 3 / 4),
    Level("also the network runs at 1/2 of its width and height", 3, False, 0.05, 1 / 2),
)


class LoadShedder:
    """Chooses the level; used by one thread. A change of the limit clears what it has seen."""

    def __init__(self) -> None:
        self._limit_ms = 0.0
        self._level = 0
        self._late: deque[bool] = deque(maxlen=UP_WINDOW)
        self._roomy = 0  # frames in a row that would fit one level down

    def begin(self, limit_ms: float) -> Level:
        """The level of the next frame; ``limit_ms`` is the deadline from now on, 0 for none."""
        if limit_ms != self._limit_ms:
            self._limit_ms = limit_ms
            self._go_to(self._level if limit_ms > 0 else 0)
        return LEVELS[self._level]

    def mask_out(self, latency_ms: float) -> Deadline:
        """The frame's mask came ``latency_ms`` after the frame; what is to be said of it."""
        missed = 0 < self._limit_ms < latency_ms
        result = Deadline(self._level, latency_ms, missed)
        if self._limit_ms > 0:
            self._late.append(missed)
            fits_below = latency_ms * growth(self._level) <= self._limit_ms
            self._roomy = self._roomy + 1 if fits_below else 0
            if sum(self._late) >= UP_MISSES and self._level < len(LEVELS) - 1:
                self._go_to(self._level + 1)
            elif self._roomy >= DOWN_FRAMES and self._level > 0:
                self._go_to(self._level - 1)
        return result

    def _go_to(self, level: int) -> None:
        self._level, self._roomy = level, 0
        self._late.clear()


def growth(level: int) -> float:
    """How many times longer a frame may take one level below ``level``: as its pixels grow."""
    if level == 0:
        return MARGIN
    return max(MARGIN, (LEVELS[level - 1].scale / LEVELS[level].scale) ** 2)
