"""The building blocks that all modules share."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def conv_bn(in_channels: int, out_channels: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    """A convolution and BatchNorm: (N, in, H, W) -> (N, out, H/stride, W/stride)."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, bias=False),
        nn.BatchNorm2d(out_channels),
    )


def conv_bn_relu(in_channels: int, out_channels: int, kernel: int = 3) -> nn.Sequential:
    """A size-keeping convolution, BatchNorm and ReLU: (N, in, H, W) -> (N, out, H, W)."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )


def separable(
    in_channels: int, out_channels: int, kernel: int = 3, stride: int = 1
) -> nn.Sequential:
    """A depthwise and a 1x1 convolution (Howard et al. 2017), each with BatchNorm, then ReLU."""
    return nn.Sequential(
        nn.Conv2d(
            in_channels, in_channels, kernel, stride, kernel // 2, groups=in_channels, bias=False
        ),
        nn.BatchNorm2d(in_channels),
        nn.Conv2d(in_channels, out_channels, 1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )


def embed(narrow: Tensor, wide: Tensor) -> None:
    """Copy a layer's parameter into a wider layer's: the first outputs stay what they were.

    They ignore the inputs that ``narrow`` does not have (Net2Net, Chen et al., ICLR 2016); further
    outputs keep their own initialisation.
    """
    with torch.no_grad():
        if wide.ndim > 1:
            wide[: len(narrow)] = 0
        wide[tuple(slice(0, size) for size in narrow.shape)] = narrow
