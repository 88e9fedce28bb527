"""The full network on every frame: the reference for accuracy, and what the engine saves."""

from __future__ import annotations

from torch import Tensor

from lowlat_seg_ros.engine.timing import Stopwatch
from lowlat_seg_ros.frames import MaskKind
from lowlat_seg_ros.lab.baselines.stream import Stream


class FullEngine(Stream):
    """Sl, Sh and the classifier on F_h for each frame: every one is a key frame."""

    def step(self, image: Tensor, key_age: int | None, watch: Stopwatch) -> tuple[Tensor, MaskKind]:
        """The full mask."""
        with watch.stage("lower_ms"):
            source = self.runner.source(image)
        with watch.stage("higher_ms"):
            high = self.runner.higher(source)
        with watch.stage("fusion_ms"):
            return self.runner.classify_high(high), MaskKind.FULL

    def forget(self) -> None:
        """Frames do not depend on one another."""
