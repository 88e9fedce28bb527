"""Sl as a network of its own: a pretrained trunk on a smaller image, or DDRNet's first stages.

The paper splits one network in two, so Sl costs what the lower part of an accurate network costs.
Here Sl is a network made to be fast, and Sh reads the image itself, in the background, where its
longer run does not delay any mask.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lowlat_seg_ros.network.heads import FINENESS
from lowlat_seg_ros.network.layers import PackedResidual, conv_bn, plain, resized
from lowlat_seg_ros.network.trunk import Trunk

#: Scale at which each pixel that Sl reads is the mean of four.
HALF = 0.5


class TrunkEncoder(nn.Module):
    """A pretrained trunk on a smaller image: (N, 3, H, W) -> F_l (N, C, H/8, W/8).

    Each feature, and the mean of the last, is brought to F_l's channels and size, and all are
    added. The finest enters with the points of a cell as channels, so that nothing of it is
    averaged away.
    """

    def __init__(self, trunk: Trunk, channels: int, scale: float) -> None:
        """``scale``: sides of the image that it reads, as a share of those of the network's."""
        super().__init__()
        self.trunk, self.channels, self.scale = trunk, channels, scale
        fine, *others = trunk.channels
        self.fine = conv_bn(fine * FINENESS**2, channels, 1)
        self.lateral = nn.ModuleList(conv_bn(c, channels, 1) for c in others)
        self.whole = nn.Conv2d(others[-1], channels, 1)
        self._shrinks = self._arranges = True

    def forward(self, image: Tensor, pause: Callable[[], None] = lambda: None) -> Tensor:
        cells = [side // 8 for side in image.shape[2:]]
        first, *others = self.trunk.features(self._shrunk(image), pause)
        size = [FINENESS * side for side in cells]
        points = first if list(first.shape[2:]) == size else resized(plain(first), size)
        if self._arranges:
            points = F.pixel_unshuffle(points, FINENESS)  # (N, C * FINENESS^2, H/8, W/8)
            points = points.contiguous(memory_format=torch.channels_last)
        parts = [self.fine(points)]
        for lateral, feature in zip(self.lateral, others, strict=True):
            parts.append(resized(lateral(feature), cells))
        whole = self.whole(others[-1].mean((2, 3), keepdim=True))
        return (reduce(torch.add, parts) + whole).relu()

    def _shrunk(self, image: Tensor) -> Tensor:
        """The image (N, 3, h, w) that the trunk reads; at half the sides each pixel is a mean."""
        if not self._shrinks:
            return image
        if self.scale == HALF:
            return F.avg_pool2d(image, 2)
        cells = [side // 8 for side in image.shape[2:]]
        return resized(image, [max(2, round(side * self.scale)) * 8 for side in cells])

    def fold(self) -> None:
        """Let convolutions do the rearranging around them, for inference.

        The mean of four pixels is a convolution, and two in a row are one: 3x3 at stride 2 becomes
        6x6 at stride 4, whose few more products cost less than a pass over the image. And the 1x1
        convolution of a cell's points becomes a strided one that reads them where they are.
        """
        fine = self.fine[0]
        if self._arranges and isinstance(fine, nn.Conv2d):
            side = (FINENESS, FINENESS)
            inputs = fine.in_channels // FINENESS**2
            kernel = fine.weight.detach().contiguous().view(-1, inputs, *side)
            fine.weight, fine.in_channels = nn.Parameter(kernel), inputs
            fine.kernel_size, fine.stride, self._arranges = side, side, False
        if self._shrinks and self.scale == HALF:
            self._shrinks, conv = False, self.trunk.first
            kernel = conv.weight.detach().contiguous()
            mean = torch.full((1, 1, 2, 2), 0.25, dtype=kernel.dtype, device=kernel.device)
            conv.weight = nn.Parameter(torch.kron(kernel, mean))
            conv.kernel_size, conv.stride, conv.padding = (6, 6), (4, 4), (2, 2)


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
                conv_bn(inputs, planes, 1), nn.ReLU(True), conv_bn(planes, planes, 3, stride),
                nn.ReLU(True), conv_bn(planes, outputs, 1),
            ]  # fmt: skip
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
        nn.Conv2d(3, width, 3, 2, 1), nn.BatchNorm2d(width), nn.ReLU(True),
        nn.Conv2d(width, width, 3, 2, 1), nn.BatchNorm2d(width), nn.ReLU(True),
    )  # fmt: skip


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
