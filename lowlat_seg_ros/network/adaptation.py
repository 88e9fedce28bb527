"""AdaptNet and fusion: what the current frame's own low-level features add (Sec. 3.3, end)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lowlat_seg_ros.network.layers import conv_bn_relu, separable
from lowlat_seg_ros.network.sharing import Reduced


class AdaptNet(nn.Module):
    """``depth`` 3x3 convolutions: F_l (N, Cl, H/8, W/8) -> adapted (N, width, H/8, W/8).

    ``context`` channels of a second branch, 0 for none as in the paper, let it see beyond the
    few cells that Sl and three convolutions reach; without it a wide building and a wide truck
    look alike to the fast track.
    """

    def __init__(
        self,
        low_channels: int,
        width: int,
        context: int = 0,
        shares: bool = False,
        depth: int = 3,
        kernel: int = 3,
    ) -> None:
        """``shares``: the reduction of :mod:`sharing` stands for the first of ``depth``.

        ``kernel``: side of the first.
        """
        super().__init__()
        self.first = Reduced(width) if shares else conv_bn_relu(low_channels, width, kernel)
        self.second = conv_bn_relu(width, width) if depth > 1 else nn.Identity()
        self.third = conv_bn_relu(width, width) if depth > 2 else nn.Identity()
        self.far = FarBranch(width, context) if context else None

    def forward(self, low: Tensor) -> Tensor:
        """Adapted features."""
        first = self.first(low)
        near = self.second(first)
        adapted: Tensor = self.third(near if self.far is None else near + self.far(first))
        return adapted


class FarBranch(nn.Module):
    """Cheap depthwise blocks at strides 16 and 32, and the mean of the whole image.

    It has little more than a tenth of the fast track's multiply-adds.
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.down16 = separable(channels, width, stride=2)
        self.blocks16 = nn.ModuleList(separable(width, width) for _ in range(2))
        self.down32 = separable(width, width, stride=2)
        self.blocks32 = nn.ModuleList(separable(width, width, kernel=5) for _ in range(3))
        self.whole = nn.Conv2d(width, width, 1)
        self.out = nn.Sequential(
            nn.Conv2d(width, channels, 1, bias=False), nn.BatchNorm2d(channels)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, H/8, W/8) -> the same shape."""
        middle = self.down16(x)
        for block in self.blocks16:
            middle = middle + block(middle)
        far = self.down32(middle)
        for block in self.blocks32:
            far = far + block(far)
        far = far + self.whole(far.mean(dim=(2, 3), keepdim=True))
        both = middle + F.interpolate(far, middle.shape[2:], mode="bilinear")
        out: Tensor = F.interpolate(self.out(both), x.shape[2:], mode="bilinear")
        return out


class Fusion(nn.Module):
    """Propagated F_h and adapted F_l, concatenated and mixed by one 3x3 convolution."""

    def __init__(self, high_channels: int, width: int) -> None:
        super().__init__()
        self.mix = conv_bn_relu(high_channels + width, width)

    def forward(self, propagated: Tensor, adapted: Tensor) -> Tensor:
        """(N, Ch, H/8, W/8) and (N, width, H/8, W/8) -> fused (N, width, H/8, W/8)."""
        # F_h is float32 where the rest may be bf16: this halves the copy.
        return self.mix(torch.cat([propagated.to(adapted.dtype), adapted], dim=1))
