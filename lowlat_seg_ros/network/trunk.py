"""Pretrained backbones: what Sl and Sh ask of one, and what they make of its features.

367 labelled frames cannot teach a network what streets look like; a network that has seen millions
of real images only has to learn this data set's classes. Such a trunk returns features at four
strides. It runs block by block, so that the slow track can pause between any two.

The paper splits one network in two, so Sl costs what the lower part of an accurate network costs.
Here Sl is a network made to be fast, and Sh reads the image itself, in the background, where its
longer run does not delay any mask.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lowlat_seg_ros.network.layers import conv_bn, conv_bn_relu, plain, resized

#: Points per side of a cell of F_h at which :class:`PyramidHead` mixes features.
FINENESS = 2

#: Scale at which each pixel that Sl reads is the mean of four.
HALF = 0.5

#: Runs one step of a network: a function of tensors to one tensor, and these.
Step = Callable[..., Tensor]


def call(function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """The :data:`Step` that does nothing else."""
    return function(*inputs)


@dataclass(frozen=True)
class Statistics:
    """Mean and deviation of RGB in [0, 1] that a network's images were normalised with."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def normalise(self, image: Tensor) -> Tensor:
        mean = torch.tensor(self.mean, dtype=image.dtype, device=image.device).view(3, 1, 1)
        std = torch.tensor(self.std, dtype=image.dtype, device=image.device).view(3, 1, 1)
        return (image - mean) / std

    def pixels(self, image: Tensor) -> np.ndarray:
        """One normalised image (1, 3, H, W) -> RGB uint8 (H, W, 3)."""
        scale = torch.tensor(self.std, device=image.device).view(3, 1, 1)
        shift = torch.tensor(self.mean, device=image.device).view(3, 1, 1)
        rgb = (image[0].float() * scale + shift).mul(255).round().clamp(0, 255).to(torch.uint8)
        pixels: np.ndarray = rgb.permute(1, 2, 0).contiguous().cpu().numpy()
        return pixels


def centred(middle: float, half_range: float) -> Statistics:
    """``(byte - middle) / half_range`` for bytes of every channel."""
    return Statistics((middle / 255,) * 3, (half_range / 255,) * 3)


#: ImageNet's statistics, which torchvision's files were trained with.
IMAGENET = Statistics((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


class Block(NamedTuple):
    """One step of a trunk; ``tap`` says whether its output is one of the trunk's features."""

    run: Callable[[Tensor], Tensor]
    tap: bool


class Trunk(nn.Module, ABC):
    """Normalised image (N, 3, H, W) -> features at 1/2, 1/4, 1/8 and 1/16.

    ``channels``: those of the four features. ``statistics``: how its images are normalised.
    """

    statistics: Statistics
    channels: tuple[int, int, int, int]

    @abstractmethod
    def blocks(self) -> Iterator[Block]:
        """All steps in order; four of them are taps."""

    @property
    @abstractmethod
    def first(self) -> nn.Conv2d:
        """The convolution that reads the image: 3x3 at stride 2, padded by 1."""

    def features(
        self,
        image: Tensor,
        pause: Callable[[], None] = lambda: None,
        step: Step = call,
        blocks: Iterable[Block] | None = None,
    ) -> list[Tensor]:
        """The four features. ``pause`` is called between blocks and may wait or raise.

        ``step`` runs each block, always in the same order. ``blocks``: only these of them, which
        begin with ``image``, or what the block before them returned.
        """
        x, taps = image, []
        for block in self.blocks() if blocks is None else blocks:
            x = step(block.run, x)
            if block.tap:
                taps.append(x)
            pause()
        return taps


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
        return self.end(*self.begin(image, pause), pause)

    def begin(
        self, image: Tensor, pause: Callable[[], None] = lambda: None
    ) -> tuple[Tensor, Tensor]:
        """The first half: the trunk's last feature but one, and the sum (N, C, H/8, W/8) so far."""
        cells = [side // 8 for side in image.shape[2:]]
        blocks, _ = self._halves()
        first, *others = self.trunk.features(self._shrunk(image), pause, blocks=blocks)
        size = [FINENESS * side for side in cells]
        points = first if list(first.shape[2:]) == size else resized(plain(first), size)
        if self._arranges:
            points = F.pixel_unshuffle(points, FINENESS)  # (N, C * FINENESS^2, H/8, W/8)
            points = points.contiguous(memory_format=torch.channels_last)
        parts = [self.fine(points)]
        for lateral, feature in zip(self.lateral[:-1], others, strict=True):
            parts.append(resized(lateral(feature), cells))
        return others[-1], reduce(torch.add, parts)

    def end(self, last: Tensor, parts: Tensor, pause: Callable[[], None] = lambda: None) -> Tensor:
        """F_l, of what :meth:`begin` returned."""
        _, blocks = self._halves()
        (last,) = self.trunk.features(last, pause, blocks=blocks)
        part = resized(self.lateral[-1](last), parts.shape[2:])
        return (parts + part + self.whole(last.mean((2, 3), keepdim=True))).relu()

    def _halves(self) -> tuple[list[Block], list[Block]]:
        """The trunk's blocks until its third feature, and those of the last."""
        blocks = list(self.trunk.blocks())
        _, _, third, _ = (number for number, block in enumerate(blocks, 1) if block.tap)
        return blocks[:third], blocks[third:]

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
