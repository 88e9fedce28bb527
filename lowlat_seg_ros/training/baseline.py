"""Training of the methods that the paper's propagation is compared with.

Those that answer pairs see the same pairs, augmentation and losses as the paper's own, on the same
frozen base network, so that nothing but the method differs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lowlat_seg_ros.config import ConfigError
from lowlat_seg_ros.data.transforms import Augment
from lowlat_seg_ros.evaluation.metrics import Confusion
from lowlat_seg_ros.network.baselines.flow import half_size, photometric
from lowlat_seg_ros.network.baselines.learned import Baseline, DDRNetMethod, Encoded, PairMethod
from lowlat_seg_ros.training.bank import Bank, Mixture
from lowlat_seg_ros.training.base import AUXILIARY, mask_of
from lowlat_seg_ros.training.losses import class_weights, distillation_loss, segmentation_loss
from lowlat_seg_ros.training.propagation import PairBank

#: Weight of the photometric loss that flow networks learn from besides.
PHOTOMETRIC = 0.5

#: Smallest crop of DDRNet: with one cell at 1/64 its gradients explode.
SMALLEST_CROP = 128


class PairStage:
    """Cross-entropy on the current frame, plus the divergence from the full network's answer.

    Where the method has AdaptNet, its own answer counts as well, as it does for the paper's
    propagation; where it has a flow network, so does how well the flow explains the images.
    """

    def __init__(
        self,
        name: str,
        method: PairMethod,
        pairs: PairBank,
        held_out: PairBank,
        augment: Augment,
        distillation: float = 0.5,
    ) -> None:
        self.name, self.method, self.augment = name, method, augment
        self.pairs, self.held_out, self.distillation = pairs, held_out, distillation
        self.weights = class_weights(pairs.labels, method.base.config.num_classes)

    @property
    def segmenter(self) -> Baseline:
        """What the loop saves, averages and resumes."""
        return self.method

    def trained(self) -> list[torch.nn.Module]:
        """The method's own weights; the base network stays frozen."""
        return [self.method.learned]

    def loss(self, batch_size: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        """Loss of one augmented batch of pairs."""
        pairs, count = self.pairs, len(self.pairs.images)
        index = torch.randint(count, (batch_size,), generator=generator, device=pairs.images.device)
        key, current, label = self.augment.pair(
            pairs.key_images[index], pairs.images[index], pairs.labels[index], generator
        )
        before, now = self._encode(key, current)
        with torch.no_grad():
            teacher = self.method.base.classify_high(now.high)
        logits = self.method.pair(before, now)
        parts = {
            "own": segmentation_loss(logits, label, self.weights),
            "distil": self.distillation * distillation_loss(logits, teacher),
        }
        low = self.method.classify_low(now.low)
        if low is not None:
            parts["aux"] = AUXILIARY * segmentation_loss(low, label, self.weights)
        flow = self.method.flow
        if flow is not None:
            misfit = photometric(flow, half_size(before.image), half_size(now.image))
            parts["photometric"] = PHOTOMETRIC * misfit
        total = torch.stack(list(parts.values())).sum()
        return total, {name: part.item() for name, part in parts.items()}

    @torch.no_grad()
    def _encode(self, key: Tensor, current: Tensor) -> tuple[Encoded, Encoded]:
        """Key and current images (N, 3, H, W) in [0, 1], through the frozen base network."""
        base, count = self.method.base, len(key)
        image = base.normalise(torch.cat([key, current]))
        image = image.contiguous(memory_format=torch.channels_last)
        low = base.lower(image)
        high = base.higher(low).float()
        first, second = slice(count), slice(count, None)
        return (
            Encoded(image[first], low[first], high[first]),
            Encoded(image[second], low[second], high[second]),
        )

    def evaluate(self) -> dict[str, float]:
        """Held-out mIoU of the method and of the full network."""
        classes, held = self.method.base.config.num_classes, self.held_out
        own, full = Confusion(classes), Confusion(classes)
        for key, image, label in zip(held.key_images, held.images, held.labels, strict=True):
            before, now = self._encode(key[None].float() / 255, image[None].float() / 255)
            own.update(label, mask_of(self.method.pair(before, now), label))
            full.update(label, mask_of(self.method.base.classify_high(now.high), label))
        return {"miou": own.miou, "full_miou": full.miou}


class DDRNetStage:
    """The whole of DDRNet-23-slim on labelled images, as the base network is trained."""

    def __init__(
        self, name: str, method: DDRNetMethod, data: Mixture, held_out: Bank, augment: Augment
    ) -> None:
        if min(augment.crop) < SMALLEST_CROP:
            height, width = augment.crop
            raise ConfigError(
                f"the crop is {height}x{width}; {name} has features at 1/64, whose BatchNorm needs "
                f"several cells: crop at least {SMALLEST_CROP} each way"
            )
        self.name, self.method = name, method
        self.data, self.held_out, self.augment = data, held_out, augment
        self.weights = class_weights(data.banks[0].labels, method.base.config.num_classes)

    @property
    def segmenter(self) -> Baseline:
        """What the loop saves, averages and resumes."""
        return self.method

    def trained(self) -> list[torch.nn.Module]:
        """All of it."""
        return [self.method.learned]

    def loss(self, batch_size: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        """Loss of one augmented batch, with that of the auxiliary head at its published weight."""
        drawn = [
            self.augment(*bank.draw(count, generator), generator)
            for bank, count in zip(self.data.banks, self.data.counts(batch_size), strict=True)
            if count
        ]
        image = self.method.base.normalise(torch.cat([images for images, _ in drawn]))
        label = torch.cat([labels for _, labels in drawn])
        logits, auxiliary = self.method.learned["network"](
            image.contiguous(memory_format=torch.channels_last)
        )
        main = segmentation_loss(logits, label, self.weights)
        aux = segmentation_loss(auxiliary, label, self.weights)
        return main + AUXILIARY * aux, {"main": main.item(), "aux": aux.item()}

    def evaluate(self) -> dict[str, float]:
        """mIoU and pixel accuracy, held out."""
        confusion = Confusion(self.method.base.config.num_classes)
        for image, label in zip(self.held_out.images, self.held_out.labels, strict=True):
            normalised = self.method.base.normalise(image[None].float() / 255)
            logits = self.method.learned["network"](normalised)
            confusion.update(label, mask_of(logits, label))
        return {"miou": confusion.miou, "pixel_accuracy": confusion.pixel_accuracy}
