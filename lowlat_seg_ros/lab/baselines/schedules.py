"""When a frame becomes a key frame: at fixed intervals, or when a measure of change says so.

The three schedules of the paper's Fig. 5. They decide before the frame is segmented, as a key
frame's mask comes from Sh.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from lowlat_seg_ros.network.fast_track import KeyFrameSelector


class Measure(Protocol):
    """How far a frame is from the key frame, by their low-level features F_l."""

    def reduce(self, low: Tensor) -> Tensor:
        """What is compared of a frame; that of the key frame is kept."""

    def change(self, reduced_key: Tensor, reduced: Tensor) -> float:
        """A number that grows with the distance."""


class FeatureChange:
    """Relative change of F_l, mean |F_l(t) - F_l(k)| / mean |F_l(k)|: nothing is learned."""

    def reduce(self, low: Tensor) -> Tensor:
        return low.float()

    def change(self, reduced_key: Tensor, reduced: Tensor) -> float:
        scale = reduced_key.abs().mean().clamp(min=1e-6)
        return float((reduced - reduced_key).abs().mean() / scale)


class PredictedDeviation:
    """The learned selector's deviation, a share of pixels (paper Sec. 3.2)."""

    def __init__(self, selector: KeyFrameSelector) -> None:
        self._selector = selector

    def reduce(self, low: Tensor) -> Tensor:
        return self._selector.reduce(low)

    def change(self, reduced_key: Tensor, reduced: Tensor) -> float:
        return float(self._selector.deviation(reduced_key, reduced))


class Schedule(Protocol):
    """Decides for every frame but the first."""

    needs_low: bool

    def is_key(self, age_frames: int, low: Tensor | None) -> bool:
        """Whether a frame ``age_frames`` after the key frame becomes the next one."""

    def keep(self, low: Tensor) -> None:
        """The frame with these features is the key frame from now on."""


class Fixed:
    """A key frame every ``interval`` frames."""

    needs_low = False

    def __init__(self, interval: int) -> None:
        if interval < 1:
            raise ValueError(f"interval is {interval}; it must be at least 1 frame")
        self.interval = interval

    def is_key(self, age_frames: int, low: Tensor | None) -> bool:
        return age_frames >= self.interval

    def keep(self, low: Tensor) -> None:
        """Frames are only counted."""


class Threshold:
    """A key frame where ``measure`` exceeds ``threshold``."""

    needs_low = True

    def __init__(self, measure: Measure, threshold: float) -> None:
        self.measure, self.threshold = measure, threshold
        self._key: Tensor | None = None
        self._newest: tuple[Tensor, Tensor] | None = None  # F_l of the newest frame, reduced

    def is_key(self, age_frames: int, low: Tensor | None) -> bool:
        if low is None or self._key is None:
            raise ValueError("F_l of this frame and of the key frame are needed to compare them")
        reduced = self.measure.reduce(low)
        self._newest = (low, reduced)
        return self.measure.change(self._key, reduced) > self.threshold

    def keep(self, low: Tensor) -> None:
        known = self._newest is not None and self._newest[0] is low
        self._key = self._newest[1] if known and self._newest else self.measure.reduce(low)
        self._newest = None
