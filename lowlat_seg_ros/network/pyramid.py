"""The end of Sh on a trunk: features of all strides become F_h, finer than a cell until the last.

What is thinner than a cell of F_h (poles, signs) is only in the early features. They are mixed at a
grid of ``FINENESS`` times as many points per side, and each cell's points become channels of F_h in
the last, affine step. So classifiers that answer several times per cell find them again.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from lowlat_seg_ros.network.layers import conv_bn, conv_bn_relu

#: Points per side of a cell at which features are mixed.
FINENESS = 2


class PyramidHead(nn.Module):
    """Features at several strides -> F_h (N, ``outputs``, H/8, W/8).

    The last step is affine, as Eq. (1) wants it: kernels that sum to one, shared over channels,
    commute with it.
    """

    def __init__(self, channels: Sequence[int], width: int, outputs: int) -> None:
        """``channels``: of each feature, finest first; ``width``: at which they are mixed."""
        super().__init__()
        self.lateral = nn.ModuleList(conv_bn(c, width, 1) for c in channels)
        self.mix = nn.Sequential(conv_bn_relu(width, width), conv_bn_relu(width, width))
        self.project = nn.Conv2d(width, outputs, FINENESS, FINENESS)
        self.coarse = nn.Conv2d(channels[-1], outputs, 1)

    def forward(self, *features: Tensor, cells: tuple[int, int]) -> Tensor:
        """The features, of any size; ``cells``: height and width of F_h, H/8 and W/8."""
        fine = [FINENESS * side for side in cells]
        x = sum_of(
            [resized(lateral(f), fine) for lateral, f in zip(self.lateral, features, strict=True)]
        )
        far = resized(self.coarse(features[-1]), cells)
        out: Tensor = self.project(self.mix(x.relu())) + far
        return out


def resized(x: Tensor, size: Sequence[int]) -> Tensor:
    """``x`` (N, C, h, w), bilinear at ``size``."""
    if list(x.shape[2:]) == list(size):
        return x
    return F.interpolate(x, list(size), mode="bilinear")


def sum_of(tensors: Sequence[Tensor]) -> Tensor:
    """Their sum."""
    total = tensors[0]
    for tensor in tensors[1:]:
        total = total + tensor
    return total
