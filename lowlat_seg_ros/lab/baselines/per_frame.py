"""A network on every frame by itself: what needs neither key frames nor propagation."""

from __future__ import annotations

import time
from collections.abc import Callable

from torch import Tensor

from lowlat_seg_ros.config import EngineConfig
from lowlat_seg_ros.engine.timing import Clock, Stopwatch
from lowlat_seg_ros.frames import MaskKind
from lowlat_seg_ros.lab.baselines.stream import Stream
from lowlat_seg_ros.network.segmenter import Segmenter


class PerFrameEngine(Stream):
    """``network`` maps a normalised image (1, 3, H, W) to logits (1, classes, h, w).

    ``kind`` says what its masks are: ``FULL`` makes every frame a key frame, as it owes nothing to
    another; ``DEGRADED`` is Sl and AdaptNet alone, without any key frame.
    """

    def __init__(
        self,
        segmenter: Segmenter,
        network: Callable[[Tensor], Tensor],
        kind: MaskKind,
        config: EngineConfig = EngineConfig(),  # noqa: B008 - frozen
        *,
        clock: Clock = time.perf_counter_ns,
    ) -> None:
        super().__init__(segmenter, config, clock=clock)
        self._network, self._kind = network, kind
        self._name = object()  # of this network and no other

    def step(self, image: Tensor, key_age: int | None, watch: Stopwatch) -> tuple[Tensor, MaskKind]:
        """The network's answer."""
        with watch.stage("lower_ms"):
            return self.runner.run(self._name, self._network, image), self._kind

    def forget(self) -> None:
        """Nothing is kept."""


def single_frame(segmenter: Segmenter, config: EngineConfig) -> PerFrameEngine:
    """Sl, AdaptNet and the auxiliary classifier on every frame: no key frame, no propagation."""

    def network(image: Tensor) -> Tensor:
        return segmenter.classify_low(segmenter.lower(image))

    return PerFrameEngine(segmenter, network, MaskKind.DEGRADED, config)
