"""The classifiers: a 1x1 convolution, answering once or several times per feature cell."""

from __future__ import annotations

from abc import abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lowlat_seg_ros.network.packed import PackedConv2d


class SubPixel(nn.Module):
    """Features (N, C, H/8, W/8) -> logits (N, classes, r*H/8, r*W/8), r the ``upsampling``."""

    upsampling: int

    def forward(self, features: Tensor) -> Tensor:
        """Logits."""
        return self.arrange(self.cells(features))

    @abstractmethod
    def cells(self, features: Tensor) -> Tensor:
        """All answers of each cell, (N, classes*r*r, H/8, W/8); those of several may be summed."""

    def arrange(self, cells: Tensor) -> Tensor:
        """Logits of :meth:`cells`, which are in the order of ``torch.nn.PixelShuffle``."""
        return F.pixel_shuffle(cells, self.upsampling)


class Classifier(SubPixel, nn.Conv2d):
    """With r = 1 the paper's 1x1 convolution; else a sub-pixel convolution (Shi et al., CVPR 2016).

    Its r*r answers per cell keep things thinner than a cell apart.
    """

    def __init__(self, in_channels: int, classes: int, upsampling: int = 1) -> None:
        super().__init__(in_channels, classes * upsampling**2, 1)
        self.upsampling = upsampling

    def cells(self, features: Tensor) -> Tensor:
        """Those of the convolution, in the precision of its weights."""
        return nn.Conv2d.forward(self, features.to(self.weight.dtype))

    def packed(self) -> PackedClassifier:
        """For inference on a CPU."""
        return PackedClassifier(self)

    def answers_more_than(self, other: Classifier) -> bool:
        """Whether it reads and tells apart the same as ``other``, but more often per cell."""
        times = self.upsampling**2
        same = (self.in_channels, self.out_channels) == (
            other.in_channels,
            other.out_channels * times,
        )
        return same and times > 1 and other.upsampling == 1

    def widened(self, other: Classifier) -> None:
        """Take over the weights of ``other``, whose upsampling is 1, for each answer of a cell."""
        times = self.upsampling**2
        with torch.no_grad():
            self.weight.copy_(other.weight.repeat_interleave(times, dim=0))
            if self.bias is not None and other.bias is not None:
                self.bias.copy_(other.bias.repeat_interleave(times, dim=0))


class PackedClassifier(SubPixel):
    """A :class:`Classifier` whose convolution was packed."""

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.upsampling = classifier.upsampling
        self.convolution = PackedConv2d(classifier)

    def cells(self, features: Tensor) -> Tensor:
        """Those of the convolution."""
        cells: Tensor = self.convolution(features)
        return cells
