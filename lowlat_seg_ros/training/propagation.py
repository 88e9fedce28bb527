"""Stage 2: the propagation modules, the base network frozen (paper Sec. 4).

Pairs of a key and a current frame, the current one labelled. Beside the paper's cross-entropy the
fast track is distilled from the full network's answer on the current frame.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lowlat_seg_ros.data.transforms import Augment
from lowlat_seg_ros.evaluation.metrics import Confusion
from lowlat_seg_ros.network.segmenter import Segmenter
from lowlat_seg_ros.training.base import AUXILIARY, mask_of
from lowlat_seg_ros.training.losses import class_weights, distillation_loss, segmentation_loss


@dataclass(frozen=True)
class PairBank:
    """Key and current images uint8 (N, 3, H, W), the current labels uint8 (N, H, W)."""

    key_images: Tensor
    images: Tensor
    labels: Tensor


class PropagationStage:
    """Cross-entropy on the fused mask, plus ``distillation`` times the full one's divergence."""

    name = "propagation"

    def __init__(
        self, segmenter: Segmenter, pairs: PairBank, held_out: PairBank, augment: Augment,
        distillation: float = 0.5,
    ) -> None:  # fmt: skip
        self.segmenter, self.pairs, self.held_out, self.augment = (
            segmenter,
            pairs,
            held_out,
            augment,
        )
        self.distillation = distillation
        self.weights = class_weights(pairs.labels, segmenter.config.num_classes)

    def trained(self) -> list[list[torch.nn.Module]]:
        """Kernel predictor, AdaptNet, fusion and the two classifiers on top of them."""
        net = self.segmenter
        return [[net.predictor, net.adapt, net.fusion, net.classifier, net.low_classifier]]

    def loss(self, batch_size: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        """Loss of one augmented batch of pairs."""
        pairs, net = self.pairs, self.segmenter
        index = torch.randint(
            len(pairs.images), (batch_size,), generator=generator, device=pairs.images.device
        )
        key, current, label = self.augment.pair(
            pairs.key_images[index], pairs.images[index], pairs.labels[index], generator
        )
        with torch.no_grad():
            both = net.normalise(torch.cat([key, current]))
            low = net.lower(both.contiguous(memory_format=torch.channels_last))
            high = net.higher(low)
            teacher = net.classify_high(high[batch_size:])
        low_key, low_now = low[:batch_size], low[batch_size:]
        fused = fast_track(net, low_key, high[:batch_size], low_now)
        parts = {
            "fused": segmentation_loss(fused, label, self.weights),
            "aux": AUXILIARY * segmentation_loss(net.classify_low(low_now), label, self.weights),
            "distil": self.distillation * distillation_loss(fused, teacher),
        }
        return sum(parts.values(), torch.zeros(())), {k: v.item() for k, v in parts.items()}

    def evaluate(self) -> dict[str, float]:
        """Held-out mIoU of the fast track, of the full network and of the auxiliary mask."""
        net, classes = self.segmenter, self.segmenter.config.num_classes
        fused, full, aux = (Confusion(classes) for _ in range(3))
        held = self.held_out
        for key, image, label in zip(held.key_images, held.images, held.labels, strict=True):
            low = net.lower(net.normalise(torch.stack([key, image]).float() / 255))
            high = net.higher(low)
            fused.update(label, mask_of(fast_track(net, low[:1], high[:1], low[1:]), label))
            full.update(label, mask_of(net.classify_high(high[1:]), label))
            aux.update(label, mask_of(net.classify_low(low[1:]), label))
        return {"miou": fused.miou, "full_miou": full.miou, "aux_miou": aux.miou}


def fast_track(net: Segmenter, low_key: Tensor, high_key: Tensor, low: Tensor) -> Tensor:
    """Logits (N, classes, H/8, W/8) of the current frame from the key frame's features."""
    kernels = net.predictor(net.predictor.reduce(low_key), net.predictor.reduce(low))
    return net.classify_fused(net.propagate(high_key.float(), kernels), low)
