"""Sl as an encoder of its own: DDRNet-23-slim's first stages, or a trunk on a smaller image.

The paper splits one network in two, so that what Sl costs is what the lower part of a network costs
that is made to be accurate. Here Sl is made to be fast, and Sh reads the image (in the background,
where the time that it takes for it hurts nobody).

:class:`DDREncoder`: Hong et al., "Deep Dual-resolution Networks for
Real-time and Accurate Semantic Segmentation of Road Scenes", arXiv 2101.06085: two branches from
1/8 on, the coarse one seeing further. Of their fourth stage one block of two remains, of the
others as many as wanted; what comes after, above all the context of the whole scene, is what
propagation brings.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lowlat_seg_ros.network.ddrnet import DDRNet23Slim, Residual, make_stem, stage
from lowlat_seg_ros.network.layers import conv_bn
from lowlat_seg_ros.network.pyramid import FINENESS, resized, sum_of
from lowlat_seg_ros.network.trunk import Trunk

#: Scale at which each pixel that Sl reads is the mean of four.
HALF = 0.5


class TrunkEncoder(nn.Module):
    """A trunk that has seen real images, on a smaller image: (N, 3, H, W) -> F_l (N, C, H/8, W/8).

    Each feature, and the mean of the last, is brought to F_l's channels and size, and summed. The
    finest comes with the points of a cell as channels, so that nothing of it is averaged away.
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
        """``pause`` is called between the trunk's blocks."""
        cells = [side // 8 for side in image.shape[2:]]
        first, *others = self.trunk.features(self.shrunk(image), pause)
        points = resized(first, [FINENESS * side for side in cells])
        if self._arranges:
            points = F.pixel_unshuffle(points, FINENESS)
            points = points.contiguous(memory_format=torch.channels_last)
        parts = [self.fine(points)]
        for lateral, feature in zip(self.lateral, others, strict=True):
            parts.append(resized(lateral(feature), cells))
        whole = self.whole(others[-1].mean((2, 3), keepdim=True))
        return (sum_of(parts) + whole).relu()

    def shrunk(self, image: Tensor) -> Tensor:
        """The image (N, 3, h, w) that the trunk reads; at half the sides each pixel is a mean."""
        if not self._shrinks:
            return image
        if self.scale == HALF:
            return F.avg_pool2d(image, 2)
        cells = [side // 8 for side in image.shape[2:]]
        return resized(image, [max(2, round(side * self.scale)) * 8 for side in cells])

    def fold(self) -> None:
        """Let the first convolution take the means of :meth:`shrunk` itself, for inference.

        A mean is a convolution, and two in a row are one: 3x3 at stride 2 becomes 6x6 at stride 4,
        whose few more products cost less than a pass over the image.
        """
        self._fold_points()
        if not self._shrinks or self.scale != HALF:
            return
        self._shrinks, conv = False, self.trunk.first
        kernel = conv.weight.detach().contiguous()
        mean = torch.full((1, 1, 2, 2), 0.25, dtype=kernel.dtype, device=kernel.device)
        conv.weight = nn.Parameter(torch.kron(kernel, mean))
        conv.kernel_size, conv.stride, conv.padding = (6, 6), (4, 4), (2, 2)

    def _fold_points(self) -> None:
        """Let the convolution of a cell's points take them where they are, instead of a copy."""
        conv = self.fine[0]
        if not isinstance(conv, nn.Conv2d) or conv.kernel_size != (1, 1):
            return
        side = (FINENESS, FINENESS)
        inputs = conv.in_channels // FINENESS**2
        kernel = conv.weight.detach().contiguous().view(-1, inputs, *side)
        conv.weight, conv.in_channels = nn.Parameter(kernel), inputs
        conv.kernel_size, conv.stride, self._arranges = side, side, False


class DDREncoder(nn.Module):
    """Normalised image (N, 3, H, W), sides multiples of 8 -> (N, ``channels``, H/8, W/8).

    That is F_l, unless a shared reduction ends Sl (:mod:`sharing`).
    """

    def __init__(self, width: int, blocks: Sequence[int] = (2, 2, 2)) -> None:
        """``blocks``: residual blocks of the first, the second and each branch of the third stage.

        Those left out only add to what the ones before them give.
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
        """``pause`` is called between the stages."""
        x = self.layer1(self.stem(image))
        pause()
        shared = self.layer2(x)
        pause()
        coarse, fine = self.coarse3(shared), self.fine3(shared)
        pause()
        coarse, fine = (
            coarse + self.down3(F.relu(fine)),
            fine + self._up(self.up3(F.relu(coarse)), fine),
        )
        coarse, fine = self.coarse4(F.relu(coarse)), self.fine4(F.relu(fine))
        return F.relu(fine + self._up(self.up4(F.relu(coarse)), fine))

    @staticmethod
    def _up(coarse: Tensor, fine: Tensor) -> Tensor:
        return F.interpolate(coarse, fine.shape[2:], mode="bilinear")

    def begin_as(self, network: DDRNet23Slim) -> None:
        """Take over the weights of a trained DDRNet-23-slim; raises ``RuntimeError`` if too wide.

        The blocks that are left out there only add to what the ones before them give.
        """
        state = network.state_dict()
        own = {}
        for name in self.state_dict():
            whole = name if name in state else name.replace("4.", "4.0.", 1)
            own[name] = state[whole]
        self.load_state_dict(own)
