"""DDRNet-23-slim, the real-time network a user would run on every frame instead.

Hong, Pan, Sun, Jia, "Deep Dual-resolution Networks for Real-time and Accurate Semantic
Segmentation of Road Scenes", arXiv 2101.06085 (Tables 1 and 2, Fig. 4 and 5), written from the
paper: two branches, at 1/8 and down to 1/64, that exchange features twice, and a deep aggregation
pyramid (DAPPM) at the end of the coarse one.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lowlat_seg_ros.network.layers import conv_bn, resized
from lowlat_seg_ros.network.resnet import Residual, make_stem, stage

WIDTH = 32  # channels of the first stages
BRANCH = 128  # channels of DAPPM's branches and of its output
HEAD = 64  # channels of the segmentation head


def _preactivated(inputs: int, outputs: int, kernel: int) -> nn.Sequential:
    return nn.Sequential(
        nn.BatchNorm2d(inputs),
        nn.ReLU(True),
        nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False),
    )


class DAPPM(nn.Module):
    """Deep aggregation pyramid: pooled branches, each refined with the next finer one (Fig. 5)."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        pools = [nn.AvgPool2d(2 * s + 1, s, s, count_include_pad=True) for s in (2, 4, 8)]
        self.pools = nn.ModuleList([nn.Identity(), *pools, nn.AdaptiveAvgPool2d(1)])
        self.reduce = nn.ModuleList(_preactivated(inputs, BRANCH, 1) for _ in self.pools)
        self.refine = nn.ModuleList(_preactivated(BRANCH, BRANCH, 3) for _ in range(4))
        self.compress = _preactivated(5 * BRANCH, BRANCH, 1)
        self.shortcut = _preactivated(inputs, BRANCH, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, h, w) -> (N, 128, h, w)."""
        branches = [self.reduce[0](x)]
        for pool, reduce, refine in zip(self.pools[1:], self.reduce[1:], self.refine, strict=True):
            branches.append(refine(resized(reduce(pool(x)), x.shape[2:]) + branches[-1]))
        return self.compress(torch.cat(branches, dim=1)) + self.shortcut(x)


class DDRNet23Slim(nn.Module):
    """Normalised image (N, 3, H, W), sides multiples of 8 -> logits (N, classes, H/8, W/8).

    In training mode the auxiliary head's logits of the fine branch come second.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        w = WIDTH
        self.stem = make_stem(w)
        self.layer1 = stage(w, w, 1, end=nn.ReLU(True))
        self.layer2 = stage(w, 2 * w, 2, end=nn.ReLU(True))
        self.coarse3, self.fine3 = stage(2 * w, 4 * w, 2), stage(2 * w, 2 * w, 1)
        self.up3, self.down3 = conv_bn(4 * w, 2 * w, 1), conv_bn(2 * w, 4 * w, 3, 2)
        self.coarse4, self.fine4 = stage(4 * w, 8 * w, 2), stage(2 * w, 2 * w, 1)
        self.up4 = conv_bn(8 * w, 2 * w, 1)
        self.down4 = nn.Sequential(
            conv_bn(2 * w, 4 * w, 3, 2), nn.ReLU(True), conv_bn(4 * w, 8 * w, 3, 2)
        )
        self.coarse5 = Residual(8 * w, 8 * w, 2, widen=2)
        self.fine5 = Residual(2 * w, 2 * w, widen=2)
        self.context = DAPPM(16 * w)
        self.head, self.auxiliary = _head(4 * w, num_classes), _head(2 * w, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, image: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        shared = self.layer2(self.layer1(self.stem(image)))  # 1/8
        coarse, fine, cells = self.coarse3(shared), self.fine3(shared), shared.shape[2:]
        coarse, fine = (
            coarse + self.down3(F.relu(fine)),
            fine + resized(self.up3(F.relu(coarse)), cells),
        )
        early = F.relu(fine)
        coarse, fine = self.coarse4(F.relu(coarse)), self.fine4(early)
        coarse, fine = (
            coarse + self.down4(F.relu(fine)),
            fine + resized(self.up4(F.relu(coarse)), cells),
        )
        coarse, fine = self.coarse5(F.relu(coarse)), self.fine5(F.relu(fine))  # 1/64 and 1/8
        logits = self.head(resized(self.context(coarse), cells) + fine)
        return (logits, self.auxiliary(early)) if self.training else logits


def _head(inputs: int, num_classes: int) -> nn.Sequential:
    return nn.Sequential(
        _preactivated(inputs, HEAD, 3),
        nn.BatchNorm2d(HEAD),
        nn.ReLU(True),
        nn.Conv2d(HEAD, num_classes, 1),
    )
