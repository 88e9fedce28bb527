"""GRFP: the full network on every frame, and a gated recurrent warp of class probabilities.

Nilsson, Sminchisescu, "Semantic Video Segmentation by Gated Recurrent Flow Propagation" (CVPR
2018), its STGRU, Eqs. 1 to 5, forward in time, at the size of the logits.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lowlat_seg_ros.config import EngineConfig
from lowlat_seg_ros.frames import MaskKind
from lowlat_seg_ros.lab.baselines.flow import FlowNetwork, half_size, warp
from lowlat_seg_ros.lab.baselines.stream import Now, Stream
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
        # The gate is open at first, so that the cell begins with the network's own answer.
        assert self.gate_input.bias is not None
        nn.init.constant_(self.gate_input.bias, 3.0)
        nn.init.dirac_(self.from_input.weight)
        self.from_input.weight.data *= SHARPNESS
        for conv in (self.from_past, self.gate_input, self.gate_past):
            nn.init.normal_(conv.weight, std=0.01)

    def forward(self, past: Tensor, image_past: Tensor, image: Tensor, now: Tensor) -> Tensor:
        """Logits (N, classes, h, w) of the current frame.

        ``past`` and ``now`` are probabilities (N, classes, h, w), the cell's of the frame before
        and the network's; the images (N, 3, H/2, W/2) are at half size.
        """
        size, flow = (now.shape[2], now.shape[3]), self.flow(image_past, image)
        if flow.shape[2:] != size:  # several answers per cell: flow is counted in theirs
            finer = size[0] / flow.shape[2]
            flow = finer * F.interpolate(flow, size, mode="bilinear")
        pictures = (F.adaptive_avg_pool2d(picture, size) for picture in (image_past, image))
        before, current = (picture.float() for picture in pictures)
        warped = warp(past, flow)
        reset = 1 - torch.tanh(self.misfit(current - warp(before, flow)).abs())
        candidate = self.from_input(now) + self.from_past(reset * warped)
        gate = torch.sigmoid(self.gate_input(now) + self.gate_past(warped))
        return self.sharpness * (1 - gate) * reset * warped + gate * candidate


class GrfpEngine(Stream):
    """The full network on every frame, and from the second one on the cell: it is not fast."""

    def __init__(
        self,
        segmenter: Segmenter,
        cell: GatedRecurrentWarp,
        config: EngineConfig = EngineConfig(),  # noqa: B008 - frozen
    ) -> None:
        super().__init__(segmenter, config)
        self._cell = cell
        self._past: tuple[Tensor, Tensor] | None = None  # probabilities and image of the last frame

    def step(self, now: Now) -> tuple[Tensor, MaskKind]:
        runner = self.runner
        with now.watch.stage("lower_ms"):
            source = runner.source(now.image)
        with now.watch.stage("higher_ms"):
            logits = runner.classify_high(runner.higher(source))
        with now.watch.stage("propagation_ms"):
            # In bfloat16 the means would be rounded.
            small = runner.clone(self.run("half size", lambda x: half_size(x.float()), now.image))
            if self._past is not None:
                logits = self.run("cell", self._answer, *self._past, small, logits)
            probabilities = self.run("probabilities", lambda x: x.softmax(dim=1), logits)
            self._past = runner.clone(probabilities), small
        return logits, MaskKind.FULL

    def _answer(self, past: Tensor, image_past: Tensor, image: Tensor, logits: Tensor) -> Tensor:
        answer: Tensor = self._cell(past, image_past, image, logits.softmax(dim=1))
        return answer

    def forget(self) -> None:
        self._past = None
