"""What turns features into F_h, and F_h into masks: the two heads of Sh, and the classifiers."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from functools import reduce

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lowlat_seg_ros.config import NetworkConfig
from lowlat_seg_ros.network.layers import PackedConv2d, conv_bn, conv_bn_relu, resized

#: Points per side of a cell of F_h at which :class:`PyramidHead` mixes features.
FINENESS = 2


class ContextHead(nn.Module):
    """The head on a ResNet: PSPNet's pyramid pooling (Zhao et al. 2017), then a projection to Ch.

    The projection, an affine 1x1 convolution, comes before propagation. It commutes with Eq. (1),
    whose kernels sum to one and are shared over channels, and makes propagation and fusion cheap.
    ``context_skip`` adds F_l once more, as in DeepLabv3+ (Chen et al., ECCV 2018): things thinner
    than a cell of the last stage are lost on the way through it.
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
        context = torch.cat([x, *pooled], dim=1)
        cells = low.shape[2:]  # at output stride 16 twice as many per side as x has
        if self.skip is not None:
            context = torch.cat([resized(context, cells), self.skip(low)], dim=1)
        return resized(self.project(self.merge(context)), cells)


class PyramidHead(nn.Module):
    """The head on a pretrained trunk: features at several strides -> F_h (N, Ch, H/8, W/8).

    Only the early features show things thinner than a cell of F_h, such as poles and signs. So
    features are mixed on a grid of ``FINENESS`` times as many points per side, and each cell's
    points become channels of F_h in the last step, where classifiers that answer several times per
    cell find them again. That step is affine, as Eq. (1) requires: kernels that sum to one and are
    shared over channels commute with it.
    """

    def __init__(self, channels: Sequence[int], width: int, outputs: int) -> None:
        """``channels`` of each feature, finest first; ``width`` at which features are mixed."""
        super().__init__()
        self.lateral = nn.ModuleList(conv_bn(c, width, 1) for c in channels)
        self.mix = nn.Sequential(conv_bn_relu(width, width), conv_bn_relu(width, width))
        self.project = nn.Conv2d(width, outputs, FINENESS, FINENESS)
        self.coarse = nn.Conv2d(channels[-1], outputs, 1)

    def forward(self, *features: Tensor, cells: tuple[int, int]) -> Tensor:
        """Features of any size -> F_h; ``cells``: height and width of F_h, H/8 and W/8."""
        points = [FINENESS * side for side in cells]
        pairs = zip(self.lateral, features, strict=True)
        x = reduce(torch.add, [resized(lateral(f), points) for lateral, f in pairs])
        far = resized(self.coarse(features[-1]), cells)
        out: Tensor = self.project(self.mix(x.relu())) + far
        return out


class SubPixel(nn.Module):
    """Features (N, C, H/8, W/8) -> logits (N, classes, r*H/8, r*W/8), r the ``upsampling``."""

    upsampling: int

    def forward(self, features: Tensor) -> Tensor:
        return self.arrange(self.cells(features))

    @abstractmethod
    def cells(self, features: Tensor) -> Tensor:
        """All answers of each cell, (N, classes*r*r, H/8, W/8), which may be added to others'."""

    def arrange(self, cells: Tensor) -> Tensor:
        """Logits of :meth:`cells`, whose channels have the order of ``torch.nn.PixelShuffle``."""
        return F.pixel_shuffle(cells, self.upsampling)


class Classifier(SubPixel, nn.Conv2d):
    """With r = 1 the paper's 1x1 convolution; else a sub-pixel convolution (Shi et al., CVPR 2016).

    Its r*r answers per cell separate things thinner than a cell.
    """

    def __init__(self, in_channels: int, classes: int, upsampling: int = 1) -> None:
        super().__init__(in_channels, classes * upsampling**2, 1)
        self.upsampling = upsampling

    def cells(self, features: Tensor) -> Tensor:
        return nn.Conv2d.forward(self, features.to(self.weight.dtype))

    def packed(self) -> PackedClassifier:
        return PackedClassifier(self)


class PackedClassifier(SubPixel):
    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.upsampling = classifier.upsampling
        self.convolution = PackedConv2d(classifier)

    def cells(self, features: Tensor) -> Tensor:
        cells: Tensor = self.convolution(features)
        return cells
