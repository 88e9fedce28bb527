"""GRFP (Nilsson, Sminchisescu, CVPR 2018): the full network and a recurrent cell on every frame."""

from __future__ import annotations

import time
from dataclasses import dataclass

from torch import Tensor

from lowlat_seg_ros.config import EngineConfig
from lowlat_seg_ros.engine.timing import Clock, Stopwatch
from lowlat_seg_ros.frames import MaskKind
from lowlat_seg_ros.lab.baselines.flow import half_size
from lowlat_seg_ros.lab.baselines.recurrent import GatedRecurrentWarp
from lowlat_seg_ros.lab.baselines.stream import Stream
from lowlat_seg_ros.network.segmenter import Segmenter


@dataclass(frozen=True, eq=False)
class _Past:
    """Probabilities of the frame before, and its image at half size."""

    probabilities: Tensor
    image: Tensor


class GrfpEngine(Stream):
    """The full network's cost on every frame, plus the cell's: a bar for steadiness, not speed."""

    def __init__(
        self,
        segmenter: Segmenter,
        cell: GatedRecurrentWarp,
        config: EngineConfig = EngineConfig(),  # noqa: B008 - frozen
        *,
        clock: Clock = time.perf_counter_ns,
    ) -> None:
        super().__init__(segmenter, config, clock=clock)
        self._cell = cell
        self._past: _Past | None = None

    def step(self, image: Tensor, key_age: int | None, watch: Stopwatch) -> tuple[Tensor, MaskKind]:
        """The network's answer on the first frame, the cell's on all others."""
        with watch.stage("lower_ms"):
            source = self.segmenter.source(image)
        with watch.stage("higher_ms"):
            logits = self.segmenter.classify_high(self.segmenter.higher(source))
        with watch.stage("propagation_ms"):
            small = half_size(image.float())  # else means would be rounded, too
            if self._past is not None:
                past = self._past
                logits = self._cell(past.probabilities, past.image, small, logits.softmax(dim=1))
            self._past = _Past(logits.softmax(dim=1), small)
        return logits, MaskKind.FULL

    def forget(self) -> None:
        """The next frame is answered by the network alone."""
        self._past = None
