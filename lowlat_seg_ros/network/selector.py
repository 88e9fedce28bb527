"""Key-frame selector: predicts a segmentation's deviation from the key frame's (Sec. 3.2)."""

from __future__ import annotations

from torch import Tensor, nn

from lowlat_seg_ros.network.layers import conv_bn_relu
from lowlat_seg_ros.network.sharing import Reduced


class KeyFrameSelector(nn.Module):
    """From the difference of low-level features to a deviation in [0, 1].

    The deviation is the fraction of pixels whose label differs from the key frame's.
    """

    def __init__(self, low_channels: int, width: int, shares: bool = False) -> None:
        """``shares``: reads the reduction of :mod:`sharing` instead of its own."""
        super().__init__()
        own = nn.Conv2d(low_channels, width, 3, padding=1)
        self.reduction = Reduced(width) if shares else own
        # Without a ReLU before the pooling the answer would only flip its sign with the
        # direction of the change.
        self.mix = conv_bn_relu(width, width)
        self.unit = nn.Linear(width, 1)

    def reduce(self, low: Tensor) -> Tensor:
        """F_l (N, Cl, H/8, W/8) -> reduced (N, width, H/8, W/8), cached for the key frame."""
        reduced: Tensor = self.reduction(low)
        return reduced

    def forward(self, reduced_key: Tensor, reduced: Tensor) -> Tensor:
        """Reduced F_l of key and current frame -> logit of the deviation (N,)."""
        return self.unit(self.mix(reduced - reduced_key).mean(dim=(2, 3))).squeeze(1)

    def deviation(self, reduced_key: Tensor, reduced: Tensor) -> Tensor:
        """Reduced F_l of key and current frame -> deviation (N,) in [0, 1]."""
        return self(reduced_key, reduced).sigmoid()
