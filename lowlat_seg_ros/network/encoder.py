"""Sl as an encoder of its own: the first stages of DDRNet-23-slim, cheaper than half a ResNet.

The paper splits one network in two, so that what Sl costs is what the lower part of a network costs
that is made to be accurate. Here Sl is made to be fast, and Sh reads the image (in the background,
where the time that it takes for it hurts nobody). Hong et al., "Deep Dual-resolution Networks for
Real-time and Accurate Semantic Segmentation of Road Scenes", arXiv 2101.06085: two branches from
1/8 on, the coarse one seeing further. Of their fourth stage one block of two remains, of the
others as many as wanted; what comes after, above all the context of the whole scene, is what
propagation brings.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from lowlat_seg_ros.network.ddrnet import DDRNet23Slim, Residual, conv_bn, make_stem, stage


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
