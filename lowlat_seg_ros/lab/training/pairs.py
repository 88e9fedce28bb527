"""Stages on pairs of a key and a labelled current frame; the base network is frozen.

The propagation modules (stage 2 of the paper, Sec. 4), and the methods that its propagation is
compared with. Beside the paper's cross-entropy all learn from the full network's answer on the
current frame.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from lowlat_seg_ros.config import Rule, check, setting
from lowlat_seg_ros.lab.baselines.carry import half_size, photometric
from lowlat_seg_ros.lab.baselines.learned import Encoded, PairMethod
from lowlat_seg_ros.lab.data.augment import Augment
from lowlat_seg_ros.lab.training.losses import (
    AUXILIARY,
    class_weights,
    distillation_loss,
    feature_loss,
    jaccard_loss,
    scores,
    segmentation_loss,
)
from lowlat_seg_ros.lab.training.sources import draw
from lowlat_seg_ros.network.gate import evidence_of
from lowlat_seg_ros.network.segmenter import Segmenter
from lowlat_seg_ros.network.warping import luma_of, motion

#: Weight of the photometric loss that flow networks learn from besides.
PHOTOMETRIC = 0.5


@dataclass(frozen=True)
class PropagationLoss:
    """What is minimised besides the cross-entropy of the fused mask."""

    distillation: float = setting(
        0.5, "weight of the full network's answer on the current frame", Rule(low=0.0, high=100.0)
    )
    feature_distillation: float = setting(
        0.2,
        "weight of the error of the propagated F_h, as a share of the variance of F_h",
        Rule(low=0.0, high=100.0),
    )
    auxiliary_distillation: float = setting(
        0.0,
        "weight of the full network's answer in what the auxiliary mask learns",
        Rule(low=0.0, high=100.0),
    )
    jaccard: float = setting(
        0.0,
        "weight of the Lovasz-Softmax loss of the fused and the auxiliary mask, which favours "
        "small classes as mIoU does",
        Rule(low=0.0, high=100.0),
    )
    chained_share: float = setting(
        0.5,
        "share of the batches whose F_h goes to the current frame, back to the key frame and again "
        "to the current one, as provisional features go from key frame to key frame",
        Rule(low=0.0, high=1.0),
    )

    def __post_init__(self) -> None:
        check(self)


class PropagationStage:
    """Cross-entropy on the fused and the auxiliary mask, and distillation."""

    name = "propagation"

    def __init__(
        self, segmenter: Segmenter, pairs: TensorDataset, held_out: TensorDataset, augment: Augment,
        loss_weights: PropagationLoss = PropagationLoss(),
    ) -> None:  # fmt: skip
        self.segmenter, self.pairs, self.held_out = segmenter, pairs, held_out
        self.augment, self.loss_weights = augment, loss_weights
        self.weights = class_weights(pairs.tensors[2], segmenter.config.num_classes)

    def trained(self) -> list[list[nn.Module]]:
        """Kernel predictor, AdaptNet, fusion, the two classifiers and an encoder of its own."""
        net = self.segmenter
        own: list[nn.Module] = [] if net.encoder is None else [net.encoder, net.shared]
        own += [] if net.gate is None else [net.gate]
        return [[*own, net.predictor, net.adapt, net.fusion, net.classifier, net.low_classifier]]

    def loss(self, batch_size: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        """Loss of one augmented batch of pairs."""
        net, weigh = self.segmenter, self.loss_weights
        key, current, label, ages = draw(self.pairs, batch_size, generator)
        key, current, label = self.augment.pair(key, current, label, generator)
        both = net.normalise(torch.cat([key, current]))
        both = both.contiguous(memory_format=torch.channels_last)
        # Only an encoder of its own is trained here: Sh stands on a Sl that it shares.
        with torch.set_grad_enabled(net.encoder is not None):
            low = net.lower(both)
        with torch.no_grad():
            high_key, high = net.higher(net.source(both, low)).chunk(2)
            teacher = net.classify_high(high)
        chance = torch.rand((), generator=generator, device=low.device)
        chained = bool(chance < weigh.chained_share)
        lows = low.chunk(2)
        carried, answers, known = carry_all(net, lows, high_key, (key, current), ages, chained)
        fused = net.classify_fused(carried, lows[1], known, answers)
        own = net.classify_low(lows[1])
        parts = {
            "fused": segmentation_loss(fused, label, self.weights),
            "aux": AUXILIARY * segmentation_loss(own, label, self.weights),
            "distil": weigh.distillation * distillation_loss(fused, teacher),
            # F_h of the current frame is what carried F_h should be.
            "features": weigh.feature_distillation
            * feature_loss(carried, net.carried_cells(high.float())),
        }
        if weigh.jaccard > 0:
            both_masks = jaccard_loss(fused, label) + AUXILIARY * jaccard_loss(own, label)
            parts["jaccard"] = weigh.jaccard * both_masks
        if weigh.auxiliary_distillation > 0:
            parts["aux_distil"] = weigh.auxiliary_distillation * distillation_loss(own, teacher)
        return sum(parts.values(), torch.zeros(())), {k: v.item() for k, v in parts.items()}

    def evaluate(self) -> dict[str, float]:
        """Held-out mIoU of the fast track, of the full network and of the auxiliary mask."""
        found = scores(self._answers())
        return {"miou": found["fused"].miou} | {
            f"{name}_miou": found[name].miou for name in ("full", "aux")
        }

    def _answers(self) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
        net = self.segmenter
        for key, image, label, age in zip(*self.held_out.tensors, strict=True):
            images = torch.stack([key, image]).float() / 255
            both = net.normalise(images)
            low = net.lower(both)
            high = net.higher(net.source(both, low))
            lows, pair = low.chunk(2), images.chunk(2)
            carried, answers, known = carry_all(net, lows, high[:1], pair, age[None])
            yield (
                label,
                {
                    "fused": net.classify_fused(carried, low[1:], known, answers),
                    "full": net.classify_high(high[1:]),
                    "aux": net.classify_low(low[1:]),
                },
            )


def carry_all(
    net: Segmenter, lows: Sequence[Tensor], high_key: Tensor, images: Sequence[Tensor],
    ages: Tensor, chained: bool = False,
) -> tuple[Tensor, Tensor | None, Tensor | None]:  # fmt: skip
    """What the fast track has of the key frame: carried F_h, carried answers, the gate's evidence.

    ``lows`` (N, Cl, H/8, W/8) and ``images``, RGB in [0, 1] (N, 3, H, W), are of the key frames and
    of the current ones, which are ``ages`` (N,) seconds later. The last two are None where the
    network carries no answers.
    """
    carried = carry(net, lows[0], high_key, lows[1], chained)
    answers, residual = warped(net, high_key, *images)
    if residual is None:
        return carried, None, None
    before, now = (net.predictor.reduce(low) for low in lows)
    return carried, answers, evidence_of(before, now, ages, residual)


def carry(
    net: Segmenter, low_key: Tensor, high_key: Tensor, low: Tensor, chained: bool = False
) -> Tensor:
    """F_h of the key frame carried to the current one, (N, Ch, H/8, W/8) or of 2x2 cells, float32.

    ``chained``: by way of the current frame and the key frame.
    """
    predictor = net.predictor
    before, now = predictor.reduce(low_key), predictor.reduce(low)
    there = predictor(predictor.remember(before), now)
    ways = [there]
    if chained:
        ways += [predictor(predictor.remember(now), before), there]
    carried = net.carried_cells(high_key.float())
    for weights in ways:
        carried = net.propagate(carried, weights)
    return carried


@torch.no_grad()
def warped(
    net: Segmenter, high_key: Tensor, keys: Tensor, images: Tensor
) -> tuple[Tensor | None, Tensor | None]:
    """The full network's answers on key frames, where optical flow has them now; its residual.

    ``keys`` and ``images``: RGB in [0, 1] (N, 3, H, W). Both are None where the network does not
    carry its answers; see :class:`~.warping.Motion`.
    """
    if not net.config.fine_carry:
        return None, None
    answers = net.answers(high_key)
    points = net.config.classifier_upsampling
    motions = [
        motion(_luma(key), _luma(image), points) for key, image in zip(keys, images, strict=True)
    ]
    flow = torch.cat([m.flow for m in motions]).to(answers.device)
    residual = torch.cat([m.residual for m in motions]).to(answers.device)
    return net.warp(answers.float(), flow), residual


def _luma(image: Tensor) -> np.ndarray:
    pixels = image.mul(255).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
    return luma_of(np.ascontiguousarray(pixels))


class SideBySide(nn.Module):
    """What methods have learned, by name, beside the base network that they share."""

    def __init__(self, base: Segmenter, methods: dict[str, PairMethod]) -> None:
        super().__init__()
        self.base = base
        self.learned = nn.ModuleDict({name: method.learned for name, method in methods.items()})


class PairStage:
    """Cross-entropy of the compared methods, and the divergence from the full network's answer.

    ``distillation`` and ``jaccard`` are the weights of that divergence and of the
    :func:`.losses.jaccard_loss`.

    All see the same pairs, augmentation and losses, so that nothing but the method differs; what
    the base network makes of a batch, the dominant cost, is computed once for all. Where a method
    has AdaptNet, its own answer counts as well, as it does for the paper's propagation; where it
    has a flow network, so does how well the flow explains the images. The ``methods`` share no
    trained weight, so each becomes what it would have become alone.
    """

    def __init__(
        self, name: str, methods: dict[str, PairMethod], pairs: TensorDataset,
        held_out: TensorDataset, augment: Augment, distillation: float, jaccard: float = 0.0,
    ) -> None:  # fmt: skip
        self.name, self.methods, self.augment = name, methods, augment
        self.jaccard = jaccard
        self.pairs, self.held_out, self.distillation = pairs, held_out, distillation
        self.base = next(iter(methods.values())).base
        self.segmenter = SideBySide(self.base, methods)
        self.weights = class_weights(pairs.tensors[2], self.base.config.num_classes)

    def trained(self) -> list[list[nn.Module]]:
        """The methods' own weights, each a group."""
        return [[method.learned] for method in self.methods.values()]

    def loss(self, batch_size: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        """Sum of the methods' losses of one augmented batch of pairs; their parts are named."""
        key, current, label, _ = draw(self.pairs, batch_size, generator)
        key, current, label = self.augment.pair(key, current, label, generator)
        before, now = self._encode(key, current)
        with torch.no_grad():
            teacher = self.base.classify_high(now.high)
        parts = {
            self._column(name, part): loss
            for name, method in self.methods.items()
            for part, loss in self._parts(method, before, now, label, teacher).items()
        }
        return torch.stack(list(parts.values())).sum(), {k: v.item() for k, v in parts.items()}

    def _parts(
        self, method: PairMethod, before: Encoded, now: Encoded, label: Tensor, teacher: Tensor
    ) -> dict[str, Tensor]:
        """The losses of one method."""
        logits = method.pair(before, now)
        parts = {
            "own": segmentation_loss(logits, label, self.weights),
            "distil": self.distillation * distillation_loss(logits, teacher),
        }
        if self.jaccard > 0:
            parts["jaccard"] = self.jaccard * jaccard_loss(logits, label)
        low, flow = method.classify_low(now.low), method.flow
        if low is not None:
            parts["aux"] = AUXILIARY * segmentation_loss(low, label, self.weights)
        if flow is not None:
            images = half_size(before.image), half_size(now.image)
            parts["photometric"] = PHOTOMETRIC * photometric(flow, *images)
        return parts

    def _column(self, method: str, figure: str) -> str:
        """A figure's name in the log, without the method's where there is but one."""
        return f"{method}/{figure}" if len(self.methods) > 1 else figure

    @torch.no_grad()
    def _encode(self, key: Tensor, current: Tensor) -> tuple[Encoded, Encoded]:
        """Key and current images (N, 3, H, W) in [0, 1], through the frozen base network."""
        base = self.base
        image = base.normalise(torch.cat([key, current]))
        image = image.contiguous(memory_format=torch.channels_last)
        low = base.lower(image)
        high = base.higher(base.source(image, low)).float()
        before, now = zip(image.chunk(2), low.chunk(2), high.chunk(2), strict=True)
        return Encoded(*before), Encoded(*now)

    def evaluate(self) -> dict[str, float]:
        """Held-out mIoU of the methods and of the full network."""
        found = scores(self._answers())
        figures = {self._column(name, "miou"): found[name].miou for name in self.methods}
        return figures | {"full_miou": found["full"].miou}

    def _answers(self) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
        for key, image, label, _ in zip(*self.held_out.tensors, strict=True):
            before, now = self._encode(key[None].float() / 255, image[None].float() / 255)
            own = {name: method.pair(before, now) for name, method in self.methods.items()}
            yield label, own | {"full": self.base.classify_high(now.high)}

    def figures_of(self, name: str, figures: dict[str, float]) -> dict[str, float]:
        """Those figures of :meth:`evaluate` that are about the method ``name``."""
        return {"miou": figures[self._column(name, "miou")], "full_miou": figures["full_miou"]}
