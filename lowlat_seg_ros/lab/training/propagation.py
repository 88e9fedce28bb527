"""Stage 2: the propagation modules, the base network frozen (paper Sec. 4).

Pairs of a key and a current frame, the current one labelled. Beside the paper's cross-entropy the
fast track is distilled from the full network on the current frame: its answer, and its F_h.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lowlat_seg_ros.config import check, setting
from lowlat_seg_ros.lab.data.augment import Augment
from lowlat_seg_ros.lab.evaluation.metrics import Confusion
from lowlat_seg_ros.lab.training.losses import (
    AUXILIARY,
    class_weights,
    distillation_loss,
    feature_loss,
    mask_of,
    segmentation_loss,
)
from lowlat_seg_ros.lab.training.sources import PairBank
from lowlat_seg_ros.network.segmenter import Segmenter
from lowlat_seg_ros.network.warping import luma_of, motion


@dataclass(frozen=True)
class PropagationLoss:
    """What is minimised besides the cross-entropy of the fused mask."""

    distillation: float = setting(
        0.5, "weight of the full network's answer on the current frame", low=0.0, high=100.0
    )
    feature_distillation: float = setting(
        0.2,
        "weight of the error of the propagated F_h, as a share of the variance of F_h",
        low=0.0,
        high=100.0,
    )
    auxiliary_distillation: float = setting(
        0.0,
        "weight of the full network's answer in what the auxiliary mask learns",
        low=0.0,
        high=100.0,
    )
    chained_share: float = setting(
        0.5,
        "share of the batches whose F_h goes to the current frame, back to the key frame and again "
        "to the current one, as provisional features go from key frame to key frame",
        low=0.0,
        high=1.0,
    )

    def __post_init__(self) -> None:
        check(self)


class PropagationStage:
    """Cross-entropy on the fused and the auxiliary mask, and distillation."""

    name = "propagation"

    def __init__(
        self, segmenter: Segmenter, pairs: PairBank, held_out: PairBank, augment: Augment,
        loss_weights: PropagationLoss = PropagationLoss(),
    ) -> None:  # fmt: skip
        self.segmenter, self.pairs, self.held_out = segmenter, pairs, held_out
        self.augment, self.loss_weights = augment, loss_weights
        self.weights = class_weights(pairs.labels, segmenter.config.num_classes)

    def trained(self) -> list[list[torch.nn.Module]]:
        """Kernel predictor, AdaptNet, fusion, the two classifiers and an encoder of its own."""
        net = self.segmenter
        own: list[torch.nn.Module] = [] if net.encoder is None else [net.encoder, net.shared]
        own += [] if net.gate is None else [net.gate]
        return [[*own, net.predictor, net.adapt, net.fusion, net.classifier, net.low_classifier]]

    def loss(self, batch_size: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        """Loss of one augmented batch of pairs."""
        pairs, net = self.pairs, self.segmenter
        key, current, label, ages = pairs.draw(batch_size, self.augment, generator)
        both = net.normalise(torch.cat([key, current]))
        both = both.contiguous(memory_format=torch.channels_last)
        # Only an encoder of its own is trained here: Sh stands on a Sl that it shares.
        with torch.set_grad_enabled(net.encoder is not None):
            low = net.lower(both)
        with torch.no_grad():
            high = net.higher(net.source(both, low))
            teacher = net.classify_high(high[batch_size:])
        low_key, low_now = low[:batch_size], low[batch_size:]
        chance = torch.rand((), generator=generator, device=low.device)
        chained = bool(chance < self.loss_weights.chained_share)
        carried = carry(net, low_key, high[:batch_size], low_now, chained)
        answers, residual = warped(net, high[:batch_size], key, current)
        known = evidence(net, low_key, low_now, ages, residual)
        fused = net.classify_fused(carried, low_now, known, answers)
        own = net.classify_low(low_now)
        exact = high[batch_size:].float()  # F_h of the current frame: what carried F_h should be
        parts = {
            "fused": segmentation_loss(fused, label, self.weights),
            "aux": AUXILIARY * segmentation_loss(own, label, self.weights),
            "distil": self.loss_weights.distillation * distillation_loss(fused, teacher),
            "features": self.loss_weights.feature_distillation * feature_loss(carried, exact),
        }
        if self.loss_weights.auxiliary_distillation > 0:
            weight = self.loss_weights.auxiliary_distillation
            parts["aux_distil"] = weight * distillation_loss(own, teacher)
        return sum(parts.values(), torch.zeros(())), {k: v.item() for k, v in parts.items()}

    def evaluate(self) -> dict[str, float]:
        """Held-out mIoU of the fast track, of the full network and of the auxiliary mask."""
        net, classes = self.segmenter, self.segmenter.config.num_classes
        fused, full, aux = (Confusion(classes) for _ in range(3))
        held = self.held_out
        banks = (held.key_images, held.images, held.labels, held.ages)
        for key, image, label, age in zip(*banks, strict=True):
            images = torch.stack([key, image]).float() / 255
            both = net.normalise(images)
            low = net.lower(both)
            high = net.higher(net.source(both, low))
            carried = carry(net, low[:1], high[:1], low[1:])
            answers, residual = warped(net, high[:1], images[:1], images[1:])
            known = evidence(net, low[:1], low[1:], age[None], residual)
            logits = net.classify_fused(carried, low[1:], known, answers)
            fused.update(label, mask_of(logits, label))
            full.update(label, mask_of(net.classify_high(high[1:]), label))
            aux.update(label, mask_of(net.classify_low(low[1:]), label))
        return {"miou": fused.miou, "full_miou": full.miou, "aux_miou": aux.miou}


def evidence(
    net: Segmenter, low_key: Tensor, low: Tensor, ages: Tensor, residual: Tensor | None
) -> Tensor | None:
    """What the gate of ``net`` gets of pairs, ``ages`` (N,) seconds apart; None without one."""
    if net.gate is None:
        return None
    return net.evidence(net.predictor.reduce(low_key), net.predictor.reduce(low), ages, residual)


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
    pixels = [
        x.mul(255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy() for x in (keys, images)
    ]
    points = net.config.classifier_upsampling
    motions = [
        motion(luma_of(np.ascontiguousarray(key)), luma_of(np.ascontiguousarray(image)), points)
        for key, image in zip(*pixels, strict=True)
    ]
    flow = torch.cat([m.flow for m in motions]).to(answers.device)
    residual = torch.cat([m.residual for m in motions]).to(answers.device)
    return net.warp(answers.float(), flow), residual


def carry(
    net: Segmenter, low_key: Tensor, high_key: Tensor, low: Tensor, chained: bool = False
) -> Tensor:
    """F_h of the key frame carried to the current one, (N, Ch, H/8, W/8) float32.

    ``chained``: by way of the current frame and the key frame.
    """
    predictor = net.predictor
    before, now = predictor.reduce(low_key), predictor.reduce(low)
    there = predictor(predictor.remember(before), now)
    ways = [there]
    if chained:
        ways += [predictor(predictor.remember(now), before), there]
    carried = high_key.float()
    for weights in ways:
        carried = net.propagate(carried, weights)
    return carried
