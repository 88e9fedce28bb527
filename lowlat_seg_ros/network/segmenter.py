"""The whole network, its parts callable one by one as the engine schedules them (paper Fig. 2)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from lowlat_seg_ros.config import NetworkConfig
from lowlat_seg_ros.network.adaptation import AdaptNet, Fusion
from lowlat_seg_ros.network.backbone import Backbone
from lowlat_seg_ros.network.classifier import Classifier
from lowlat_seg_ros.network.context import ContextHead
from lowlat_seg_ros.network.encoder import DDREncoder
from lowlat_seg_ros.network.propagation import KernelPredictor, spatially_variant_convolution
from lowlat_seg_ros.network.selector import KeyFrameSelector
from lowlat_seg_ros.network.sharing import SharedReduction

#: ImageNet statistics, RGB in [0, 1]: what torchvision's files were trained with.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)

#: Strides of F_l and F_h; image sides must be multiples of it.
STRIDE = 8


def normalise(image: Tensor) -> Tensor:
    """RGB in [0, 1] (N, 3, H, W) -> what Sl expects."""
    mean = torch.tensor(MEAN, dtype=image.dtype, device=image.device).view(3, 1, 1)
    std = torch.tensor(STD, dtype=image.dtype, device=image.device).view(3, 1, 1)
    return (image - mean) / std


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
        width, high = config.module_channels, config.high_channels
        self.backbone = Backbone(config)
        own, shares = config.encoder == "ddrnet", config.shared_reduction > 0
        self.encoder = DDREncoder(config.encoder_width, config.encoder_blocks) if own else None
        low = self.backbone.low_channels if self.encoder is None else self.encoder.channels
        self.encoded_channels = low
        self.shared = (
            SharedReduction(low, width, int(config.shared_reduction), keeps=not own)
            if shares
            else nn.Identity()
        )
        self.context = ContextHead(self.backbone.low_channels, self.backbone.out_channels, config)
        self.predictor = KernelPredictor(low, width, config.kernel_size, shares)
        self.adapt = AdaptNet(low, width, config.adapt_context, shares, config.adapt_depth)
        self.fusion = Fusion(high, width)
        self.selector = KeyFrameSelector(low, width, shares)
        answers = (config.num_classes, config.classifier_upsampling)
        self.classifier = new_classifier(config)
        self.high_classifier = Classifier(high, *answers)
        self.low_classifier = Classifier(width, *answers)

    @property
    def low_channels(self) -> int:
        """Channels of what :meth:`lower` gives."""
        if not self.config.shared_reduction:
            return self.encoded_channels
        kept = self.encoded_channels if self.encoder is None else 0
        return kept + self.config.module_channels

    def normalise(self, image: Tensor) -> Tensor:
        """RGB in [0, 1] (N, 3, H, W) -> what Sl expects."""
        return normalise(image)

    def lower(self, image: Tensor, pause: Callable[[], None] = _no_pause) -> Tensor:
        """Sl: normalised image (N, 3, H, W), sides multiples of 8 -> F_l, or with what is shared.

        ``pause`` is called between its blocks.
        """
        lower = self.backbone.lower if self.encoder is None else self.encoder
        low: Tensor = self.shared(lower(image, pause))
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

    def propagate(self, key_high: Tensor, weights: Tensor) -> Tensor:
        """F_h of the key frame and W(k,t) -> F_h carried to the current frame, Eq. (1)."""
        return spatially_variant_convolution(key_high, weights)

    def classify_fused(self, propagated: Tensor, low: Tensor) -> Tensor:
        """The fast track's mask: propagated F_h fused with the current frame's adapted F_l."""
        adapted = self.adapt(low)
        cells: Tensor = self.classifier.cells(self.fusion(propagated, adapted))
        if self.config.residual_fusion:
            answer = self.high_classifier.cells(propagated)
            if self.config.ensemble:
                own = self.low_classifier.cells(adapted)
                answer = torch.lerp(answer, own, self.config.ensemble)
            cells = cells + answer
        return self.classifier.arrange(cells)

    def classify_high(self, high: Tensor) -> Tensor:
        """The full network's mask, from F_h alone."""
        return self.high_classifier(high)

    def classify_low(self, low: Tensor) -> Tensor:
        """The auxiliary mask, from Sl and AdaptNet alone (training, and when Sh failed)."""
        return self.low_classifier(self.adapt(low))

    def forward(self, image: Tensor) -> Tensor:
        """The full network per frame: normalised image -> logits (N, classes, r*H/8, r*W/8)."""
        return self.classify_high(self.higher(self.source(image)))


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
