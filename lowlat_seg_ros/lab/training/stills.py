"""Stages on labelled stills: the base network (stage 1 of the paper, Sec. 4), an Sl with an encoder
of its own beside a frozen Sh, and methods of the comparison that are one network on every frame.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from lowlat_seg_ros.config import DEFAULT_NETWORK, ConfigError
from lowlat_seg_ros.lab.baselines.learned import Baseline
from lowlat_seg_ros.lab.data.augment import Augment
from lowlat_seg_ros.lab.evaluation.metrics import Confusion
from lowlat_seg_ros.lab.training.losses import (
    AUXILIARY,
    Teacher,
    class_weights,
    distillation_loss,
    mask_of,
    segmentation_loss,
    taught_loss,
)
from lowlat_seg_ros.lab.training.sources import Bank, Mixture
from lowlat_seg_ros.network.segmenter import Segmenter

#: Smallest crop of DDRNet in pixels: with one cell at 1/64 its gradients explode.
SMALLEST_CROP = 128


class StillStage:
    """What the stages on stills share: data, class weights, and what a teacher adds to the loss."""

    segmenter: nn.Module

    def __init__(
        self,
        base: Segmenter,
        data: Mixture,
        held_out: Bank,
        augment: Augment,
        teacher: Teacher | None = None,
    ) -> None:
        self.segmenter = self.base = base
        self.data, self.held_out, self.augment = data, held_out, augment
        self.teacher = teacher
        # The first bank is the one that the network is judged on.
        self.weights = class_weights(data.banks[0].labels, base.config.num_classes)

    def batch(self, batch_size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """A batch from all banks: float [0, 1] (N, 3, h, w) and labels int64 (N, h, w)."""
        drawn = [
            self.augment(*bank.draw(count, generator), generator)
            for bank, count in zip(self.data.banks, self.data.counts(batch_size), strict=True)
            if count
        ]
        return torch.cat([images for images, _ in drawn]), torch.cat([label for _, label in drawn])

    def with_teacher(
        self, total: Tensor, parts: dict[str, float], logits: Tensor, pixels: Tensor
    ) -> tuple[Tensor, dict[str, float]]:
        """Loss and named parts, with the teacher's where there is one."""
        if self.teacher is None:
            return total, parts
        taught = taught_loss(logits, self.teacher.logits(pixels))
        return total + taught, parts | {"teacher": taught.item()}

    def scores(self, answer: Callable[[Tensor], dict[str, Tensor]]) -> dict[str, Confusion]:
        """Held-out confusions of each logits that ``answer`` gives of an image (1, 3, H, W)."""
        scores: dict[str, Confusion] = {}
        for image, label in zip(self.held_out.images, self.held_out.labels, strict=True):
            for name, logits in answer(image[None].float() / 255).items():
                confusion = scores.setdefault(name, Confusion(self.base.config.num_classes))
                confusion.update(label, mask_of(logits, label))
        return scores


