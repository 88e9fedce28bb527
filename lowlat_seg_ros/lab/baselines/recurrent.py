"""The cell of GRFP: a gated recurrent warp of class probabilities.

Nilsson, Sminchisescu, "Semantic Video Segmentation by Gated Recurrent Flow Propagation" (CVPR
2018), its STGRU, Eqs. 1 to 5, forward in time, at the size of the logits.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lowlat_seg_ros.lab.baselines.flow import FlowNetwork, warp

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
