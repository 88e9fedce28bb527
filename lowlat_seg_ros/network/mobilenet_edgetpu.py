"""MobileNet-EdgeTPU 0.75 with DeepLab's head, whose public file has seen ImageNet and Cityscapes.

Xiong et al., "MobileDets", CVPR 2021 (Sec. 3: fused inverted bottlenecks), and Chen et al.,
"DeepLabv3+", ECCV 2018. Its early stages are full 3x3 convolutions instead of depthwise ones: more
multiply-adds, and less time on every processor that is good at matrix products. BatchNorm was
folded into the convolutions when the file was made. docs/training.md: where it comes from.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from lowlat_seg_ros.network.layers import PackedConv2d, PackedResidual
from lowlat_seg_ros.network.quantization import plain
from lowlat_seg_ros.network.trunk import Block, DepthwiseConv2d, Trunk, centred

HEAD_CHANNELS = 128


class FoldedConv(nn.Module):
    """A convolution with bias, its BatchNorm folded into it, and a ReLU if ``act``.

    Padding is symmetric, so at sides of 16 n + 1 pixels it is TensorFlow's SAME.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int = 1,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
        act: bool = True,
    ) -> None:
        super().__init__()
        kind = nn.Conv2d if groups == 1 else DepthwiseConv2d
        padding = dilation * (kernel // 2)
        self.c = kind(inputs, outputs, kernel, stride, padding, dilation, groups)
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        x = self.c(x)
        return x.relu() if self.act else x

    def packed(self) -> PackedConv2d:
        """The layer for inference on a CPU."""
        return PackedConv2d(self.c, "relu" if self.act else "none")


class Bottleneck(nn.Module):
    """1x1, depthwise and 1x1 convolutions, or if ``fused`` k x k and 1x1."""

    def __init__(
        self,
        inputs: int,
        hidden: int,
        outputs: int,
        kernel: int,
        stride: int = 1,
        dilation: int = 1,
        fused: bool = False,
        residual: bool = False,
    ) -> None:
        super().__init__()
        self.residual = residual
        if fused:
            inner = [FoldedConv(inputs, hidden, kernel, stride, dilation)]
        else:
            inner = [
                FoldedConv(inputs, hidden),
                FoldedConv(hidden, hidden, kernel, stride, dilation, groups=hidden),
            ]
        self.m = nn.Sequential(*inner, FoldedConv(hidden, outputs, act=False))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.m(x)
        return x + y if self.residual else y

    def packed(self) -> nn.Module:
        """The block for inference on a CPU."""
        parts = [part for part in self.m if isinstance(part, FoldedConv)]
        if self.residual:
            return PackedResidual([part.c for part in parts])
        return nn.Sequential(*(part.packed() for part in parts))


class MobileNetEdgeTPU(Trunk):
    """``whole``: with DeepLab's head, whose 128 channels are the last feature; else 144 without."""

    statistics = centred(128, 128)

    def __init__(self, whole: bool = True) -> None:
        super().__init__()
        self.stem = nn.Sequential(FoldedConv(3, 24, 3, 2), FoldedConv(24, 16, act=False))
        self.os4 = nn.Sequential(
            Bottleneck(16, 128, 24, 3, 2, fused=True), *_repeated(24, 96, 3, fused=True)
        )
        self.os8 = nn.Sequential(
            Bottleneck(24, 192, 40, 3, 2, fused=True), *_repeated(40, 160, 3, fused=True)
        )
        self.os16 = nn.Sequential(
            Bottleneck(40, 320, 72, 3, 2),
            *_repeated(72, 288, 3),
            Bottleneck(72, 576, 72, 3),
            *_repeated(72, 288, 3),
            Bottleneck(72, 576, 120, 5),
            *_repeated(120, 480, 5, dilation=2),
            Bottleneck(120, 960, 144, 3, dilation=2),
        )
        self.whole = whole
        if whole:
            self.conv1, self.aspp = FoldedConv(144, 1280), FoldedConv(1280, HEAD_CHANNELS)
            self.pool = FoldedConv(1280, HEAD_CHANNELS)
            self.proj = FoldedConv(2 * HEAD_CHANNELS, HEAD_CHANNELS)
        self.channels = (16, 24, 40, HEAD_CHANNELS if whole else 144)

    def blocks(self) -> Iterator[Block]:
        """The stem, the bottlenecks, and the head as one."""
        yield Block(self.stem, True)
        for stage in (self.os4, self.os8):
            for number, block in enumerate(stage, start=1):
                yield Block(block, number == len(stage))
        for number, block in enumerate(self.os16, start=1):
            yield Block(block, number == len(self.os16) and not self.whole)
        if self.whole:
            yield Block(self.head, True)

    def head(self, x: Tensor) -> Tensor:
        """DeepLab's: (N, 144, h, w) -> (N, 128, h, w), each place with the whole image's mean."""
        x = self.conv1(x)
        whole = plain(self.pool(x.mean((2, 3), keepdim=True))).expand(-1, -1, *x.shape[2:])
        out: Tensor = self.proj(torch.cat([whole, plain(self.aspp(x))], dim=1))
        return out

    @property
    def first(self) -> nn.Conv2d:
        """The stem's."""
        part = self.stem[0]
        assert isinstance(part, FoldedConv)
        return part.c


def _repeated(
    channels: int, hidden: int, kernel: int, dilation: int = 1, fused: bool = False
) -> list[nn.Module]:
    """Three residual blocks, as follow the first of most stages."""
    return [
        Bottleneck(channels, hidden, channels, kernel, 1, dilation, fused, residual=True)
        for _ in range(3)
    ]
