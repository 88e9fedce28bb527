"""Training of methods that are one network on every frame, on labelled images.

They learn from the same crops as the base network, and from its answer besides.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lowlat_seg_ros.config import ConfigError
from lowlat_seg_ros.lab.baselines.learned import Baseline
from lowlat_seg_ros.lab.data.transforms import Augment
from lowlat_seg_ros.lab.evaluation.metrics import Confusion
from lowlat_seg_ros.lab.training.bank import Bank, Mixture
from lowlat_seg_ros.lab.training.base import AUXILIARY, augmented, mask_of, taught_loss
from lowlat_seg_ros.lab.training.losses import class_weights, segmentation_loss
from lowlat_seg_ros.lab.training.teacher import Teacher

#: Smallest crop of DDRNet: with one cell at 1/64 its gradients explode.
SMALLEST_CROP = 128


class ImageStage:
    """Cross-entropy of one network, as the base network is trained, and distillation from it.

    ``distillation``: weight of the full network's answer.
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
        self.name, self.method, self.teacher = name, method, teacher
        self.distillation = distillation
        self.data, self.held_out, self.augment = data, held_out, augment
        self.weights = class_weights(data.banks[0].labels, method.base.config.num_classes)

    @property
    def segmenter(self) -> Baseline:
        """What the loop saves, averages and resumes."""
        return self.method

    @property
    def methods(self) -> dict[str, Baseline]:
        """It alone, by name."""
        return {self.name: self.method}

    def figures_of(self, name: str, figures: dict[str, float]) -> dict[str, float]:
        """The figures of :meth:`evaluate`, all of which say something of it."""
        return figures

    def trained(self) -> list[list[torch.nn.Module]]:
        """All of it."""
        return [[self.method.learned]]

    def loss(self, batch_size: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        """Loss of one augmented batch, with that of the auxiliary head at its published weight."""
        pixels, label = augmented(self.data, batch_size, self.augment, generator)
        base = self.method.base
        image = base.normalise(pixels).contiguous(memory_format=torch.channels_last)
        answer = self.method.learned["network"](image)
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
        if self.teacher is not None:
            taught = taught_loss(logits, self.teacher.logits(pixels))
            total, parts["teacher"] = total + taught, taught.item()
        return total, parts

    def evaluate(self) -> dict[str, float]:
        """mIoU and pixel accuracy, held out."""
        confusion = Confusion(self.method.base.config.num_classes)
        for image, label in zip(self.held_out.images, self.held_out.labels, strict=True):
            normalised = self.method.base.normalise(image[None].float() / 255)
            logits = self.method.learned["network"](normalised)
            confusion.update(label, mask_of(logits, label))
        return {"miou": confusion.miou, "pixel_accuracy": confusion.pixel_accuracy}