class BaseStage(StillStage):
    """Cross-entropy on the full network's mask, and on the auxiliary mask of Sl + AdaptNet."""

    name = "base"

    def trained(self) -> list[list[nn.Module]]:
        """Everything the full and the auxiliary mask need."""
        net = self.base
        own = [] if net.encoder is None else [net.encoder]
        full = [net.backbone, net.shared, net.context, net.high_classifier]
        return [[*own, *full, net.adapt, net.low_classifier]]

    def loss(self, batch_size: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        """Loss of one augmented batch."""
        net = self.base
        pixels, label = self.batch(batch_size, generator)
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
        return self.with_teacher(total, parts, high, pixels)

    def evaluate(self) -> dict[str, float]:
        """mIoU and pixel accuracy of the full network, mIoU of the auxiliary mask, held out."""
        net = self.base

        def answer(image: Tensor) -> dict[str, Tensor]:
            seen = net.normalise(image)
            low = net.lower(seen)
            high = net.higher(net.source(seen, low))
            return {"full": net.classify_high(high), "aux": net.classify_low(low)}

        scores = self.scores(answer)
        full, aux = scores["full"], scores["aux"]
        return {"miou": full.miou, "pixel_accuracy": full.pixel_accuracy, "aux_miou": aux.miou}


class EncoderStage(StillStage):
    """Cross-entropy on the auxiliary mask, of encoder and AdaptNet alone, and distillation.

    It comes between stages 1 and 2 of the paper: such an encoder is much cheaper than Sh, so more
    steps fit into the time than where both are trained. Sh is frozen, and only gives its answer.
    Raises ``ConfigError`` if the network has no encoder of its own.
    """

    name = "encoder"

    def __init__(
        self,
        base: Segmenter,
        data: Mixture,
        held_out: Bank,
        augment: Augment,
        teacher: Teacher | None = None,
    ) -> None:
        if base.encoder is None:
            raise ConfigError(
                "the network's Sl is the lower part of its backbone, which stage 'base' trains; "
                f"give --network {DEFAULT_NETWORK} for one with an encoder of its own"
            )
        super().__init__(base, data, held_out, augment, teacher)

    def trained(self) -> list[list[nn.Module]]:
        """What the auxiliary mask needs."""
        net = self.base
        assert net.encoder is not None
        return [[net.encoder, net.shared, net.adapt, net.low_classifier]]

    def loss(self, batch_size: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        """Loss of one augmented batch."""
        net = self.base
        pixels, label = self.batch(batch_size, generator)
        image = net.normalise(pixels).contiguous(memory_format=torch.channels_last)
        logits = net.classify_low(net.lower(image))
        own = segmentation_loss(logits, label, self.weights)
        with torch.no_grad():  # the full network's answer says more than the label does
            full = net.classify_high(net.higher(net.source(image)))
        distil = distillation_loss(logits, full)
        parts = {"own": own.item(), "distil": distil.item()}
        return self.with_teacher(own + distil, parts, logits, pixels)

    def evaluate(self) -> dict[str, float]:
        """mIoU and pixel accuracy of the auxiliary mask, held out."""
        net = self.base
        aux = self.scores(lambda image: {"aux": net.classify_low(net.lower(net.normalise(image)))})
        return {"aux_miou": aux["aux"].miou, "aux_pixel_accuracy": aux["aux"].pixel_accuracy}


class ImageStage(StillStage):
    """Cross-entropy of one network, as the base network is trained, and distillation from it.

    ``distillation``: weight of the full network's answer. Raises ``ConfigError`` for a crop that is
    too small for the method.
    """

    def __init__(
        self,
        name: str,
        method: Baseline,
        data: Mixture,
        held_out: Bank,
        augment: Augment,
        teacher: Teacher | None = None,
        distillation: float = 0.0,
    ) -> None:
        if name == "ddrnet23_slim" and min(augment.crop) < SMALLEST_CROP:
            height, width = augment.crop
            raise ConfigError(
                f"the crop is {height}x{width}; {name} has features at 1/64, whose BatchNorm needs "
                f"several cells: crop at least {SMALLEST_CROP} each way"
            )
        super().__init__(method.base, data, held_out, augment, teacher)
        self.name, self.segmenter, self.distillation = name, method, distillation
        self.methods, self.learned = {name: method}, method.learned

    def figures_of(self, name: str, figures: dict[str, float]) -> dict[str, float]:
        """The figures of :meth:`evaluate`, all of which are about the one method."""
        return figures

    def trained(self) -> list[list[nn.Module]]:
        """The whole network."""
        return [[self.learned]]

    def loss(self, batch_size: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        """Loss of one augmented batch, with that of the auxiliary head at its published weight."""
        pixels, label = self.batch(batch_size, generator)
        base = self.base
        image = base.normalise(pixels).contiguous(memory_format=torch.channels_last)
        answer = self.learned["network"](image)
        logits, *auxiliary = answer if isinstance(answer, tuple) else (answer,)
        total = segmentation_loss(logits, label, self.weights)
        parts = {"main": total.item()}
        for other in auxiliary:
            aux = segmentation_loss(other, label, self.weights)
            total, parts["aux"] = total + AUXILIARY * aux, aux.item()
        if self.distillation > 0:
            with torch.no_grad():
                full = base.classify_high(base.higher(base.source(image)))
            distil = self.distillation * taught_loss(logits, full)
            total, parts["distil"] = total + distil, distil.item()
        return self.with_teacher(total, parts, logits, pixels)

    def evaluate(self) -> dict[str, float]:
        """mIoU and pixel accuracy, held out."""
        base, network = self.base, self.learned["network"]
        own = self.scores(lambda image: {"own": network(base.normalise(image))})["own"]
        return {"miou": own.miou, "pixel_accuracy": own.pixel_accuracy}
