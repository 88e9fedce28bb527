"""Key-frame methods in two parts: how F_h is carried to the current frame, how it is classified.

So that methods differ in nothing else, all of them share the segmenter's Sl, Sh and classifier of
full masks (the paper's Table 1, settings a to d). In shapes r is ``classifier_upsampling``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lowlat_seg_ros.network.adaptation import AdaptNet, Fusion
from lowlat_seg_ros.network.classifier import Classifier
from lowlat_seg_ros.network.propagation import KernelPredictor, spatially_variant_convolution
from lowlat_seg_ros.network.segmenter import Segmenter
from lowlat_seg_ros.network.warping import luma_of
from lowlat_seg_ros.network.warping import motion as motion_between


class Carrier(nn.Module, ABC):
    """Carries F_h (N, Ch, H/8, W/8) from the key to the current frame.

    Images are normalised (N, 3, H, W), ``low`` is F_l, which is None unless ``needs_low``.
    """

    needs_low = False

    @abstractmethod
    def keep(self, image: Tensor, low: Tensor | None) -> Tensor:
        """What is needed of the key frame besides F_h, computed once."""

    @abstractmethod
    def motion(self, kept: Tensor, image: Tensor, low: Tensor | None) -> Tensor:
        """How features move from the key frame to the current one."""

    @abstractmethod
    def move(self, high: Tensor, motion: Tensor) -> Tensor:
        """F_h of the key frame, moved."""


class Adaptive(Carrier):
    """The paper's own: a kernel for every location, predicted from both frames' F_l (Sec. 3.3)."""

    needs_low = True

    def __init__(self, predictor: KernelPredictor) -> None:
        super().__init__()
        self.predictor = predictor

    def keep(self, image: Tensor, low: Tensor | None) -> Tensor:
        return self.predictor.remember(self.predictor.reduce(_given(low)))

    def motion(self, kept: Tensor, image: Tensor, low: Tensor | None) -> Tensor:
        weights: Tensor = self.predictor(kept, self.predictor.reduce(_given(low)))
        return weights

    def move(self, high: Tensor, motion: Tensor) -> Tensor:
        return spatially_variant_convolution(high, motion)


class Alone(nn.Module):
    """Carried F_h, classified as it is."""

    needs_low = False

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, carried: Tensor, low: Tensor | None) -> Tensor:
        """Logits (N, classes, r*H/8, r*W/8)."""
        logits: Tensor = self.classifier(carried)
        return logits


class Fused(nn.Module):
    """Carried F_h fused with what AdaptNet makes of the current frame's F_l, then classified.

    ``low_classifier`` is only for training: AdaptNet's own answer. ``residual`` is the full
    network's classifier where fusion corrects its answer, else None.
    """

    needs_low = True

    def __init__(
        self,
        adapt: AdaptNet,
        fusion: Fusion,
        classifier: Classifier,
        low_classifier: Classifier,
        residual: Classifier | None,
    ) -> None:
        super().__init__()
        self.adapt, self.fusion, self.classifier = adapt, fusion, classifier
        self.low_classifier, self.residual = low_classifier, residual

    def classify_low(self, low: Tensor) -> Tensor:
        """Logits (N, classes, r*H/8, r*W/8) of AdaptNet alone."""
        logits: Tensor = self.low_classifier(self.adapt(low))
        return logits

    def forward(self, carried: Tensor, low: Tensor | None) -> Tensor:
        """Logits (N, classes, r*H/8, r*W/8)."""
        logits: Tensor = self.classifier(self.fusion(carried, self.adapt(_given(low))))
        return logits if self.residual is None else logits + self.residual(carried)


class OwnMask(nn.Module):
    """What the fast track of ``base`` makes of carried F_h and F_l, with ensemble or gate."""

    needs_low = True

    def __init__(self, base: Segmenter) -> None:
        super().__init__()
        self.base = base

    def forward(
        self, carried: Tensor, low: Tensor | None, key: Key, image: Tensor, age_s: float
    ) -> Tensor:
        """Logits (1, classes, r*H/8, r*W/8), ``age_s`` seconds after the key frame.

        ``image`` is the current one, normalised (1, 3, H, W).
        """
        base, low = self.base, _given(low)
        answers = evidence = residual = None
        if base.config.fine_carry:
            lumas = [luma_of(base.statistics.pixels(x)) for x in (key.image, image)]
            motion = motion_between(lumas[0], lumas[1], base.config.classifier_upsampling)
            residual = motion.residual.to(low.device)
            answers = base.warp(base.answers(key.high), motion.flow.to(low.device))
        if base.gate is not None:
            before, now = base.predictor.reduce(_given(key.low)), base.predictor.reduce(low)
            age = torch.full((len(low),), age_s, device=low.device)
            evidence = base.evidence(before, now, age, residual)
        return base.classify_fused(carried, low, evidence, answers)


@dataclass(frozen=True, eq=False)
class Key:
    """F_h of the key frame, what the carrier keeps of it, F_l, and its normalised image."""

    high: Tensor
    kept: Tensor
    low: Tensor | None
    image: Tensor


class CarriedSegmenter(nn.Module):
    """``base`` on key frames, ``carrier`` and ``head`` on all others."""

    def __init__(self, base: Segmenter, carrier: Carrier, head: Alone | Fused | OwnMask) -> None:
        super().__init__()
        self.base, self.carrier, self.head = base, carrier, head

    @property
    def needs_low(self) -> bool:
        """Whether frames between key frames need Sl at all."""
        return self.carrier.needs_low or self.head.needs_low

    def key(self, image: Tensor, low: Tensor, high: Tensor) -> Key:
        """What is kept of a key frame."""
        return Key(high, self.carrier.keep(image, low), low, image)

    def forward(self, key: Key, image: Tensor, low: Tensor | None) -> Tensor:
        """Logits (N, classes, r*H/8, r*W/8) of a frame between key frames."""
        motion = self.carrier.motion(key.kept, image, low)
        return self.classify(key, self.carrier.move(key.high, motion), low, image)

    def classify(
        self, key: Key, carried: Tensor, low: Tensor | None, image: Tensor, age_s: float = 0.0
    ) -> Tensor:
        """Logits (N, classes, r*H/8, r*W/8) of carried F_h, ``age_s`` seconds after the key."""
        own = (key, image, age_s) if isinstance(self.head, OwnMask) else ()
        logits: Tensor = self.head(carried, low, *own)
        return logits


def adaptive(base: Segmenter) -> CarriedSegmenter:
    """The paper's propagation and fusion, with the segmenter's own modules."""
    return CarriedSegmenter(base, Adaptive(base.predictor), OwnMask(base)).eval()


def _given(low: Tensor | None) -> Tensor:
    if low is None:
        raise ValueError("F_l is None; this method needs Sl on every frame")
    return low
