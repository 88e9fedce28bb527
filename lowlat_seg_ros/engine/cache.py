"""The current key frame: an immutable record that is swapped whole (rule 4 of the scheduling)."""

from __future__ import annotations

import threading
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from lowlat_seg_ros.engine.resize import Geometry

#: Seconds between frames that are assumed where stamps stand still: 15 Hz.
NOMINAL_PERIOD_S = 1 / 15


@dataclass(frozen=True, eq=False)
class Seen:
    """A frame that Sh has seen, by its stamp and its number among those of the engine.

    ``answers`` (1, classes, r*H/8, r*W/8) are the full network's and ``luma`` uint8 (H/2, W/2) is
    the frame's, where answers are carried by optical flow (``fine_carry``): neither changes as
    long as no newer frame has been seen by Sh.
    """

    stamp_ns: int
    index: int
    luma: np.ndarray | None = None
    answers: Tensor | None = None

    def age_s(self, stamp_ns: int, index: int) -> float:
        """Seconds from it to a later frame; by the number of frames where stamps stand still."""
        elapsed_s = (stamp_ns - self.stamp_ns) / 1e9
        return elapsed_s if elapsed_s > 0 else (index - self.index) * NOMINAL_PERIOD_S


@dataclass(frozen=True, eq=False)
class KeyFrame:
    """All that later frames need of a key frame k.

    ``source`` is what Sh begins with: F_l (1, Cl, H/8, W/8), or the normalised image (1, 3, H, W)
    where Sl is an encoder of its own; ``reduced`` and ``selector_reduced`` (1, width, H/8, W/8) are
    the kernel predictor's and the selector's reductions of it, and ``remembered``, of that shape,
    what the predictor needs of it as key frame: each computed once. ``high`` is F_h
    (1, Ch, H/8, W/8): from Sh when ``exact``, carried over while provisional, None if no Sh has
    succeeded in this epoch yet. ``geometry`` is the size that all of them have: the frame's own,
    or where ``resampled`` another one that the stream went over to (see :mod:`rescale`). ``index``
    numbers the frame among those of the engine, and ``luma`` is its own, see :class:`Seen`.
    ``seen`` is the frame that Sh has seen for ``high``: this one where it is exact, else an older
    one.
    """

    source: Tensor
    reduced: Tensor
    remembered: Tensor
    selector_reduced: Tensor
    high: Tensor | None
    geometry: Geometry
    stamp_ns: int
    index: int
    epoch: int
    exact: bool
    resampled: bool = False
    frame_id: str = ""
    seen: Seen | None = None
    luma: np.ndarray | None = None

    def seen_with(self, answers: Tensor | None) -> Seen:
        """This frame, as what Sh has seen and answered."""
        return Seen(self.stamp_ns, self.index, self.luma, answers)


class KeyFrameCache:
    """Owner of the current key frame and of the epoch; compare-and-swap is the only way to write.

    Both tracks read a record and compute on it without a lock; whoever replaces it names the
    record that its work was based on, and is refused if that is no longer the current one.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._current: KeyFrame | None = None
        self._epoch = 0

    def snapshot(self) -> tuple[KeyFrame | None, int]:
        """The current key frame, None at the start of an epoch, and the epoch."""
        with self._lock:
            return self._current, self._epoch

    def replace(self, expected: KeyFrame | None, new: KeyFrame) -> bool:
        """Make ``new`` current if ``expected`` still is and no reset came in between."""
        with self._lock:
            if self._current is not expected or new.epoch != self._epoch:
                return False
            self._current = new
            return True

    def begin_epoch(self) -> None:
        """Forget the key frame; nothing computed before this call is accepted any more."""
        with self._lock:
            self._current = None
            self._epoch += 1
