"""GRFP: the full network on every frame, and a gated recurrent warp of the masks before.

Nilsson, Sminchisescu, "Semantic Video Segmentation by Gated Recurrent Flow Propagation" (CVPR
2018), its STGRU, Eqs. 1 to 5, forward in time, on class probabilities at 1/8.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lowlat_seg_ros.baselines.flow import FlowNetwork, half_size, warp
from lowlat_seg_ros.baselines.stream import Stream
from lowlat_seg_ros.config import EngineConfig
from lowlat_seg_ros.engine.latency import Clock, Stopwatch
from lowlat_seg_ros.frames import MaskKind
from lowlat_seg_ros.network.segmenter import Segmenter

#: How sharp the cell's answer is to begin with: its logits are this many times a probability.
SHARPNESS = 5.0


class GatedRecurrentWarp(nn.Module):
    """STGRU: where the warped image fits, the past is believed; elsewhere the present."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.flow = FlowNetwork()
        self.misfit = nn.Conv2d(3, 1, 3, padding=1)
        self.from_input = nn.Conv2d(classes, classes, 3, padding=1, bias=False)
        self.from_past = nn.Conv2d(classes, classes, 3, padding=1, bias=False)
        self.gate_input = nn.Conv2d(classes, classes, 3, padding=1)
        self.gate_past = nn.Conv2d(classes, classes, 3, padding=1, bias=False)
        self.sharpness = nn.Parameter(torch.tensor([SHARPNESS]))
        # To begin with it answers what the network says now, the gate being open for it.
        assert self.gate_input.bias is not None
        nn.init.constant_(self.gate_input.bias, 3.0)
        nn.init.dirac_(self.from_input.weight)
        self.from_input.weight.data *= SHARPNESS
        for conv in (self.from_past, self.gate_input, self.gate_past):
            nn.init.normal_(conv.weight, std=0.01)

    def forward(self, past: Tensor, image_past: Tensor, image: Tensor, now: Tensor) -> Tensor:
        """Logits (N, classes, h, w) of the current frame.

        ``past`` and ``now`` are probabilities (N, classes, h, w), the cell's of the frame before
        and the network's; the images (N, 3, 4h, 4w) are at half size.
        """
        flow = self.flow(image_past, image)
        size = (now.shape[2], now.shape[3])
        pictures = (F.adaptive_avg_pool2d(picture, size) for picture in (image_past, image))
        before, current = (picture.float() for picture in pictures)
        warped = warp(past, flow)
        reset = 1 - torch.tanh(self.misfit(current - warp(before, flow)).abs())
        candidate = self.from_input(now) + self.from_past(reset * warped)
        gate = torch.sigmoid(self.gate_input(now) + self.gate_past(warped))
        return self.sharpness * (1 - gate) * reset * warped + gate * candidate


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
            low = self.segmenter.lower(image)
        with watch.stage("higher_ms"):
            logits = self.segmenter.classify_high(self.segmenter.higher(low))
        with watch.stage("propagation_ms"):
            small = half_size(image)
            if self._past is not None:
                past = self._past
                logits = self._cell(past.probabilities, past.image, small, logits.softmax(dim=1))
            self._past = _Past(logits.softmax(dim=1), small)
        return logits, MaskKind.FULL

    def forget(self) -> None:
        """The next frame is answered by the network alone."""
        self._past = None
