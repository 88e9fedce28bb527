"""AdaptNet and fusion: what the current frame's own low-level features add (Sec. 3.3, end)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lowlat_seg_ros.network.layers import conv_bn_relu


class AdaptNet(nn.Sequential):
    """Three 3x3 convolutions: F_l (N, Cl, H/8, W/8) -> adapted (N, width, H/8, W/8)."""

    def __init__(self, low_channels: int, width: int) -> None:
        super().__init__(
            conv_bn_relu(low_channels, width),
            conv_bn_relu(width, width),
            conv_bn_relu(width, width),
        )


class Fusion(nn.Module):
    """Propagated F_h and adapted F_l, concatenated and mixed by one 3x3 convolution."""

    def __init__(self, high_channels: int, width: int) -> None:
        super().__init__()
        self.mix = conv_bn_relu(high_channels + width, width)

    def forward(self, propagated: Tensor, adapted: Tensor) -> Tensor:
        """(N, Ch, H/8, W/8) and (N, width, H/8, W/8) -> fused (N, width, H/8, W/8)."""
        return self.mix(torch.cat([propagated, adapted], dim=1))
