"""The whole network, its parts callable one by one as the engine schedules them (paper Fig. 2)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from lowlat_seg_ros.config import ConfigError, NetworkConfig
from lowlat_seg_ros.network import warping
from lowlat_seg_ros.network.adaptation import AdaptNet, Fusion
from lowlat_seg_ros.network.backbone import Backbone
from lowlat_seg_ros.network.classifier import Classifier
from lowlat_seg_ros.network.context import ContextHead
from lowlat_seg_ros.network.efficientnet_lite import EfficientNetLite
from lowlat_seg_ros.network.encoder import DDREncoder, TrunkEncoder
from lowlat_seg_ros.network.mobilenet_edgetpu import MobileNetEdgeTPU
from lowlat_seg_ros.network.propagation import KernelPredictor, spatially_variant_convolution
from lowlat_seg_ros.network.pyramid import PyramidHead, resized
from lowlat_seg_ros.network.selector import KeyFrameSelector
from lowlat_seg_ros.network.sharing import SharedReduction
from lowlat_seg_ros.network.statistics import IMAGENET
from lowlat_seg_ros.network.trunk import Trunk
from lowlat_seg_ros.network.trust import TrustGate, evidence_of

#: Strides of F_l and F_h; image sides must be multiples of it.
STRIDE = 8


def _no_pause() -> None:
    """Sh runs through."""


def _as_it_is(function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """Run a slice of Sh."""
    return function(*inputs)


class Segmenter(nn.Module):
    """Sl, Sh and the modules that let Sl's features stand in for Sh.

    =========  =======================  ============================================
    symbol     shape                    here
    =========  =======================  ============================================
    F_l        (N, Cl, H/8, W/8)        :meth:`lower`
    F_h        (N, Ch, H/8, W/8)        :meth:`higher` of :meth:`source`
    W(k,t)     (N, K*K, H/8, W/8)       ``predictor``
    Eq. (1)    (N, Ch, H/8, W/8)        :meth:`propagate`
    devS(k,t)  (N,)                     ``selector.deviation``
    =========  =======================  ============================================

    All ``classify_*`` methods return logits (N, classes, r*H/8, r*W/8), r being the configuration's
    ``classifier_upsampling``.
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        #: To what it rounds images, so that they may come in it; :func:`~.inference.prepare` says.
        self.input_dtype = torch.float32
        #: Whether :func:`~.inference.prepare` has been at it.
        self.prepared = False
        width, high = config.module_channels, config.high_channels
        self.encoder = new_encoder(config)
        self.backbone: Backbone | Trunk
        self.context: ContextHead | PyramidHead
        if config.has_trunk:
            self.backbone = trunk = new_trunk(config.backbone, whole=True)
            self.context = PyramidHead(trunk.channels, config.context_channels, high)
            self.statistics = trunk.statistics
        else:
            self.backbone = resnet = Backbone(config)
            self.context = ContextHead(resnet.low_channels, resnet.out_channels, config)
            self.statistics = IMAGENET
        if self.encoder is None:
            assert isinstance(self.backbone, Backbone)
            low = self.backbone.low_channels
        else:
            low = self.encoder.channels
        self.encoded_channels = low
        own, shares = self.encoder is not None, config.shared_reduction > 0
        self.shared = (
            SharedReduction(low, width, int(config.shared_reduction), keeps=not own)
            if shares
            else nn.Identity()
        )
        self.predictor = KernelPredictor(low, width, config.kernel_size, shares)
        self.adapt = AdaptNet(low, width, config.adapt_context, shares, config.adapt_depth)
        self.fusion = Fusion(high, width)
        self.selector = KeyFrameSelector(low, width, shares)
        answers = (config.num_classes, config.classifier_upsampling)
        self.classifier = new_classifier(config)
        self.high_classifier = Classifier(high, *answers)
        self.low_classifier = Classifier(width, *answers)
        points = config.classifier_upsampling**2
        self.gate = (
            TrustGate(width, config.num_classes * points, points, config.flow_evidence)
            if config.gate
            else None
        )

    @property
    def low_channels(self) -> int:
        """Channels of what :meth:`lower` gives."""
        if not self.config.shared_reduction:
            return self.encoded_channels
        kept = self.encoded_channels if self.encoder is None else 0
        return kept + self.config.module_channels

    def normalise(self, image: Tensor) -> Tensor:
        """RGB in [0, 1] (N, 3, H, W) -> what Sl and Sh expect."""
        return self.statistics.normalise(image)

    def lower(self, image: Tensor, pause: Callable[[], None] = _no_pause) -> Tensor:
        """Sl: normalised image (N, 3, H, W), sides multiples of 8 -> F_l, or with what is shared.

        ``pause`` is called between its blocks.
        """
        if self.encoder is None:
            assert isinstance(self.backbone, Backbone)
            encoded = self.backbone.lower(image, pause)
        else:
            encoded = self.encoder(image, pause)
        low: Tensor = self.shared(encoded)
        return low

    def source(self, image: Tensor, low: Tensor | None = None) -> Tensor:
        """What Sh begins with: F_l, or the normalised image where Sl is an encoder of its own.

        ``low`` is F_l of the image where it is known; else Sl runs, if needed.
        """
        if self.encoder is not None:
            return image
        return self.lower(image) if low is None else low

    def higher(
        self,
        source: Tensor,
        pause: Callable[[], None] = _no_pause,
        step: Callable[..., Tensor] = _as_it_is,
    ) -> Tensor:
        """Sh: :meth:`source` -> F_h. ``pause`` is called between slices and may wait or raise.

        ``step`` runs each of them, a function of tensors to one tensor, always in the same order.
        """
        if isinstance(self.backbone, Trunk):
            features = self.backbone.features(step(self.enlarge, source), pause, step)
            cells = (source.shape[2] // STRIDE, source.shape[3] // STRIDE)
            return step(partial(self.context, cells=cells), *features)
        assert isinstance(self.backbone, Backbone)
        if self.encoder is None:
            low = source[:, : self.encoded_channels]
        else:
            low = step(self.backbone.stem, source)
            for block in self.backbone.lower_blocks():
                pause()
                low = step(block, low)
            pause()
        x = low
        for block in self.backbone.higher_blocks():
            x = step(block, x)
            pause()
        return step(self.context, x, low)

    def answers(self, high: Tensor) -> Tensor:
        """The full network's logits (N, classes, r*H/8, r*W/8), laid out for :meth:`warp`."""
        return self.classify_high(high).contiguous(memory_format=torch.channels_last)

    def warp(self, answers: Tensor, flow: Tensor) -> Tensor:
        """Answers of the frame that Sh has seen -> where optical flow has them now.

        ``flow`` (N, 2, r*H/8, r*W/8), see :class:`~.warping.Motion`.
        """
        return warping.warp(answers, flow, self.config.classifier_upsampling)

    def read_at(self, scale: float) -> None:
        """Let Sh read images at ``scale``, of the network's sides, from now on.

        Raises ``ConfigError`` out of the range of ``NetworkConfig.high_scale``, and where Sh is
        part of a ResNet, which reads F_l or the image as it is.
        """
        if not self.config.has_trunk:
            raise ConfigError(
                f"--high-scale is {scale}, but Sh of this network, a {self.config.backbone}, has "
                "no scale of its own; leave it out"
            )
        self.config = dataclasses.replace(self.config, high_scale=scale)

    def enlarge(self, image: Tensor) -> Tensor:
        """Normalised image (N, 3, H, W) -> at the size that Sh reads, sides multiples of 16."""
        scale = self.config.high_scale
        return resized(image, [max(1, round(side * scale / 16)) * 16 for side in image.shape[2:]])

    def propagate(self, key_high: Tensor, weights: Tensor) -> Tensor:
        """F_h of the key frame and W(k,t) -> F_h carried to the current frame, Eq. (1)."""
        return spatially_variant_convolution(key_high, weights)

    def evidence(
        self,
        reduced_key: Tensor,
        reduced: Tensor,
        age_s: Tensor,
        residual: Tensor | None = None,
    ) -> Tensor:
        """What the gate needs to know of the frames: see :func:`~.trust.evidence_of`.

        ``residual``: of the optical flow; it counts with ``flow_evidence`` alone.
        """
        return evidence_of(
            reduced_key, reduced, age_s, residual if self.config.flow_evidence else None
        )

    def fuse(
        self,
        propagated: Tensor,
        low: Tensor,
        evidence: Tensor | None = None,
        answers: Tensor | None = None,
    ) -> Tensor:
        """The fast track's logits, and with a gate the trust as one more plane.

        Propagated F_h is fused with the current frame's adapted F_l. ``evidence``: for the gate,
        see :meth:`evidence`; raises ``ValueError`` if it is missing. ``answers``: what was moved by
        :meth:`warp`, instead of the answers of propagated F_h. ``split_trust`` takes what is
        returned apart.
        """
        adapted = self.adapt(low)
        fused = self.fusion(propagated, adapted)
        cells: Tensor = self.classifier.cells(fused)
        if self.config.residual_fusion:
            answer = self.high_classifier.cells(propagated) if answers is None else answers
            if self.gate is not None:
                if evidence is None:
                    raise ValueError("evidence is None; a network with a gate needs it")
                own = self.low_classifier.cells(adapted)
                return self.gate.combine(fused, own, answer, cells, evidence)
            if self.config.ensemble:
                own = self.low_classifier.cells(adapted)
                cells = cells + torch.lerp(answer, own, self.config.ensemble)
            else:
                cells = cells + answer
        return self.classifier.arrange(cells)

    def split_trust(self, fused: Tensor) -> tuple[Tensor, Tensor | None]:
        """What :meth:`fuse` gave -> logits, and trust (N, 1, r*H/8, r*W/8), None without a gate."""
        if self.gate is None:
            return fused, None
        classes = self.config.num_classes
        return fused[:, :classes], fused[:, classes:]

    def classify_fused(
        self,
        propagated: Tensor,
        low: Tensor,
        evidence: Tensor | None = None,
        answers: Tensor | None = None,
    ) -> Tensor:
        """The fast track's logits alone, of what :meth:`fuse` takes."""
        return self.split_trust(self.fuse(propagated, low, evidence, answers))[0]

    def classify_high(self, high: Tensor) -> Tensor:
        """The full network's mask, from F_h alone."""
        return self.high_classifier(high)

    def classify_low(self, low: Tensor) -> Tensor:
        """The auxiliary mask, from Sl and AdaptNet alone (training, and when Sh failed)."""
        return self.low_classifier(self.adapt(low))

    def forward(self, image: Tensor) -> Tensor:
        """The full network per frame: normalised image -> logits (N, classes, r*H/8, r*W/8)."""
        return self.classify_high(self.higher(self.source(image)))


def new_trunk(name: str, whole: bool) -> Trunk:
    """The trunk ``name`` of :data:`~lowlat_seg_ros.config.TRUNKS`; ``whole``: to its last stage."""
    if name == "mobilenet_edgetpu":
        return MobileNetEdgeTPU(whole)
    return EfficientNetLite(name, whole)


def new_encoder(config: NetworkConfig) -> DDREncoder | TrunkEncoder | None:
    """Sl as an encoder of its own, None where it is the lower part of the ResNet."""
    if config.encoder == "backbone":
        return None
    if config.encoder == "ddrnet":
        return DDREncoder(config.encoder_width, config.encoder_blocks)
    trunk = new_trunk(config.encoder, whole=False)
    return TrunkEncoder(trunk, config.module_channels, config.encoder_scale)


def new_classifier(config: NetworkConfig) -> Classifier:
    """The fast track's classifier; as a correction it begins by changing nothing."""
    classifier = Classifier(
        config.module_channels, config.num_classes, config.classifier_upsampling
    )
    if config.residual_fusion:
        nn.init.zeros_(classifier.weight)
        assert classifier.bias is not None
        nn.init.zeros_(classifier.bias)
    return classifier
