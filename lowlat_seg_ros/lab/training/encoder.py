"""An encoder of its own (Sl beside a Sh that reads the image), on labelled images; Sh stays.

Between stages 1 and 2 of the paper: as such an encoder is much cheaper than Sh, more steps fit into
the time than where both are trained. Sh, frozen, is asked for its answer, never trained.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lowlat_seg_ros.config import DEFAULT_NETWORK, ConfigError
from lowlat_seg_ros.lab.data.transforms import Augment
from lowlat_seg_ros.lab.evaluation.metrics import Confusion
from lowlat_seg_ros.lab.training.bank import Bank, Mixture
from lowlat_seg_ros.lab.training.base import augmented, mask_of, taught_loss
from lowlat_seg_ros.lab.training.losses import class_weights, distillation_loss, segmentation_loss
from lowlat_seg_ros.lab.training.teacher import Teacher
from lowlat_seg_ros.network.segmenter import Segmenter


class EncoderStage:
    """Cross-entropy on the auxiliary mask, of encoder and AdaptNet alone, and distillation.

    Raises ``ConfigError`` if the network has no encoder of its own.
    """

    name = "encoder"

    def __init__(
        self,
        segmenter: Segmenter,
        data: Mixture,
        held_out: Bank,
        augment: Augment,
        teacher: Teacher | None = None,
    ) -> None:
        if segmenter.encoder is None:
            raise ConfigError(
                "the network's Sl is the lower part of its backbone, which stage 'base' trains; "
                f"give --network {DEFAULT_NETWORK} for one with an encoder of its own"
            )
        self.segmenter, self.data, self.held_out, self.augment = segmenter, data, held_out, augment
        self.teacher = teacher
        self.weights = class_weights(data.banks[0].labels, segmenter.config.num_classes)

    def trained(self) -> list[list[torch.nn.Module]]:
        """What the auxiliary mask needs."""
        net = self.segmenter
        assert net.encoder is not None
        return [[net.encoder, net.shared, net.adapt, net.low_classifier]]

    def loss(self, batch_size: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        """Loss of one augmented batch."""
        net = self.segmenter
        pixels, label = augmented(self.data, batch_size, self.augment, generator)
        image = net.normalise(pixels).contiguous(memory_format=torch.channels_last)
        logits = net.classify_low(net.lower(image))
        own = segmentation_loss(logits, label, self.weights)
        with torch.no_grad():  # the full network's answer says more than the label does
            full = net.classify_high(net.higher(net.source(image)))
        distil = distillation_loss(logits, full)
        total, parts = own + distil, {"own": own.item(), "distil": distil.item()}
        if self.teacher is not None:
            taught = taught_loss(logits, self.teacher.logits(pixels))
            total, parts["teacher"] = total + taught, taught.item()
        return total, parts

    def evaluate(self) -> dict[str, float]:
        """mIoU and pixel accuracy of the auxiliary mask, held out."""
        net = self.segmenter
        scores = Confusion(net.config.num_classes)
        for image, label in zip(self.held_out.images, self.held_out.labels, strict=True):
            low = net.lower(net.normalise(image[None].float() / 255))
            scores.update(label, mask_of(net.classify_low(low), label))
        return {"aux_miou": scores.miou, "aux_pixel_accuracy": scores.pixel_accuracy}
