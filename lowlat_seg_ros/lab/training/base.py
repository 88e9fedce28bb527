"""Stage 1: the base network (Sl, Sh and its classifier) on labelled images (paper Sec. 4)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lowlat_seg_ros.lab.data.transforms import Augment
from lowlat_seg_ros.lab.evaluation.metrics import Confusion
from lowlat_seg_ros.lab.training.bank import Bank, Mixture
from lowlat_seg_ros.lab.training.losses import class_weights, distillation_loss, segmentation_loss
from lowlat_seg_ros.lab.training.teacher import Teacher
from lowlat_seg_ros.network.segmenter import Segmenter

#: Weight of the auxiliary loss on Sl + AdaptNet, which makes F_l a good start for the fast track.
AUXILIARY = 0.4


class BaseStage:
    """Cross-entropy on the full network's mask, and on the auxiliary mask of Sl + AdaptNet."""

    name = "base"

    def __init__(
        self,
        segmenter: Segmenter,
        data: Mixture,
        held_out: Bank,
        augment: Augment,
        teacher: Teacher | None = None,
    ) -> None:
        self.segmenter, self.data, self.held_out, self.augment = segmenter, data, held_out, augment
        self.teacher = teacher
        # The first bank is the one that the network is judged on.
        self.weights = class_weights(data.banks[0].labels, segmenter.config.num_classes)

    def trained(self) -> list[list[torch.nn.Module]]:
        """Everything the full and the auxiliary mask need."""
        net = self.segmenter
        own = [] if net.encoder is None else [net.encoder]
        return [
            [
                *(*own, net.backbone, net.shared, net.context),
                *(net.high_classifier, net.adapt, net.low_classifier),
            ]
        ]

    def loss(self, batch_size: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        """Loss of one augmented batch."""
        net = self.segmenter
        pixels, label = augmented(self.data, batch_size, self.augment, generator)
        image = net.normalise(pixels).contiguous(memory_format=torch.channels_last)
        low = net.lower(image)
        high = net.classify_high(net.higher(net.source(image, low)))
        full = segmentation_loss(high, label, self.weights)
        near = net.classify_low(low)
        aux = segmentation_loss(near, label, self.weights)
        # The full network's answer says more than the label does; it is not pulled towards aux.
        distil = distillation_loss(near, high.detach())
        total = full + AUXILIARY * (aux + distil)
        parts = {"full": full.item(), "aux": aux.item(), "distil": distil.item()}
        if self.teacher is not None:
            taught = taught_loss(high, self.teacher.logits(pixels))
            total, parts["teacher"] = total + taught, taught.item()
        return total, parts

    def evaluate(self) -> dict[str, float]:
        """mIoU and pixel accuracy of the full network, mIoU of the auxiliary mask, held out."""
        net = self.segmenter
        full, aux = (Confusion(net.config.num_classes) for _ in range(2))
        for image, label in zip(self.held_out.images, self.held_out.labels, strict=True):
            seen = net.normalise(image[None].float() / 255)
            low = net.lower(seen)
            high = net.higher(net.source(seen, low))
            full.update(label, mask_of(net.classify_high(high), label))
            aux.update(label, mask_of(net.classify_low(low), label))
        return {"miou": full.miou, "pixel_accuracy": full.pixel_accuracy, "aux_miou": aux.miou}


def augmented(
    data: Mixture, batch_size: int, augment: Augment, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """A batch from all banks of ``data``: float [0, 1] (N, 3, h, w), int64 (N, h, w)."""
    drawn = [
        augment(*bank.draw(count, generator), generator)
        for bank, count in zip(data.banks, data.counts(batch_size), strict=True)
        if count
    ]
    return torch.cat([images for images, _ in drawn]), torch.cat([labels for _, labels in drawn])


def taught_loss(logits: Tensor, teacher: Tensor) -> Tensor:
    """Divergence from a teacher's answer of any size, (N, classes, h, w) each."""
    size = (logits.shape[2], logits.shape[3])
    return distillation_loss(logits, nn.functional.interpolate(teacher, size, mode="bilinear"))


def mask_of(logits: Tensor, label: Tensor) -> Tensor:
    """Logits (1, classes, h, w) -> class ids (H, W) at the size of ``label`` (H, W)."""
    size = (label.shape[0], label.shape[1])
    return torch.nn.functional.interpolate(logits.float(), size, mode="bilinear").argmax(dim=1)[0]
