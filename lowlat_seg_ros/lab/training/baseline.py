"""Training of the methods on pairs: those the paper's propagation is compared with, and itself.

All see the same pairs, augmentation and losses, on the same frozen base network, so that nothing
but the method differs. Any number of them are trained side by side: what the base network makes of
a batch, the dominant cost, is computed once for all.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lowlat_seg_ros.lab.baselines.flow import half_size, photometric
from lowlat_seg_ros.lab.baselines.learned import Encoded, PairMethod
from lowlat_seg_ros.lab.data.augment import Augment
from lowlat_seg_ros.lab.evaluation.metrics import Confusion
from lowlat_seg_ros.lab.training.losses import (
    AUXILIARY,
    class_weights,
    distillation_loss,
    mask_of,
    segmentation_loss,
)
from lowlat_seg_ros.lab.training.sources import PairBank
from lowlat_seg_ros.network.segmenter import Segmenter

#: Weight of the photometric loss that flow networks learn from besides.
PHOTOMETRIC = 0.5


class SideBySide(nn.Module):
    """What methods have learned, by name, beside the base network that they share."""

    def __init__(self, base: Segmenter, methods: dict[str, PairMethod]) -> None:
        super().__init__()
        self.base = base
        self.learned = nn.ModuleDict({name: method.learned for name, method in methods.items()})


class PairStage:
    """Cross-entropy on the current frame, plus the divergence from the full network's answer.

    Where a method has AdaptNet, its own answer counts as well, as it does for the paper's
    propagation; where it has a flow network, so does how well the flow explains the images. The
    ``methods`` share no trained weight, so each becomes what it would have become alone.
    """

    def __init__(
        self,
        name: str,
        methods: dict[str, PairMethod],
        pairs: PairBank,
        held_out: PairBank,
        augment: Augment,
        distillation: float,
    ) -> None:
        self.name, self.methods, self.augment = name, methods, augment
        self.pairs, self.held_out, self.distillation = pairs, held_out, distillation
        self.base = next(iter(methods.values())).base
        self.segmenter = SideBySide(self.base, methods)
        self.weights = class_weights(pairs.labels, self.base.config.num_classes)

    def trained(self) -> list[list[nn.Module]]:
        """The methods' own weights, each a group; the base network stays frozen."""
        return [[method.learned] for method in self.methods.values()]

    def loss(self, batch_size: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        """Sum of the methods' losses of one augmented batch of pairs; their parts are named."""
        key, current, label, _ = self.pairs.draw(batch_size, self.augment, generator)
        before, now = self._encode(key, current)
        with torch.no_grad():
            teacher = self.base.classify_high(now.high)
        losses: list[Tensor] = []
        figures: dict[str, float] = {}
        for name, method in self.methods.items():
            parts = self._parts(method, before, now, label, teacher)
            losses.extend(parts.values())
            figures |= {self._column(name, part): loss.item() for part, loss in parts.items()}
        return torch.stack(losses).sum(), figures

    def _parts(
        self, method: PairMethod, before: Encoded, now: Encoded, label: Tensor, teacher: Tensor
    ) -> dict[str, Tensor]:
        """The losses of one method."""
        logits = method.pair(before, now)
        parts = {
            "own": segmentation_loss(logits, label, self.weights),
            "distil": self.distillation * distillation_loss(logits, teacher),
        }
        low = method.classify_low(now.low)
        if low is not None:
            parts["aux"] = AUXILIARY * segmentation_loss(low, label, self.weights)
        flow = method.flow
        if flow is not None:
            misfit = photometric(flow, half_size(before.image), half_size(now.image))
            parts["photometric"] = PHOTOMETRIC * misfit
        return parts

    def _column(self, method: str, figure: str) -> str:
        """A figure's name in the log, without the method's where there is but one."""
        return f"{method}/{figure}" if len(self.methods) > 1 else figure

    @torch.no_grad()
    def _encode(self, key: Tensor, current: Tensor) -> tuple[Encoded, Encoded]:
        """Key and current images (N, 3, H, W) in [0, 1], through the frozen base network."""
        base, count = self.base, len(key)
        image = base.normalise(torch.cat([key, current]))
        image = image.contiguous(memory_format=torch.channels_last)
        low = base.lower(image)
        high = base.higher(base.source(image, low)).float()
        first, second = slice(count), slice(count, None)
        return (
            Encoded(image[first], low[first], high[first]),
            Encoded(image[second], low[second], high[second]),
        )

    def evaluate(self) -> dict[str, float]:
        """Held-out mIoU of the methods and of the full network."""
        held, full = self.held_out, Confusion(self.base.config.num_classes)
        own = {name: Confusion(self.base.config.num_classes) for name in self.methods}
        for key, image, label in zip(held.key_images, held.images, held.labels, strict=True):
            before, now = self._encode(key[None].float() / 255, image[None].float() / 255)
            full.update(label, mask_of(self.base.classify_high(now.high), label))
            for name, method in self.methods.items():
                own[name].update(label, mask_of(method.pair(before, now), label))
        figures = {self._column(name, "miou"): scores.miou for name, scores in own.items()}
        return figures | {"full_miou": full.miou}

    def figures_of(self, name: str, figures: dict[str, float]) -> dict[str, float]:
        """Those figures of :meth:`evaluate` that are about the method ``name``."""
        return {"miou": figures[self._column(name, "miou")], "full_miou": figures["full_miou"]}
