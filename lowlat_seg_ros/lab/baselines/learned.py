"""The methods with weights of their own, each on top of one base network that all share.

Most are trained on pairs (key, current) of which the current frame is labelled; the engines in
``lowlat_seg_ros.lab.baselines`` run them over a stream.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn

from lowlat_seg_ros.config import TRUNKS, ConfigError
from lowlat_seg_ros.lab.baselines.carry import (
    Adaptive,
    Carrier,
    Flow,
    FlowNetwork,
    FusedHead,
    Head,
    ImageDifference,
    Reuse,
    Unified,
    half_size,
)
from lowlat_seg_ros.lab.baselines.ddrnet import DDRNet23Slim
from lowlat_seg_ros.lab.baselines.stream import GatedRecurrentWarp
from lowlat_seg_ros.network.fast_track import AdaptNet, Classifier, Fusion
from lowlat_seg_ros.network.layers import resized
from lowlat_seg_ros.network.propagation import KernelPredictor
from lowlat_seg_ros.network.resnet import ResNet
from lowlat_seg_ros.network.segmenter import STRIDE, Segmenter, new_classifier
from lowlat_seg_ros.network.trunk import Trunk


@dataclass(frozen=True, eq=False)
class Encoded:
    """Normalised images (N, 3, H, W), their F_l and F_h from the base network."""

    image: Tensor
    low: Tensor
    high: Tensor


class Baseline(nn.Module):
    """``learned`` is what has weights of its own; the rest is the base network, shared."""

    def __init__(self, base: Segmenter, **learned: nn.Module) -> None:
        super().__init__()
        self.base = base
        self.learned = nn.ModuleDict(learned)


class PairMethod(Baseline, ABC):
    """A baseline that is trained on pairs."""

    @abstractmethod
    def pair(self, key: Encoded, now: Encoded) -> Tensor:
        """Logits (N, classes, r*H/8, r*W/8) of the current frames."""

    def classify_low(self, low: Tensor) -> Tensor | None:
        """Logits of AdaptNet alone, None without one."""
        return None

    @property
    def flow(self) -> FlowNetwork | None:
        """The network that estimates flow, None without one."""
        return next((m for m in self.learned.modules() if isinstance(m, FlowNetwork)), None)


class CarriedMethod(PairMethod):
    """A carrier of F_h and a head.

    AdaptNet and the classifiers of masks begin as the base network's, fusion begins untrained, so
    that no method profits from the propagation that a checkpoint may have been trained for.
    """

    def __init__(self, make: Callable[[Segmenter], Carrier], fuse: bool, base: Segmenter) -> None:
        own, config = copy.deepcopy, base.config
        if config.fine_carry:
            raise ConfigError(
                "this network carries its answers besides F_h (fine_carry), which the compared "
                "ways to carry F_h do not; give --start-from a network without, such as resnet18"
            )
        if fuse:
            head: Head = FusedHead(
                own(base.adapt),
                Fusion(config.high_channels, config.module_channels),
                new_classifier(config),
                own(base.low_classifier),
                own(base.high_classifier) if config.residual_fusion else None,
            )
        else:
            head = Head(own(base.high_classifier))
        super().__init__(base, carrier=make(base), head=head)

    @property
    def carrier(self) -> Carrier:
        return cast(Carrier, self.learned["carrier"])

    @property
    def head(self) -> Head:
        return cast(Head, self.learned["head"])

    def pair(self, key: Encoded, now: Encoded) -> Tensor:
        remembered = self.carrier.remember(self.carrier.view(key.image, key.low))
        motion = self.carrier.motion(remembered, self.carrier.view(now.image, now.low))
        logits: Tensor = self.head(self.carrier.move(key.high, motion), now.low)
        return logits

    def classify_low(self, low: Tensor) -> Tensor | None:
        head = self.head
        return head.classify_low(low) if isinstance(head, FusedHead) else None


class GrfpMethod(PairMethod):
    """The recurrent cell; the key frame of a pair is its frame before."""

    def __init__(self, base: Segmenter) -> None:
        super().__init__(base, cell=GatedRecurrentWarp(base.config.num_classes))

    def pair(self, key: Encoded, now: Encoded) -> Tensor:
        before, current = (
            self.base.classify_high(part.high).float().softmax(dim=1) for part in (key, now)
        )
        images = half_size(key.image), half_size(now.image)
        logits: Tensor = self.learned["cell"](before, *images, current)
        return logits


class SingleFrameMethod(PairMethod):
    """Sl, AdaptNet and a classifier trained for this alone; the key frame of a pair is ignored.

    All begin as the base network's auxiliary mask, and Sl is trained as well. ``wide``: AdaptNet is
    as wide as the multiply-adds of the whole fast track allow, so that the difference that remains
    comes from the key frame.
    """

    def __init__(self, base: Segmenter, wide: bool) -> None:
        backbone, config = base.backbone, base.config
        own: tuple[nn.Module, ...]
        if base.encoder is not None:
            own = (base.encoder,)
        else:
            assert isinstance(backbone, ResNet)
            stem = (backbone.conv1, backbone.bn1, backbone.relu, backbone.maxpool)
            own = (*stem, *backbone.lower_blocks())
        width = equal_width(base) if wide else config.module_channels
        kernel = config.shared_reduction or 3
        far, depth = config.adapt_context, config.adapt_depth
        adapt = AdaptNet(base.encoded_channels, width, far, depth=depth, kernel=kernel)
        classifier = Classifier(width, config.num_classes, config.classifier_upsampling)
        # Its first convolution is the one that all readers of F_l share, where there is one.
        shared = {k.replace("reduce.", "first."): v for k, v in base.shared.state_dict().items()}
        _begin_as(shared | base.adapt.state_dict(), adapt)
        _begin_as(base.low_classifier.state_dict(), classifier)
        lower = (copy.deepcopy(part) for part in own)
        super().__init__(base, network=nn.Sequential(*lower, adapt, classifier))

    def pair(self, key: Encoded, now: Encoded) -> Tensor:
        logits: Tensor = self.learned["network"](now.image)
        return logits


def embed(narrow: Tensor, wide: Tensor) -> None:
    """Copy a layer's parameter into a wider layer's: its first outputs stay what they were.

    They ignore the inputs that ``narrow`` does not have (Net2Net, Chen et al., ICLR 2016); further
    outputs keep their own initialisation.
    """
    with torch.no_grad():
        if wide.ndim > 1:
            wide[: len(narrow)] = 0
        wide[tuple(slice(0, size) for size in narrow.shape)] = narrow


def _begin_as(narrow: dict[str, Tensor], wide: nn.Module) -> None:
    """Set the weights of ``wide`` so that until they are trained they answer as ``narrow`` do."""
    for name, parameter in wide.state_dict().items():
        embed(narrow[name], parameter)


def _weights(*parts: nn.Module) -> int:
    """Of their convolutions: multiply-adds per location."""
    convolutions = [m for part in parts for m in part.modules() if isinstance(m, nn.Conv2d)]
    return sum(conv.weight.numel() for conv in convolutions)


def equal_width(base: Segmenter) -> int:
    """Width at which AdaptNet and classifier cost as much as the fast track after Sl.

    In multiply-adds per location; a multiple of 4, the largest that does not cost more. AdaptNet's
    far branch, which both have, is left out.
    """
    config, adapt = base.config, base.adapt
    fine: list[nn.Module] = [base.shared, adapt.first, adapt.second, adapt.third]
    if base.gate is not None:
        fine += [base.gate, base.low_classifier]
    else:
        fine += [base.classifier, *([base.high_classifier] if config.residual_fusion else [])]
    propagation = _weights(base.predictor, base.fusion)
    propagation += config.kernel_size**2 * config.high_channels  # Eq. (1)
    fast_track = _weights(*fine) + propagation // (4 if base.is_coarse else 1)
    inputs, width = base.encoded_channels * (config.shared_reduction or 3) ** 2, 4

    def cost(w: int) -> int:
        return w * (inputs + 9 * (config.adapt_depth - 1) * w + base.classifier.out_channels)

    while cost(width + 4) <= fast_track:
        width += 4
    return width


#: Height and width of the image that the small Sh reads, as a share of the network's. At this one
#: it costs about what the fast track costs.
SMALL_SCALE = 0.5


class SmallSh(nn.Module):
    """Sh and its classifier as one network on a small image; it begins as Sh itself."""

    def __init__(self, base: Segmenter) -> None:
        super().__init__()
        if not isinstance(base.backbone, Trunk):
            raise ConfigError(
                f"sh_small is for a Sh that reads images of any size, not for a split "
                f"{base.config.backbone}; give a checkpoint whose backbone is one of "
                f"{', '.join(TRUNKS)}"
            )
        self.trunk = copy.deepcopy(base.backbone)
        self.head, self.classifier = map(copy.deepcopy, (base.context, base.high_classifier))

    def forward(self, image: Tensor) -> Tensor:
        """Normalised image (N, 3, H, W) -> logits (N, classes, r*H/8, r*W/8)."""
        small = [max(1, round(side * SMALL_SCALE / 16)) * 16 for side in image.shape[2:]]
        cells = (image.shape[2] // STRIDE, image.shape[3] // STRIDE)
        high = self.head(*self.trunk.features(resized(image, small)), cells=cells)  # F_h alone
        logits: Tensor = self.classifier(high)
        return logits


def _adaptive(base: Segmenter) -> Carrier:
    config, shares = base.config, base.config.shared_reduction > 0
    return Adaptive(
        KernelPredictor(base.low_channels, config.module_channels, config.kernel_size, shares)
    )


#: Ways to carry F_h, made for a base network.
CARRIERS: dict[str, Callable[[Segmenter], Carrier]] = {
    "clockwork": lambda base: Reuse(),
    "dff": lambda base: Flow(base.config.high_channels),
    "unified": lambda base: Unified(base.config.kernel_size),
    "image_difference": lambda base: ImageDifference(base.config.kernel_size),
    "adaptive": _adaptive,
}


def _carried(carrier: str, fuse: bool) -> Callable[[Segmenter], Baseline]:
    return partial(CarriedMethod, CARRIERS[carrier], fuse)


#: Trained on pairs, as the paper's own propagation is. Table 1 compares with AdaptNet (``dff`` and
#: ``clockwork`` here), Table 2 without. ``adaptive_equal`` is the paper's own, trained with exactly
#: as many steps as the others.
PAIR_METHODS: dict[str, Callable[[Segmenter], Baseline]] = {
    "clockwork": _carried("clockwork", fuse=True),
    "clockwork_no_fuse": _carried("clockwork", fuse=False),
    "dff": _carried("dff", fuse=True),
    "dff_no_fuse": _carried("dff", fuse=False),
    "unified": _carried("unified", fuse=False),
    "unified_fused": _carried("unified", fuse=True),
    "image_difference": _carried("image_difference", fuse=False),
    "image_difference_fused": _carried("image_difference", fuse=True),
    "adaptive_no_fuse": _carried("adaptive", fuse=False),
    "adaptive_equal": _carried("adaptive", fuse=True),
    "grfp": GrfpMethod,
    "single_frame_trained": partial(SingleFrameMethod, wide=False),
    "single_frame_wide": partial(SingleFrameMethod, wide=True),
}

#: Trained on single labelled images, as the base network is. DDRNet-23-slim shares only the
#: preparation of images with the base network.
IMAGE_METHODS: dict[str, Callable[[Segmenter], Baseline]] = {
    "ddrnet23_slim": lambda base: Baseline(base, network=DDRNet23Slim(base.config.num_classes)),
    "sh_small": lambda base: Baseline(base, network=SmallSh(base)),
}

METHODS = PAIR_METHODS | IMAGE_METHODS
