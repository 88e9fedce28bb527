"""One reduction of F_l that selector, predictor and AdaptNet share (beyond the paper).

As published each of them begins with a 3x3 convolution of all of F_l's channels, which at 1024 of
them costs as much as all that follows. Here one convolution serves all three. It is computed once
per frame and kept with the key frame. Where Sh goes on from F_l its answer travels with F_l, as
further channels; where Sh reads the image nobody reads anything else, and it takes F_l's place.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lowlat_seg_ros.network.layers import conv_bn_relu


class SharedReduction(nn.Module):
    """F_l (N, Cl, H/8, W/8) -> its reduction (N, width, H/8, W/8), after F_l's channels if kept."""

    def __init__(self, low_channels: int, width: int, kernel: int, keeps: bool) -> None:
        """``keeps``: whether F_l is part of the answer, unchanged."""
        super().__init__()
        self.reduce, self.keeps = conv_bn_relu(low_channels, width, kernel), keeps

    def forward(self, low: Tensor) -> Tensor:
        """What travels as F_l."""
        reduced: Tensor = self.reduce(low)
        return torch.cat([low, reduced], dim=1) if self.keeps else reduced


class Reduced(nn.Module):
    """The reduction (N, width, H/8, W/8) out of what :class:`SharedReduction` gave."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, low: Tensor) -> Tensor:
        """A copy if F_l came with it, so that whoever keeps it does not keep F_l."""
        if low.shape[1] == self.width:
            return low
        return low[:, -self.width :].contiguous(memory_format=torch.channels_last)
