"""The whole network, its parts callable one by one as the engine schedules them (paper Fig. 2)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from lowlat_seg_ros.config import ConfigError, NetworkConfig
from lowlat_seg_ros.network import warping
from lowlat_seg_ros.network.expected_accuracy import AccuracyModel
from lowlat_seg_ros.network.fast_track import (
    AdaptNet,
    Classifier,
    Fusion,
    KeyFrameSelector,
    SharedReduction,
)
from lowlat_seg_ros.network.gate import TrustGate, weigh
from lowlat_seg_ros.network.layers import halved, resized
from lowlat_seg_ros.network.mobilenet import EfficientNetLite, MobileNetEdgeTPU
from lowlat_seg_ros.network.propagation import KernelPredictor, spatially_variant_convolution
from lowlat_seg_ros.network.resnet import ContextHead, DDREncoder, ResNet
from lowlat_seg_ros.network.trunk import (
    IMAGENET,
    PyramidHead,
    Step,
    Trunk,
    TrunkEncoder,
    call,
)

#: Strides of F_l and F_h; image sides must be multiples of it.
STRIDE = 8


class Segmenter(nn.Module):
    """Sl, Sh and the modules that let Sl's features stand in for Sh.

    =========  =======================  ============================================
    symbol     shape                    here
    =========  =======================  ============================================
    F_l        (N, Cl, H/8, W/8)        :meth:`lower`
    F_h        (N, Ch, H/8, W/8)        :meth:`higher` of :meth:`source`
    W(k,t)     (N, K*K, H/8, W/8)       ``predictor``
    Eq. (1)    (N, Ch, H/8, W/8)        :meth:`propagate` of :meth:`carried_cells`
    devS(k,t)  (N,)                     ``selector.deviation``
    =========  =======================  ============================================

    With a ``propagation_stride`` of 16 W(k,t) and Eq. (1) are at 1/16.
    All ``classify_*`` methods return logits (N, classes, r*H/8, r*W/8), r being the configuration's
    ``classifier_upsampling``.
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        #: Precision that it rounds images to first; set by :func:`~.inference.prepare`.
        self.input_dtype = torch.float32
        #: Height in px of the images that it was trained on; 0 where the checkpoint does not say.
        self.trained_height = 0
        #: What says how many of a mask's pixels are right; None where the checkpoint has none.
        self.accuracy_model: AccuracyModel | None = None
        #: Whether :func:`~.inference.prepare` has folded it.
        self.prepared = False
        width, high = config.module_channels, config.high_channels
        self.encoder = new_encoder(config)
        self.backbone: ResNet | Trunk
        self.context: ContextHead | PyramidHead
        if config.has_trunk:
            self.backbone = trunk = new_trunk(config.backbone, whole=True)
            self.context = PyramidHead(trunk.channels, config.context_channels, high)
            self.statistics = trunk.statistics
        else:
            self.backbone = resnet = ResNet(config)
            self.context = ContextHead(resnet.low_channels, resnet.out_channels, config)
            self.statistics = IMAGENET
        if self.encoder is None:
            assert isinstance(self.backbone, ResNet)
            low = self.backbone.low_channels
        else:
            low = self.encoder.channels
        self.encoded_channels = low
        shares = config.shared_reduction > 0
        self.shared: nn.Module = nn.Identity()
        if shares:
            kernel = int(config.shared_reduction)  # old checkpoints may have a bool
            self.shared = SharedReduction(low, width, kernel, keeps_input=self.encoder is None)
        #: Whether Eq. (1) and fusion have cells at 1/16.
        self.is_coarse = config.propagation_stride > STRIDE
        self.predictor = KernelPredictor(low, width, config.kernel_size, shares, self.is_coarse)
        self.adapt = AdaptNet(low, width, config.adapt_context, shares, config.adapt_depth)
        self.fusion = Fusion(high, width)
        self.selector = KeyFrameSelector(low, width, shares)
        answers = (config.num_classes, config.classifier_upsampling)
        self.classifier = new_classifier(config)
        self.high_classifier = Classifier(high, *answers)
        self.low_classifier = Classifier(width, *answers)
        self.gate: TrustGate | None = None
        if config.fine_carry:
            self.gate = TrustGate(width, config.num_classes, config.classifier_upsampling**2)

    @property
    def low_channels(self) -> int:
        if not self.config.shared_reduction:
            return self.encoded_channels
        from_sl = self.encoded_channels if self.encoder is None else 0
        return from_sl + self.config.module_channels

    def normalise(self, image: Tensor) -> Tensor:
        return self.statistics.normalise(image)

    def lower(self, image: Tensor, pause: Callable[[], None] = lambda: None) -> Tensor:
        """Sl: normalised image (N, 3, H, W), sides multiples of 8 -> F_l.

        F_l is (N, ``low_channels``, H/8, W/8), the shared reduction included. ``pause`` is called
        between blocks.
        """
        if self.encoder is None:
            assert isinstance(self.backbone, ResNet)
            encoded = self.backbone.lower(image, pause)
        else:
            encoded = self.encoder(image, pause)
        low: Tensor = self.shared(encoded)
        return low

    def begin_lower(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """The first half of :meth:`lower`, for :meth:`end_lower`; where Sl is an encoder."""
        assert isinstance(self.encoder, TrunkEncoder)
        return self.encoder.begin(image)

    def end_lower(self, last: Tensor, parts: Tensor) -> Tensor:
        """The second half of :meth:`lower`: F_l, of what :meth:`begin_lower` returned."""
        assert isinstance(self.encoder, TrunkEncoder)
        low: Tensor = self.shared(self.encoder.end(last, parts))
        return low

    def source(self, image: Tensor, low: Tensor | None = None) -> Tensor:
        """What Sh begins with: F_l, or the normalised image where Sl is a network of its own.

        ``low`` is the image's F_l if it is known; otherwise Sl runs, where it is needed.
        """
        if self.encoder is not None:
            return image
        return self.lower(image) if low is None else low

    def higher(
        self,
        source: Tensor,
        pause: Callable[[], None] = lambda: None,
        step: Step = call,
    ) -> Tensor:
        """Sh: :meth:`source` -> F_h. ``pause`` is called between slices and may wait or raise.

        ``step`` runs each of them, always in the same order.
        """
        if isinstance(self.backbone, Trunk):
            features = self.backbone.features(step(self.enlarge, source), pause, step)
            cells = (source.shape[2] // STRIDE, source.shape[3] // STRIDE)
            return step(partial(self.context, cells=cells), *features)
        assert isinstance(self.backbone, ResNet)
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
        """Answers of the frame that Sh has seen -> moved by optical flow to now, one cell each.

        (N, classes, r*H/8, r*W/8) -> (N, classes*r*r, H/8, W/8), as classifiers' cells are.
        ``flow`` (N, 2, r*H/8, r*W/8), see :class:`.warping.Motion`.
        """
        return warping.warp(answers, flow, self.config.classifier_upsampling)

    def read_at(self, scale: float) -> None:
        """From now on let Sh read images whose sides are ``scale`` times the network's.

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
        """Normalised image (N, 3, H, W) -> the same at Sh's size, sides multiples of 16."""
        scale = self.config.high_scale
        return resized(image, [max(1, round(side * scale / 16)) * 16 for side in image.shape[2:]])

    def carried_cells(self, high: Tensor) -> Tensor:
        """F_h -> what Eq. (1) carries of it: F_h itself, or means of 2x2 cells."""
        return halved(high) if self.is_coarse else high

    def propagate(self, key_high: Tensor, weights: Tensor) -> Tensor:
        """:meth:`carried_cells` of the key frame and W(k,t) -> the current frame's, Eq. (1)."""
        return spatially_variant_convolution(key_high, weights)

    def fuse(
        self,
        propagated: Tensor,
        low: Tensor,
        evidence: Tensor | None = None,
        answers: Tensor | None = None,
        reduced: Tensor | None = None,
    ) -> Tensor:
        """What :meth:`decide` makes the fast track's logits of, several per cell (Sec. 3.3).

        Propagated F_h is fused with the current frame's adapted F_l, or with the predictor's
        ``reduced`` F_l where cells are coarse, and the result is classified. With a gate it tells
        how far to trust Sh's ``answers``, which :meth:`warp` moved to now, as (N, classes*r*r, H/8,
        W/8); returned are the answers of F_l alone and the trust, (N, (classes+1)*r*r, H/8, W/8).
        ``evidence``: for the gate, see :func:`.gate.evidence_of`. Raises ``ValueError`` if
        anything that a gate needs is missing.
        """
        if self.gate is not None:
            own, logit = self.judge(propagated, low, evidence, answers, reduced)
            return torch.cat([own, logit.sigmoid()], dim=1)  # float32 if one is, as trust must be
        adapted, config = self.adapt(low), self.config
        fused = self.fusion(propagated, adapted)
        if answers is None and config.residual_fusion:
            answers = self.high_classifier.cells(propagated)
        cells: Tensor = self.classifier.cells(fused)
        if answers is not None:
            if config.ensemble:
                answers = torch.lerp(answers, self.low_classifier.cells(adapted), config.ensemble)
            cells = cells + answers
        return cells

    def judge(
        self,
        propagated: Tensor,
        low: Tensor,
        evidence: Tensor | None,
        answers: Tensor | None,
        reduced: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """With a gate: the answers of F_l alone, and the logit of the trust in the carried ones.

        (N, classes*r*r, H/8, W/8) and (N, r*r, H/8, W/8); inputs and errors as of :meth:`fuse`.
        """
        assert self.gate is not None
        adapted = self.adapt(low)
        mixed = reduced if self.is_coarse else adapted
        if evidence is None or answers is None or mixed is None:
            raise ValueError(
                "evidence, answers or reduced are None; a network with a gate needs all three"
            )
        own = self.low_classifier.cells(adapted)
        return own, self.gate(self.fusion(propagated, mixed), answers, own, evidence)

    def decide(self, cells: Tensor, answers: Tensor | None = None) -> Tensor:
        """The fast track's logits, of what :meth:`fuse` returned.

        With a gate they are trust * answers + (1 - trust) * those of F_l alone, ``answers`` as for
        :meth:`fuse`, and the trust is one more plane; :meth:`split_trust` separates it.
        """
        if self.gate is None:
            return self.classifier.arrange(cells)
        assert answers is not None
        return weigh(cells, answers, self.config.classifier_upsampling)

    def split_trust(self, decided: Tensor) -> tuple[Tensor, Tensor | None]:
        """Of :meth:`decide` -> logits, trust (N, 1, r*H/8, r*W/8), None without a gate."""
        if self.gate is None:
            return decided, None
        classes = self.config.num_classes
        return decided[:, :classes], decided[:, classes:]

    def classify_fused(
        self,
        propagated: Tensor,
        low: Tensor,
        evidence: Tensor | None = None,
        answers: Tensor | None = None,
    ) -> Tensor:
        """The fast track's logits without the trust; inputs as for :meth:`fuse`, none reduced."""
        reduced = self.predictor.reduce(low) if self.is_coarse else None
        cells = self.fuse(propagated, low, evidence, answers, reduced)
        return self.split_trust(self.decide(cells, answers))[0]

    def classify_high(self, high: Tensor) -> Tensor:
        """The full network's mask, from F_h."""
        return self.high_classifier(high)

    def classify_low(self, low: Tensor) -> Tensor:
        """The auxiliary mask, from Sl and AdaptNet (in training, and after a failure of Sh)."""
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
    """Sl as a network of its own, None where it is the lower part of the ResNet."""
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
