"""Stages on labelled stills: the base network (stage 1 of the paper, Sec. 4), and methods of the
comparison that are one network on every frame.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from lowlat_seg_ros.config import ConfigError
from lowlat_seg_ros.lab.baselines.learned import Baseline
from lowlat_seg_ros.lab.data.augment import Augment
from lowlat_seg_ros.lab.metrics import Confusion
from lowlat_seg_ros.lab.training.losses import (
    AUXILIARY,
    Teacher,
    class_weights,
    distillation_loss,
    jaccard_loss,
    scores,
    segmentation_loss,
    taught_loss,
)
from lowlat_seg_ros.lab.training.sources import Mixture
from lowlat_seg_ros.network.segmenter import Segmenter

#: Smallest crop of DDRNet in pixels: with one cell at 1/64 its gradients explode.
SMALLEST_CROP = 128


class StillStage(ABC):
    """What the stages on stills share: batches, class weights, and two parts of the loss.

    They are a ``teacher``'s, and the :func:`.losses.jaccard_loss` with the weight ``jaccard``.
    """

    name: str
    segmenter: nn.Module

    def __init__(
        self, base: Segmenter, data: Mixture, held_out: TensorDataset, augment: Augment,
        teacher: Teacher | None = None, jaccard: float = 0.0,
    ) -> None:  # fmt: skip
        self.segmenter = self.base = base
        self.data, self.held_out, self.augment = data, held_out, augment
        self.teacher, self.jaccard = teacher, jaccard
        # The first part is the one that the network is judged on.
        self.weights = class_weights(data.parts[0].tensors[1], base.config.num_classes)

    @abstractmethod
    def losses(self, image: Tensor, label: Tensor) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """Loss, its parts, and the logits that a teacher and the Jaccard loss have a say in.

        Of normalised images (N, 3, h, w) and labels (N, h, w).
        """

    @abstractmethod
    def answers(self, image: Tensor) -> dict[str, Tensor]:
        """The logits that are judged, of a normalised image (1, 3, H, W)."""

    def loss(self, batch_size: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        """Loss of one augmented batch, and its parts."""
        pixels, label = self.data.batch(batch_size, self.augment, generator)
        image = self.base.normalise(pixels).contiguous(memory_format=torch.channels_last)
        total, parts, logits = self.losses(image, label)
        if self.jaccard > 0:
            parts["jaccard"] = self.jaccard * jaccard_loss(logits, label)
            total = total + parts["jaccard"]
        if self.teacher is not None:
            parts["teacher"] = taught_loss(logits, self.teacher.logits(pixels))
            total = total + parts["teacher"]
        return total, {name: part.item() for name, part in parts.items()}

    def scores(self) -> dict[str, Confusion]:
        """Held-out confusions of the :meth:`answers`."""
        return scores(
            (label, self.answers(self.base.normalise(image[None].float() / 255)))
            for image, label in zip(*self.held_out.tensors, strict=True)
        )


class BaseStage(StillStage):
    """Cross-entropy on the full network's mask, and on the auxiliary mask of Sl + AdaptNet.

    ``only_sh`` leaves all but Sh as it is, where Sh reads the image; raises ``ConfigError`` for
    other networks.
    """

    name = "base"

    def __init__(
        self, base: Segmenter, data: Mixture, held_out: TensorDataset, augment: Augment,
        teacher: Teacher | None = None, jaccard: float = 0.0, only_sh: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(base, data, held_out, augment, teacher, jaccard)
        self.only_sh = only_sh
        if only_sh and base.encoder is None:
            raise ConfigError(
                "--only sh is for networks whose Sh reads the image, and Sl of this one is a part "
                "of Sh; leave it out"
            )

    def trained(self) -> list[list[nn.Module]]:
        """Everything the full and the auxiliary mask need, or Sh alone."""
        net = self.base
        full: list[nn.Module] = [net.backbone, net.context, net.high_classifier]
        if self.only_sh:
            return [full]
        own = [] if net.encoder is None else [net.encoder]
        return [[*own, *full, net.shared, net.adapt, net.low_classifier]]

    def losses(self, image: Tensor, label: Tensor) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        answers = self.answers(image)
        parts = {k: segmentation_loss(v, label, self.weights) for k, v in answers.items()}
        total = parts["full"]
        if not self.only_sh:
            # The full network's answer says more than the label does; aux does not pull it.
            parts["distil"] = distillation_loss(answers["aux"], answers["full"].detach())
            total = total + AUXILIARY * (parts["aux"] + parts["distil"])
        return total, parts, answers["full"]

    def answers(self, image: Tensor) -> dict[str, Tensor]:
        net = self.base
        if self.only_sh:
            return {"full": net(image)}
        low = net.lower(image)
        high = net.higher(net.source(image, low))
        return {"full": net.classify_high(high), "aux": net.classify_low(low)}

    def evaluate(self) -> dict[str, float]:
        found = self.scores()
        full = found["full"]
        figures = {"miou": full.miou, "pixel_accuracy": full.pixel_accuracy}
        return figures | ({"aux_miou": found["aux"].miou} if "aux" in found else {})


class ImageStage(StillStage):
    """Cross-entropy of one network, as the base network is trained, and distillation from it.

    ``distillation``: weight of the full network's answer. Raises ``ConfigError`` for a crop that is
    too small for the method.
    """

    def __init__(
        self, name: str, method: Baseline, data: Mixture, held_out: TensorDataset, augment: Augment,
        teacher: Teacher | None = None, jaccard: float = 0.0, distillation: float = 0.0,
    ) -> None:  # fmt: skip
        if name == "ddrnet23_slim" and min(augment.crop) < SMALLEST_CROP:
            height, width = augment.crop
            raise ConfigError(
                f"the crop is {height}x{width}; {name} has features at 1/64, whose BatchNorm needs "
                f"several cells: crop at least {SMALLEST_CROP} each way"
            )
        super().__init__(method.base, data, held_out, augment, teacher, jaccard)
        self.name, self.segmenter, self.distillation = name, method, distillation
        self.methods, self.network = {name: method}, method.learned["network"]

    def figures_of(self, name: str, figures: dict[str, float]) -> dict[str, float]:
        """The figures of :meth:`evaluate`, all of which are about the one method."""
        return figures

    def trained(self) -> list[list[nn.Module]]:
        """The whole network."""
        return [[self.network]]

    def losses(self, image: Tensor, label: Tensor) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        answer = self.network(image)
        # While it is trained a network may answer a second time, by its auxiliary head.
        logits, *auxiliary = answer if isinstance(answer, tuple) else (answer,)
        parts = {"main": segmentation_loss(logits, label, self.weights)}
        total = parts["main"]
        for other in auxiliary:
            parts["aux"] = segmentation_loss(other, label, self.weights)
            total = total + AUXILIARY * parts["aux"]
        if self.distillation > 0:
            with torch.no_grad():
                full = self.base(image)
            parts["distil"] = self.distillation * taught_loss(logits, full)
            total = total + parts["distil"]
        return total, parts, logits

    def answers(self, image: Tensor) -> dict[str, Tensor]:
        return {"own": self.network(image)}

    def evaluate(self) -> dict[str, float]:
        own = self.scores()["own"]
        return {"miou": own.miou, "pixel_accuracy": own.pixel_accuracy}
