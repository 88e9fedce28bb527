"""The small modules of the fast track: what reads F_l, what fuses, and what classifies.

They are the shared reduction, AdaptNet, fusion, selector and the classifiers (Sec. 3.2, 3.3).
"""

from __future__ import annotations

from abc import abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lowlat_seg_ros.network.layers import PackedConv2d, conv_bn, conv_bn_relu, separable


class SharedReduction(nn.Module):
    """One convolution of F_l that selector, predictor and AdaptNet share (beyond the paper).

    As published each of them begins with a 3x3 convolution of all of F_l's channels, which at 1024
    channels costs as much as all that follows. Here one convolution serves all three, once per
    frame. Where Sh continues from F_l, the reduction is appended to F_l as further channels
    (``keeps_input``); where Sh reads the image, it replaces F_l, which nothing else reads.
    """

    def __init__(self, low_channels: int, width: int, kernel: int, keeps_input: bool) -> None:
        super().__init__()
        self.reduce, self.keeps_input = conv_bn_relu(low_channels, width, kernel), keeps_input

    def forward(self, low: Tensor) -> Tensor:
        """F_l (N, Cl, H/8, W/8) -> (N, width, H/8, W/8), or (N, Cl + width, H/8, W/8)."""
        reduced: Tensor = self.reduce(low)
        return torch.cat([low, reduced], dim=1) if self.keeps_input else reduced


class Reduced(nn.Module):
    """The reduction (N, width, H/8, W/8) out of what :class:`SharedReduction` returned."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, low: Tensor) -> Tensor:
        if low.shape[1] == self.width:
            return low
        # A copy: a view would keep all of F_l in memory as long as it is in use.
        return low[:, -self.width :].contiguous(memory_format=torch.channels_last)


class AdaptNet(nn.Module):
    """``depth`` 3x3 convolutions: F_l (N, Cl, H/8, W/8) -> adapted (N, width, H/8, W/8), Sec. 3.3.

    A second branch of ``context`` channels, 0 for none as published, sees beyond the few cells that
    Sl and three convolutions reach. Without it a wide building and a wide truck look alike.
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
        """``shares``: :class:`SharedReduction` replaces the first of ``depth`` convolutions.

        ``kernel``: side of the first.
        """
        super().__init__()
        self.first = Reduced(width) if shares else conv_bn_relu(low_channels, width, kernel)
        self.second = conv_bn_relu(width, width) if depth > 1 else nn.Identity()
        self.third = conv_bn_relu(width, width) if depth > 2 else nn.Identity()
        self.far = FarBranch(width, context) if context else None

    def forward(self, low: Tensor) -> Tensor:
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
        self.out = conv_bn(width, channels, kernel=1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, H/8, W/8) -> the same shape."""
        middle = self.down16(x)  # (N, width, H/16, W/16)
        for block in self.blocks16:
            middle = middle + block(middle)
        far = self.down32(middle)  # (N, width, H/32, W/32)
        for block in self.blocks32:
            far = far + block(far)
        far = far + self.whole(far.mean(dim=(2, 3), keepdim=True))
        both = middle + F.interpolate(far, middle.shape[2:], mode="bilinear")
        out: Tensor = F.interpolate(self.out(both), x.shape[2:], mode="bilinear")
        return out


class Fusion(nn.Module):
    """Propagated F_h and adapted F_l, concatenated and mixed by one 3x3 convolution (Sec. 3.3).

    Where cells are coarse, the predictor's reduction stands for adapted F_l.
    """

    def __init__(self, high_channels: int, width: int) -> None:
        super().__init__()
        self.mix = conv_bn_relu(high_channels + width, width)

    def forward(self, propagated: Tensor, adapted: Tensor) -> Tensor:
        """(N, Ch, h, w) and (N, width, h, w) -> fused (N, width, h, w)."""
        # F_h is float32 where the rest may be bf16: converting it first halves the copy.
        return self.mix(torch.cat([propagated.to(adapted.dtype), adapted], dim=1))


class KeyFrameSelector(nn.Module):
    """Predicts from the change of F_l how far the segmentation deviates from the key frame's.

    The deviation is the fraction of pixels whose label differs (Sec. 3.2).
    """

    def __init__(self, low_channels: int, width: int, shares: bool = False) -> None:
        """``shares``: reads :class:`SharedReduction` instead of a reduction of its own."""
        super().__init__()
        own = nn.Conv2d(low_channels, width, 3, padding=1)
        self.reduction = Reduced(width) if shares else own
        # Without a ReLU before the pooling, a change and its opposite would only differ in sign.
        self.mix = conv_bn_relu(width, width)
        self.unit = nn.Linear(width, 1)

    def reduce(self, low: Tensor) -> Tensor:
        """F_l (N, Cl, H/8, W/8) -> reduced (N, width, H/8, W/8), cached for the key frame."""
        reduced: Tensor = self.reduction(low)
        return reduced

    def forward(self, reduced_key: Tensor, reduced: Tensor) -> Tensor:
        """Reduced F_l of key and current frame -> logit of the deviation (N,)."""
        return self.unit(self.mix(reduced - reduced_key).mean(dim=(2, 3))).squeeze(1)

    def deviation(self, reduced_key: Tensor, reduced: Tensor) -> Tensor:
        """Reduced F_l of key and current frame -> deviation (N,) in [0, 1]."""
        return self(reduced_key, reduced).sigmoid()


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
