"""Other ways to carry F_h from the key to the current frame (the paper's Table 2)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lowlat_seg_ros.lab.baselines.carry import Carrier
from lowlat_seg_ros.lab.baselines.flow import FlowNetwork, half_size, warp
from lowlat_seg_ros.network.propagation import spatially_variant_convolution
from lowlat_seg_ros.network.segmenter import STRIDE


class Reuse(Carrier):
    """Clockwork (Shelhamer et al., ECCV-W 2016): F_h of the key frame as it is."""

    def keep(self, image: Tensor, low: Tensor | None) -> Tensor:
        return image[:, :, :1, :1]  # nothing is needed

    def motion(self, kept: Tensor, image: Tensor, low: Tensor | None) -> Tensor:
        return kept

    def move(self, high: Tensor, motion: Tensor) -> Tensor:
        return high


class Unified(Carrier):
    """One learned kernel for all locations, channels and frames."""

    #: An optimiser's step changes a parameter by about the learning rate; this many times that
    #: much reaches the softmax, so that the few numbers of a kernel can be shaped at all.
    GAIN = 10.0

    def __init__(self, kernel_size: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(kernel_size**2))
        self.kernel_size = kernel_size

    def keep(self, image: Tensor, low: Tensor | None) -> Tensor:
        return image[:, :, :1, :1]  # nothing is needed

    def motion(self, kept: Tensor, image: Tensor, low: Tensor | None) -> Tensor:
        """The kernel (1, 1, K, K)."""
        side = self.kernel_size
        return (self.GAIN * self.logits).softmax(dim=0).view(1, 1, side, side)

    def move(self, high: Tensor, motion: Tensor) -> Tensor:
        """Eq. (1) with the same kernel everywhere: a convolution of each channel."""
        count, channels, height, width = high.shape
        padded = F.pad(high, (self.kernel_size // 2,) * 4, mode="replicate")
        single = padded.reshape(count * channels, 1, *padded.shape[2:])
        # conv2d correlates, Eq. (1) convolves.
        out = F.conv2d(single, motion.flip(2, 3).to(high.dtype))
        return out.view(count, channels, height, width)


class ImageDifference(Carrier):
    """Kernels from the images alone: the more alike two pixels, the larger the weight.

    ``W(u,v,i,j)`` is the softmax over (u, v) of ``-|I_t(i,j) - I_k(i-u,j-v)| / TEMPERATURE``, the
    images being averaged over the 8x8 pixels of a cell. Nothing of it is learned.
    """

    #: Difference, in standard deviations of the images, that lowers a weight to 1/e.
    TEMPERATURE = 0.1

    def __init__(self, kernel_size: int) -> None:
        super().__init__()
        self.kernel_size = kernel_size

    def keep(self, image: Tensor, low: Tensor | None) -> Tensor:
        return F.avg_pool2d(image, STRIDE)

    def motion(self, kept: Tensor, image: Tensor, low: Tensor | None) -> Tensor:
        """Kernels (N, K*K, H/8, W/8)."""
        now, taps = F.avg_pool2d(image, STRIDE), self.kernel_size**2
        count, channels, height, width = now.shape
        padded = F.pad(kept, (self.kernel_size // 2,) * 4, mode="replicate")
        windows = F.unfold(padded, self.kernel_size)
        # The first window is the cell up and left, which Eq. (1) reads at the last tap.
        shifted = windows.view(count, channels, taps, height, width).flip(2)
        difference = (shifted - now[:, :, None]).abs().mean(dim=1)
        return (-difference / self.TEMPERATURE).softmax(dim=1)

    def move(self, high: Tensor, motion: Tensor) -> Tensor:
        return spatially_variant_convolution(high, motion)


class Flow(Carrier):
    """DFF (Zhu et al., CVPR 2017): a bilinear warp along learned flow, then a scale per channel."""

    def __init__(self, high_channels: int) -> None:
        super().__init__()
        self.network = FlowNetwork(extra=high_channels)

    def keep(self, image: Tensor, low: Tensor | None) -> Tensor:
        return half_size(image)

    def motion(self, kept: Tensor, image: Tensor, low: Tensor | None) -> Tensor:
        """Flow and, as its difference from 1, the scale: (N, 2 + Ch, H/8, W/8)."""
        maps: Tensor = self.network(kept, half_size(image))
        return maps

    def move(self, high: Tensor, motion: Tensor) -> Tensor:
        return warp(high, motion[:, :2]) * (1 + motion[:, 2:])
