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
    are shared over channels, and it makes propagation and fusion cheap. ``context_skip`` lets F_l
    in once more, as in DeepLabv3+ (Chen et al., ECCV 2018): what is thinner than a cell of the
    last stage is lost on the way through it.
    """

    def __init__(self, low_channels: int, in_channels: int, config: NetworkConfig) -> None:
        super().__init__()
        self.bins = config.context_bins
        self.branches = nn.ModuleList(
            conv_bn_relu(in_channels, config.context_channels, kernel=1) for _ in self.bins
        )
        skip = config.context_skip
        self.skip = conv_bn_relu(low_channels, skip, kernel=1) if skip else None
        total = in_channels + len(self.bins) * config.context_channels + skip
        merged = config.context_merge or config.high_channels
        self.merge = conv_bn_relu(total, merged)
        self.project = nn.Conv2d(merged, config.high_channels, 1)

    def forward(self, x: Tensor, low: Tensor) -> Tensor:
        """(N, C, h, w) of Sh's last stage and F_l (N, Cl, H/8, W/8) -> F_h (N, Ch, H/8, W/8)."""
        pooled = [
            F.interpolate(branch(F.adaptive_avg_pool2d(x, grid)), x.shape[2:], mode="bilinear")
            for branch, grid in zip(self.branches, self.bins, strict=True)
        ]
        seen = torch.cat([x, *pooled], dim=1)
        if self.skip is not None:
            seen = torch.cat([_to(seen, low), self.skip(low)], dim=1)
        return _to(self.project(self.merge(seen)), low)


def _to(x: Tensor, low: Tensor) -> Tensor:
    """``x`` at the size of ``low``, which differs at output stride 16."""
    if x.shape[2:] == low.shape[2:]:
        return x
    return F.interpolate(x, low.shape[2:], mode="bilinear")
