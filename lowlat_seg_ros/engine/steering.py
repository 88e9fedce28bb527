"""Key-frame budgets: the threshold steered so that a wanted share of frames becomes the key frame.

After each frame the logarithm of the threshold moves up by ``GAIN`` if the frame used what is
budgeted, and down by ``GAIN * target`` in any case. Whatever the deviations are, as long as they
lie between ``LOW`` and ``HIGH``, the share used over n frames then differs from the target by no
more than ``(ln(HIGH / LOW) + 2 * GAIN) / (GAIN * n)``: the steps add up to where the threshold is
now, and it cannot leave its bounds by more than a step (Gibbs and Candes, "Adaptive Conformal
Inference Under Distribution Shift", NeurIPS 2021, Proposition 4.1). Of a scene in which less than
``LOW`` changes fewer frames become the key frame than wanted.

Nothing here knows a clock or a thread.
"""

from __future__ import annotations

import math

from lowlat_seg_ros.config import EngineConfig

#: Bounds of a steered threshold: fractions of pixels. Above HIGH no frame becomes the key frame.
LOW, HIGH = 1e-3, 1.0
#: A factor of 3 takes some 50 frames at a share of 0.1; the threshold then ripples by a tenth.
GAIN = 0.2


class Steering:
    """One threshold on its way to where ``target`` of the frames use what it guards."""

    def __init__(self, start: float) -> None:
        """``start``: the threshold to begin at, a fraction of pixels."""
        self._log = math.log(min(max(start, LOW), HIGH))

    @property
    def threshold(self) -> float:
        """In [LOW, HIGH]."""
        return min(max(math.exp(self._log), LOW), HIGH)

    def observe(self, used: bool, target: float) -> None:
        """A frame ended; ``target`` is the wanted share in [0, 1] of those that ``used`` it."""
        log = self._log + GAIN * (used - target)
        self._log = min(max(log, math.log(LOW) - GAIN), math.log(HIGH) + GAIN)


class KeyFrameBudget:
    """The threshold under ``key_frame_budget`` and ``slow_track_budget``; used by one thread."""

    def __init__(self) -> None:
        self._share: Steering | None = None
        self._load: Steering | None = None

    def threshold(self, fixed: float, config: EngineConfig) -> float:
        """The threshold of the next frame: ``fixed`` without a budget, else the stricter one's.

        Steering begins at ``fixed``, anew after the budget was 0.
        """
        self._share = _steering(self._share, fixed, config.key_frame_budget)
        self._load = _steering(self._load, fixed, config.slow_track_budget)
        steered = [steering.threshold for steering in (self._share, self._load) if steering]
        return max(steered, default=fixed)

    def observe(self, is_key: bool, slow_track_busy: bool, config: EngineConfig) -> None:
        """A frame ended: whether it became the key frame, and whether Sh ran when it began."""
        if self._share is not None:
            self._share.observe(is_key, config.key_frame_budget)
        if self._load is not None:
            self._load.observe(slow_track_busy, config.slow_track_budget)


def _steering(present: Steering | None, start: float, target: float) -> Steering | None:
    if target <= 0:
        return None
    return present or Steering(start)
