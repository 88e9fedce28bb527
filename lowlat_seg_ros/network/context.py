"""The end of Sh: pyramid-pooling context and the projection to Ch channels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lowlat_seg_ros.config import NetworkConfig
from lowlat_seg_ros.network.layers import conv_bn_relu


class ContextHead(nn.Module):
    """PSPNet's pyramid pooling (Zhao et al. 2017), then an affine 1x1 projection to Ch.

    The projection comes before propagation: it commutes with Eq. (1), whose kernels sum to one and
    are shared over channels, and it makes propagation and fusion cheap.
    """

    def __init__(self, in_channels: int, config: NetworkConfig) -> None:
        super().__init__()
        self.bins = config.context_bins
        self.branches = nn.ModuleList(
            conv_bn_relu(in_channels, config.context_channels, kernel=1) for _ in self.bins
        )
        total = in_channels + len(self.bins) * config.context_channels
        self.merge = conv_bn_relu(total, config.high_channels)
        self.project = nn.Conv2d(config.high_channels, config.high_channels, 1)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """(N, C, h, w) of Sh's last stage -> F_h (N, Ch, H/8, W/8), where ``size`` = (H/8, W/8)."""
        pooled = [
            F.interpolate(branch(F.adaptive_avg_pool2d(x, grid)), x.shape[2:], mode="bilinear")
            for branch, grid in zip(self.branches, self.bins, strict=True)
        ]
        high = self.project(self.merge(torch.cat([x, *pooled], dim=1)))
        if high.shape[2:] == size:
            return high
        return F.interpolate(high, size, mode="bilinear")  # output stride 16
