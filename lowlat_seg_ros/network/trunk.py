"""Pretrained backbones: what Sl and Sh ask of one, and how each expects images to be normalised.

367 labelled frames cannot teach a network what streets look like; a network that has seen millions
of real images only has to learn this data set's classes. Such a trunk returns features at four
strides. It runs block by block, so that the slow track can pause between any two.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

Step = Callable[..., Tensor]


@dataclass(frozen=True)
class Statistics:
    """Mean and deviation of RGB in [0, 1] that a network's images were normalised with."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def normalise(self, image: Tensor) -> Tensor:
        """RGB in [0, 1] (N, 3, H, W) -> normalised, of the same shape and dtype."""
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
        self, image: Tensor, pause: Callable[[], None] = lambda: None, step: Step | None = None
    ) -> list[Tensor]:
        """The four features. ``pause`` is called between blocks and may wait or raise.

        ``step`` runs each block, a function of a tensor to a tensor, always in the same order.
        """
        x, taps = image, []
        for block in self.blocks():
            x = block.run(x) if step is None else step(block.run, x)
            if block.tap:
                taps.append(x)
            pause()
        return taps


class DepthwiseConv2d(nn.Conv2d):
    """A depthwise convolution that autocast on a CPU leaves in float32.

    In bfloat16 its backward pass takes three times as long there.
    """

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu" or not torch.is_autocast_enabled("cpu"):
            return super().forward(x)
        with torch.autocast("cpu", enabled=False):
            return super().forward(x.float())
