"""A small flow network and the bilinear warp along its flow, shared by DFF and GRFP."""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lowlat_seg_ros.network.layers import conv_bn_relu


class FlowNetwork(nn.Module):
    """Two images at half size -> flow and ``extra`` further maps, at 1/8 of the full size.

    An encoder to 1/32 and a decoder back to 1/8, in the manner of FlowNetS (Dosovitskiy et al.,
    ICCV 2015) at about a fiftieth of its work. It starts with no motion.
    """

    def __init__(self, extra: int = 0, width: int = 32) -> None:
        super().__init__()
        sizes = [6, width, 2 * width, 4 * width, 8 * width]
        self.down = nn.ModuleList(
            _halve(inputs, outputs) for inputs, outputs in itertools.pairwise(sizes)
        )
        self.up16 = conv_bn_relu(12 * width, 4 * width)
        self.up8 = conv_bn_relu(6 * width, 4 * width)
        self.flow = nn.Conv2d(4 * width, 2, 3, padding=1)
        self.extra = nn.Conv2d(4 * width, extra, 1) if extra else None
        for head in (self.flow, self.extra):
            if head is not None and head.bias is not None:
                nn.init.zeros_(head.weight)
                nn.init.zeros_(head.bias)

    def forward(self, before: Tensor, now: Tensor) -> Tensor:
        """Images (N, 3, H/2, W/2) -> (N, 2 + extra, H/8, W/8); flow (x, y) in cells of 1/8."""
        x, levels = torch.cat([before, now], dim=1), []
        for level in self.down:
            x = level(x)
            levels.append(x)  # 1/4, 1/8, 1/16, 1/32
        x = self.up16(torch.cat([_to(x, levels[2]), levels[2]], dim=1))
        x = self.up8(torch.cat([_to(x, levels[1]), levels[1]], dim=1))
        maps = [self.flow(x)] + ([self.extra(x)] if self.extra is not None else [])
        return torch.cat(maps, dim=1).float()


def _halve(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, 2, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(True)
    )


def _to(x: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(x, like.shape[2:], mode="bilinear")


def half_size(image: Tensor) -> Tensor:
    """(N, 3, H, W) -> (N, 3, H/2, W/2), area averages."""
    return F.avg_pool2d(image, 2)


def warp(maps: Tensor, flow: Tensor) -> Tensor:
    """``out[i, j] = maps[i + flow_y, j + flow_x]``, bilinear, the edge repeated outside.

    ``maps`` (N, C, h, w), ``flow`` (N, 2, h, w) as (x, y) in cells.
    """
    height, width = maps.shape[2:]
    x = torch.arange(width, device=maps.device, dtype=flow.dtype) + flow[:, 0]
    y = torch.arange(height, device=maps.device, dtype=flow.dtype)[:, None] + flow[:, 1]
    # Cell centres at half-integers in [-1, 1], as align_corners=False has them.
    grid = torch.stack([(2 * x + 1) / width - 1, (2 * y + 1) / height - 1], dim=-1)
    return F.grid_sample(
        maps.to(flow.dtype), grid, mode="bilinear", padding_mode="border", align_corners=False
    )


def photometric(network: FlowNetwork, before: Tensor, now: Tensor) -> Tensor:
    """Mean difference of the current image and the warped one before, averaged over cells of 1/8.

    Images (N, 3, H/2, W/2). It teaches flow without labels (Yu, Harley, Derpanis, ECCV-W 2016), in
    place of the rendered pairs with known flow that DFF and GRFP were trained on before.
    """
    flow = network(before, now)[:, :2]
    first, second = (F.adaptive_avg_pool2d(x.float(), flow.shape[2:]) for x in (before, now))
    return (warp(first, flow) - second).abs().mean()
