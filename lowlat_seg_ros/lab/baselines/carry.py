"""Ways to carry features from the key frame, and heads that classify what was carried.

All methods share the segmenter's Sl, Sh and classifier of full masks, so that they differ in
nothing else (the paper's Tables 1 and 2). DFF and GRFP share a small flow network and the bilinear
warp along its flow. In shapes r is ``classifier_upsampling``.
"""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lowlat_seg_ros.network.fast_track import AdaptNet, Classifier, Fusion
from lowlat_seg_ros.network.layers import conv_bn, conv_bn_relu, resized
from lowlat_seg_ros.network.propagation import KernelPredictor, spatially_variant_convolution
from lowlat_seg_ros.network.segmenter import STRIDE


class FlowNetwork(nn.Module):
    """Two images at half size -> flow and ``extra`` further maps, at 1/8 of the full size.

    An encoder to 1/32 and a decoder back to 1/8, in the manner of FlowNetS (Dosovitskiy et al.,
    ICCV 2015) at about a fiftieth of its work. It starts with no motion.
    """

    def __init__(self, extra: int = 0, width: int = 32) -> None:
        super().__init__()
        sizes = [6, width, 2 * width, 4 * width, 8 * width]
        self.down = nn.ModuleList(
            nn.Sequential(*conv_bn(inputs, outputs, 3, 2), nn.ReLU(True))
            for inputs, outputs in itertools.pairwise(sizes)
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
        for level, up in ((levels[2], self.up16), (levels[1], self.up8)):
            x = up(torch.cat([resized(x, level.shape[2:]), level], dim=1))
        maps = [self.flow(x)] + ([self.extra(x)] if self.extra is not None else [])
        return torch.cat(maps, dim=1).float()


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


class Carrier(nn.Module):
    """Carries F_h (N, Ch, H/8, W/8) from the key frame to the current one.

    All methods map tensors to one tensor, so that an engine can run each as one CUDA graph.
    """

    #: Whether :meth:`view` reads F_l; if not, Sl need not run on frames between key frames.
    needs_low = False

    def view(self, image: Tensor, low: Tensor | None) -> Tensor:
        """What is compared of a frame, key frame or not; by default nothing is.

        ``image``: normalised (N, 3, H, W); ``low``: F_l, None where it was not computed.
        """
        return image.new_zeros(1)

    def remember(self, view: Tensor) -> Tensor:
        """What :meth:`motion` needs of the key frame's view; computed once for each key frame."""
        return view

    def motion(self, remembered: Tensor, view: Tensor) -> Tensor:
        """How features move from the key frame to the current one."""
        return remembered

    def move(self, high: Tensor, motion: Tensor) -> Tensor:
        """F_h of the key frame, moved; by default by kernels ``motion`` (N, K*K, H/8, W/8)."""
        return spatially_variant_convolution(high, motion)


class Reuse(Carrier):
    """Clockwork (Shelhamer et al., ECCV-W 2016): F_h of the key frame as it is."""

    def move(self, high: Tensor, motion: Tensor) -> Tensor:
        return high


class Unified(Carrier):
    """One learned kernel for all locations, channels and frames."""

    #: An optimiser's step changes a parameter by about the learning rate. This factor makes the
    #: change large enough at the softmax for the few numbers of a kernel to be learned at all.
    GAIN = 10.0

    def __init__(self, kernel_size: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(kernel_size**2))
        self.kernel_size = kernel_size

    def motion(self, remembered: Tensor, view: Tensor) -> Tensor:
        """The kernel (1, 1, K, K)."""
        size = self.kernel_size
        return (self.GAIN * self.logits).softmax(dim=0).view(1, 1, size, size)

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

    def view(self, image: Tensor, low: Tensor | None) -> Tensor:
        return F.avg_pool2d(image.float(), STRIDE)  # in bfloat16 the means would be rounded

    def motion(self, remembered: Tensor, view: Tensor) -> Tensor:
        count, channels, height, width = view.shape
        padded = F.pad(remembered, (self.kernel_size // 2,) * 4, mode="replicate")
        windows = F.unfold(padded, self.kernel_size)
        # The first window is the cell up and left, which Eq. (1) reads at the last tap.
        shifted = windows.view(count, channels, self.kernel_size**2, height, width).flip(2)
        difference = (shifted - view[:, :, None]).abs().mean(dim=1)
        return (-difference / self.TEMPERATURE).softmax(dim=1)


class Flow(Carrier):
    """DFF (Zhu et al., CVPR 2017): a bilinear warp along learned flow, then a scale per channel."""

    def __init__(self, high_channels: int) -> None:
        super().__init__()
        self.network = FlowNetwork(extra=high_channels)

    def view(self, image: Tensor, low: Tensor | None) -> Tensor:
        return half_size(image.float())  # in bfloat16 the means would be rounded

    def motion(self, remembered: Tensor, view: Tensor) -> Tensor:
        """Flow and, as its difference from 1, the scale: (N, 2 + Ch, H/8, W/8)."""
        maps: Tensor = self.network(remembered, view)
        return maps

    def move(self, high: Tensor, motion: Tensor) -> Tensor:
        return warp(high, motion[:, :2]) * (1 + motion[:, 2:])


class Adaptive(Carrier):
    """The paper's own: a kernel for every location, predicted from both frames' F_l (Sec. 3.3)."""

    needs_low = True

    def __init__(self, predictor: KernelPredictor) -> None:
        super().__init__()
        self.predictor = predictor

    def view(self, image: Tensor, low: Tensor | None) -> Tensor:
        """F_l, reduced as :meth:`KernelPredictor.reduce` does it."""
        return self.predictor.reduce(_given(low))

    def remember(self, view: Tensor) -> Tensor:
        return self.predictor.remember(view)

    def motion(self, remembered: Tensor, view: Tensor) -> Tensor:
        weights: Tensor = self.predictor(remembered, view)
        return weights


class Head(nn.Module):
    """Classifies carried F_h as it is."""

    needs_low = False

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, carried: Tensor, low: Tensor | None) -> Tensor:
        """Logits (N, classes, r*H/8, r*W/8) of the current frame.

        ``carried``: F_h (N, Ch, H/8, W/8) of the key frame, moved. ``low``: the current frame's
        F_l, None where it was not computed.
        """
        logits: Tensor = self.classifier(carried)
        return logits


class FusedHead(Head):
    """Carried F_h fused with what AdaptNet makes of the current frame's F_l, then classified.

    ``low_classifier`` is only for training: it gives AdaptNet's own answer. ``residual`` is the
    full network's classifier where fusion corrects its answer, else None.
    """

    needs_low = True

    def __init__(
        self, adapt: AdaptNet, fusion: Fusion, classifier: Classifier, low_classifier: Classifier,
        residual: Classifier | None,
    ) -> None:  # fmt: skip
        nn.Module.__init__(self)
        self.adapt, self.fusion, self.classifier = adapt, fusion, classifier
        self.low_classifier, self.residual = low_classifier, residual

    def classify_low(self, low: Tensor) -> Tensor:
        """Logits (N, classes, r*H/8, r*W/8) of AdaptNet alone."""
        logits: Tensor = self.low_classifier(self.adapt(low))
        return logits

    def forward(self, carried: Tensor, low: Tensor | None) -> Tensor:
        logits: Tensor = self.classifier(self.fusion(carried, self.adapt(_given(low))))
        return logits if self.residual is None else logits + self.residual(carried)


def _given(low: Tensor | None) -> Tensor:
    if low is None:
        raise ValueError("F_l is None; this method needs Sl on every frame")
    return low
