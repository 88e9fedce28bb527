"""Residual networks: a ResNet cut into Sl and Sh, its head, and DDRNet's first stages as Sl.

The ResNet is cut at a named part (paper Sec. 3.1). Its parameters have torchvision's names, so that
its ImageNet files load strictly. Late stages are dilated instead of strided, so that features stay
at 1/8 of the image (or 1/16).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lowlat_seg_ros.config import ConfigError, NetworkConfig
from lowlat_seg_ros.network.layers import PackedResidual, conv_bn, conv_bn_relu, resized


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut (ResNet-18 and -34)."""

    expansion = 1

    def __init__(
        self, inputs: int, planes: int, stride: int, dilation: int, shortcut: nn.Module | None
    ) -> None:
        super().__init__()
        self.channels = planes
        self.conv1 = nn.Conv2d(inputs, planes, 3, stride, dilation, dilation, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, dilation, dilation, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.downsample = shortcut

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += x if self.downsample is None else self.downsample(x)
        return self.relu(out)

    def packed(self) -> PackedResidual:
        return PackedResidual((self.conv1, self.conv2), self.downsample, relu=True)


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions and a shortcut (ResNet-50 and -101)."""

    expansion = 4

    def __init__(
        self, inputs: int, planes: int, stride: int, dilation: int, shortcut: nn.Module | None
    ) -> None:
        super().__init__()
        self.channels = planes * self.expansion
        self.conv1 = nn.Conv2d(inputs, planes, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, stride, dilation, dilation, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = nn.Conv2d(planes, self.channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(self.channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = shortcut

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        out += x if self.downsample is None else self.downsample(x)
        return self.relu(out)

    def packed(self) -> PackedResidual:
        return PackedResidual((self.conv1, self.conv2, self.conv3), self.downsample, relu=True)


@dataclass(frozen=True)
class Architecture:
    block: type[BasicBlock] | type[Bottleneck]
    depths: tuple[int, int, int, int]
    width: int = 64


ARCHITECTURES: dict[str, Architecture] = {
    "resnet18": Architecture(BasicBlock, (2, 2, 2, 2)),
    "resnet34": Architecture(BasicBlock, (3, 4, 6, 3)),
    "resnet50": Architecture(Bottleneck, (3, 4, 6, 3)),
    "resnet101": Architecture(Bottleneck, (3, 4, 23, 3)),
    "tiny": Architecture(BasicBlock, (1, 1, 1, 1), width=8),
}

#: Stride and dilation of the four stages for each output stride.
STAGES = {8: ((1, 1), (2, 1), (1, 2), (1, 4)), 16: ((1, 1), (2, 1), (2, 1), (1, 2))}


class ResNet(nn.Module):
    """A dilated ResNet without its classifier, run as Sl and then Sh.

    ``low_channels``: Cl, the channels of F_l; ``out_channels``: those of the last stage.
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        architecture = ARCHITECTURES[config.backbone]
        width = architecture.width
        self.conv1 = nn.Conv2d(3, width, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        channels, dilation = width, 1
        for stage, depth in enumerate(architecture.depths):
            stride, dilated = STAGES[config.output_stride][stage]
            blocks = []
            for index in range(depth):
                # As torchvision does: the first block of a stage keeps the dilation before it.
                block = make_block(
                    architecture.block,
                    channels,
                    width << stage,
                    stride if index == 0 else 1,
                    dilation if index == 0 else dilated,
                )
                blocks.append(block)
                channels = (width << stage) * architecture.block.expansion
            dilation = dilated
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
        self.out_channels = channels
        self._lower, self._higher = self._split(config)
        last = self.get_submodule(self._lower[-1])
        assert isinstance(last, BasicBlock | Bottleneck)
        self.low_channels = last.channels
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def _split(self, config: NetworkConfig) -> tuple[list[str], list[str]]:
        names = [
            f"layer{stage}.{index}"
            for stage in range(1, 5)
            for index in range(len(self.get_submodule(f"layer{stage}")))  # type: ignore[arg-type]
        ]
        ends = [
            name for name in names if name == config.split or name.startswith(config.split + ".")
        ]
        stage = int(config.split[5]) if ends else 0
        strided_early = config.output_stride == 16 and stage == 3
        if not ends or stage not in (2, 3) or strided_early or ends[-1] == names[-1]:
            valid = "'layer2', 'layer3'" if config.output_stride == 8 else "'layer2'"
            raise ConfigError(
                f"split is {config.split!r}; Sl must end in {valid} or a block of it such as "
                f"'layer2.1', so that its features have stride 8 at output_stride "
                f"{config.output_stride}"
            )
        cut = names.index(ends[-1]) + 1
        return names[:cut], names[cut:]

    def lower(self, image: Tensor, pause: Callable[[], None] = lambda: None) -> Tensor:
        """Sl: normalised image (N, 3, H, W) -> F_l (N, Cl, H/8, W/8).

        ``pause`` is called between its blocks.
        """
        x = self.stem(image)
        for block in self.lower_blocks():
            pause()
            x = block(x)
        return x

    def stem(self, image: Tensor) -> Tensor:
        """The layers before the blocks: normalised image (N, 3, H, W) -> (N, width, H/4, W/4)."""
        # Pooling before the ReLU, unlike torchvision, gives the same and leaves it a quarter to do.
        x: Tensor = self.relu(self.maxpool(self.bn1(self.conv1(image))))
        return x

    def lower_blocks(self) -> Iterator[nn.Module]:
        """The residual blocks of Sl in order, after the stem."""
        return (self.get_submodule(name) for name in self._lower)

    def higher_blocks(self) -> Iterator[nn.Module]:
        """The residual blocks of Sh in order; between two of them Sh may pause."""
        return (self.get_submodule(name) for name in self._higher)


def make_block(
    kind: type[BasicBlock] | type[Bottleneck], inputs: int, planes: int, stride: int, dilation: int
) -> nn.Module:
    """One residual block; the shortcut is projected where the shape changes."""
    outputs = planes * kind.expansion
    shortcut = None
    if stride != 1 or inputs != outputs:
        shortcut = conv_bn(inputs, outputs, 1, stride)
    return kind(inputs, planes, stride, dilation, shortcut)


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


class Residual(nn.Module):
    """DDRNet's block: two 3x3 convolutions, or 1x1, 3x3 and a widening 1x1, and a shortcut.

    No ReLU follows the sum.
    """

    def __init__(self, inputs: int, planes: int, stride: int = 1, widen: int = 1) -> None:
        super().__init__()
        outputs = planes * widen
        if widen == 1:
            layers = [conv_bn(inputs, planes, 3, stride), nn.ReLU(True), conv_bn(planes, planes, 3)]
        else:
            layers = [
                conv_bn(inputs, planes, 1),
                nn.ReLU(True),
                conv_bn(planes, planes, 3, stride),
                nn.ReLU(True),
                conv_bn(planes, outputs, 1),
            ]
        self.body = nn.Sequential(*layers)
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if same else conv_bn(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) + self.shortcut(x)

    def packed(self) -> PackedResidual:
        convolutions = [layer for layer in self.body.modules() if isinstance(layer, nn.Conv2d)]
        return PackedResidual(convolutions, self.shortcut)


def make_stem(width: int) -> nn.Sequential:
    """Two strided convolutions: (N, 3, H, W) -> (N, width, H/4, W/4)."""
    return nn.Sequential(
        nn.Conv2d(3, width, 3, 2, 1),
        nn.BatchNorm2d(width),
        nn.ReLU(True),
        nn.Conv2d(width, width, 3, 2, 1),
        nn.BatchNorm2d(width),
        nn.ReLU(True),
    )


def stage(
    inputs: int, planes: int, stride: int, end: nn.Module | None = None, blocks: int = 2
) -> nn.Sequential:
    """Residual blocks and ``end``: (N, inputs, H, W) -> (N, planes, H/stride, W/stride)."""
    layers: list[nn.Module] = [Residual(inputs, planes, stride)]
    for _ in range(blocks - 1):
        layers += [nn.ReLU(True), Residual(planes, planes)]
    return nn.Sequential(*layers, *([end] if end is not None else []))


class DDREncoder(nn.Module):
    """DDRNet-23-slim's first stages: (N, 3, H, W), sides multiples of 8 -> F_l (N, C, H/8, W/8).

    Hong et al., "Deep Dual-resolution Networks for Real-time and Accurate Semantic Segmentation of
    Road Scenes", arXiv 2101.06085: two branches from 1/8 on, the coarse one seeing further. Of
    their fourth stage one block of two remains. What follows there, above all the context of the
    whole scene, comes from propagation here.
    """

    def __init__(self, width: int, blocks: Sequence[int] = (2, 2, 2)) -> None:
        """``blocks``: residual blocks of the first, the second and each branch of the third stage.

        Blocks left out would only add to the result of those before them.
        """
        super().__init__()
        w = width
        self.channels = 2 * w
        self.stem = make_stem(w)
        self.layer1 = stage(w, w, 1, nn.ReLU(True), blocks[0])
        self.layer2 = stage(w, 2 * w, 2, nn.ReLU(True), blocks[1])
        self.coarse3 = stage(2 * w, 4 * w, 2, blocks=blocks[2])
        self.fine3 = stage(2 * w, 2 * w, 1, blocks=blocks[2])
        self.up3, self.down3 = conv_bn(4 * w, 2 * w, 1), conv_bn(2 * w, 4 * w, 3, 2)
        self.coarse4, self.fine4 = Residual(4 * w, 8 * w, 2), Residual(2 * w, 2 * w)
        self.up4 = conv_bn(8 * w, 2 * w, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, image: Tensor, pause: Callable[[], None] = lambda: None) -> Tensor:
        x = self.layer1(self.stem(image))
        pause()
        shared = self.layer2(x)
        pause()
        coarse, fine = self.coarse3(shared), self.fine3(shared)
        pause()
        cells = shared.shape[2:]
        coarse, fine = (
            coarse + self.down3(F.relu(fine)),
            fine + F.interpolate(self.up3(F.relu(coarse)), cells, mode="bilinear"),
        )
        coarse, fine = self.coarse4(F.relu(coarse)), self.fine4(F.relu(fine))
        up = F.interpolate(self.up4(F.relu(coarse)), cells, mode="bilinear")
        return F.relu(fine + up)
