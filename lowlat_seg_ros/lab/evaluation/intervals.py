"""Thresholds at which a schedule takes a wanted share of key frames, so that shares are equal.

They are set on the footage that is evaluated, which needs no labels, for the threshold and the
adaptive schedule alike: Fig. 5 compares which frames a schedule takes, not how well a threshold
carries over from other drives.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from lowlat_seg_ros.config import EngineConfig
from lowlat_seg_ros.engine import preprocess
from lowlat_seg_ros.lab.baselines.schedules import Measure
from lowlat_seg_ros.lab.evaluation.footage import Footage
from lowlat_seg_ros.network.segmenter import Segmenter

#: Halvings of the range of thresholds: enough where all frames are about as far from each other.
_HALVINGS = 20


@torch.inference_mode()
def low_features(
    segmenter: Segmenter,
    footage: Footage,
    config: EngineConfig,
    progress: Callable[[int], object],
) -> list[Tensor]:
    """F_l of every frame, in half precision to save memory."""
    found = []
    for frame in footage.frames:
        geometry = preprocess.plan(frame.image.shape[:2], config.inference_height)
        image = preprocess.network_input(frame.image, geometry, segmenter)
        found.append(segmenter.lower(image).half())
        progress(1)
    return found


class Replay:
    """A schedule by ``measure``, replayed on features without segmenting anything."""

    @torch.inference_mode()
    def __init__(self, measure: Measure, lows: list[Tensor], drives: Iterable[range]) -> None:
        self._measure = measure
        self._reduced = [measure.reduce(low.float()) for low in lows]
        self._drives = tuple(drives)
        self._known: dict[tuple[int, int], float] = {}

    def keys(self, threshold: float) -> int:
        """Key frames that the schedule takes at ``threshold``, the first of each drive included."""
        count = 0
        for drive in self._drives:
            key, count = drive[0], count + 1
            for index in drive[1:]:
                if self._change(key, index) > threshold:
                    key, count = index, count + 1
        return count

    @torch.inference_mode()
    def _change(self, key: int, index: int) -> float:
        if (key, index) not in self._known:
            change = self._measure.change(self._reduced[key], self._reduced[index])
            self._known[key, index] = change
        return self._known[key, index]

    def threshold(self, interval: int) -> float:
        """The threshold that comes nearest to one key frame every ``interval`` frames."""
        wanted = len(self._reduced) / interval
        low, high = 0.0, self._largest()
        tried = {high: self.keys(high), low: self.keys(low)}
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            tried[middle] = self.keys(middle)
            low, high = (middle, high) if tried[middle] > wanted else (low, middle)
        return min(tried, key=lambda t: abs(tried[t] - wanted))

    def _largest(self) -> float:
        """A threshold that nothing on the way exceeds: the change from each drive's first frame."""
        changes = [self._change(drive[0], index) for drive in self._drives for index in drive]
        return max(changes)
