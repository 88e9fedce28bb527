"""One reduction of F_l that selector, predictor and AdaptNet share (beyond the paper).

As published each of them begins with a 3x3 convolution of all of F_l's channels, which at 1024 of
them costs as much as all that follows. Here one 1x1 convolution serves all three. Its answer
travels with F_l, as further channels, and so is computed once per frame and kept with the key
frame.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lowlat_seg_ros.network.layers import conv_bn_relu


class SharedReduction(nn.Module):
    """F_l (N, Cl, H/8, W/8) -> F_l and its reduction (N, Cl + width, H/8, W/8)."""

    def __init__(self, low_channels: int, width: int) -> None:
        super().__init__()
        self.reduce = conv_bn_relu(low_channels, width, kernel=1)

    def forward(self, low: Tensor) -> Tensor:
        """F_l is part of the answer unchanged."""
        return torch.cat([low, self.reduce(low)], dim=1)


class Reduced(nn.Module):
    """The reduction (N, width, H/8, W/8) out of what :class:`SharedReduction` gave, copied."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, low: Tensor) -> Tensor:
        """A copy, so that whoever keeps it does not keep F_l."""
        return low[:, -self.width :].contiguous(memory_format=torch.channels_last)
