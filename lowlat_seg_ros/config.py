"""Every setting of the product, declared once: default, meaning, unit and range.

ROS parameters, command-line options and checkpoints derive from these records, so no default is
written twice. A value out of its range raises :class:`ConfigError` naming the value, the rule and
the fix.
"""

from __future__ import annotations

import dataclasses
import itertools
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar


class ConfigError(ValueError):
    """A setting is unknown, of the wrong type or out of its range."""


class SettingError(ConfigError):
    """The ``problem`` with the value of one ``setting``: it "is 3; it must ...".

    ROS parameters and command-line options put their own name for the setting before the problem.
    """

    def __init__(self, setting: str, problem: str) -> None:
        super().__init__(f"{setting} {problem}")
        self.setting, self.problem = setting, problem


@dataclass(frozen=True)
class Rule:
    """Which values a setting may have, from ``low`` to ``high`` or ``choices``, and when.

    ``dynamic`` settings may change while the node runs; the others while it is unconfigured.
    ``top_level`` ones are ROS parameters by their own name, the others below ``advanced.``.
    """

    unit: str = ""
    low: float | None = None
    high: float | None = None
    choices: tuple[Any, ...] = ()
    dynamic: bool = False
    top_level: bool = False


def setting(default: Any, doc: str, rule: Rule = Rule()) -> Any:
    """Declare one setting: ``default``, ``doc`` (what a user needs to know) and its rule."""
    return field(default=default, metadata={"doc": doc, "rule": rule})


def ranged(default: Any, **rule: Any) -> Any:
    """A setting that no user meets by name: its ``default`` and what :class:`Rule` takes."""
    return field(default=default, metadata={"rule": Rule(**rule)})


Record = TypeVar("Record")


def check(record: Any) -> None:
    """Raise :class:`SettingError` if a setting of the dataclass ``record`` breaks its rule."""
    for item in dataclasses.fields(record):
        value, rule = getattr(record, item.name), item.metadata.get("rule", Rule())
        if isinstance(item.default, bool) and not isinstance(value, bool):
            raise SettingError(item.name, f"is {value!r}; it must be true or false")
        if rule.choices and value not in rule.choices:
            known = ", ".join(map(str, rule.choices))
            raise SettingError(item.name, f"is {value!r}; choose one of {known}")
        # A NaN fails both comparisons when they are written this way round.
        if rule.low is not None and not rule.low <= value <= rule.high:
            unit = f" {rule.unit}" if rule.unit else ""
            raise SettingError(
                item.name, f"is {value}; it must lie in [{rule.low}, {rule.high}]{unit}"
            )


def from_mapping(kind: type[Record], values: dict[str, Any]) -> Record:
    """Build the settings record ``kind`` from ``values``; an unknown key raises ConfigError."""
    known = {item.name for item in dataclasses.fields(kind)}  # type: ignore[arg-type]
    unknown = sorted(set(values) - known)
    if unknown:
        raise ConfigError(
            f"there is no setting {', '.join(unknown)}; known: {', '.join(sorted(known))}"
        )
    # JSON and YAML know lists only; the records are hashable and hold tuples.
    return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})


#: Pretrained backbones (``lowlat-seg train base --init``), beside the ResNets.
TRUNKS = ("mobilenet_edgetpu", "efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2")

#: Number formats of convolutions; ``auto`` is the fastest that checkpoint and hardware allow.
PRECISIONS = ("auto", "int8", "bf16", "fp32")


@dataclass(frozen=True)
class NetworkConfig:
    """Sizes of the network (paper Sec. 3 and 4); the named ones are in :data:`NETWORKS`.

    The defaults are the paper's arrangement at a small size: what goes beyond the paper is off.
    """

    #: Network of Sh: a ResNet, which may be split into Sl and Sh, or a pretrained trunk, which
    #: reads the image itself. Its parameters are named as in the source's files.
    backbone: str = ranged(
        "resnet18", choices=("resnet18", "resnet34", "resnet50", "resnet101", "tiny", *TRUNKS)
    )
    #: Sides of the image that a trunk as Sh reads, times the input's.
    high_scale: float = ranged(1.0, low=0.25, high=4.0)
    #: Last part of Sl in torchvision's names: a stage ('layer2') or a block ('layer3.2', which the
    #: paper calls conv4_3). It must have stride 8.
    split: str = "layer2"
    #: What Sl is: the lower part of the ResNet, as published, or a network of its own beside a Sh
    #: that reads the image: DDRNet-23-slim's first stages, or a trunk on a smaller image.
    encoder: str = ranged("backbone", choices=("backbone", "ddrnet", *TRUNKS))
    #: Sides of the image that a trunk as Sl reads, times the input's.
    encoder_scale: float = ranged(0.5, low=0.1, high=2.0)
    #: Channels of ddrnet's first stages; F_l has twice as many.
    encoder_width: int = ranged(32, low=4, high=256)
    #: Residual blocks of ddrnet's three stages, the third per branch.
    encoder_blocks: tuple[int, ...] = ranged(
        (2, 2, 2), choices=tuple(itertools.product((1, 2), repeat=3))
    )
    #: Stride of F_h before propagation (8 as published).
    output_stride: int = ranged(8, choices=(8, 16))
    #: Classes, without the ignored label 255.
    num_classes: int = ranged(11, low=2, high=255)
    #: Width of predictor, selector, AdaptNet and fusion (256 in the paper).
    module_channels: int = ranged(64, low=4, high=1024)
    #: Ch: channels of F_h after projection.
    high_channels: int = ranged(64, low=4, high=2048)
    #: Channels of each branch of the context head.
    context_channels: int = ranged(64, low=4, high=1024)
    #: Channels of the 3x3 convolution that ends the context head before F_h is projected (512 in
    #: PSPNet); 0 for high_channels.
    context_merge: int = ranged(0, low=0, high=2048)
    #: Grid sizes of the pyramid pooling in the context head.
    context_bins: tuple[int, ...] = (1, 2, 3, 6)
    #: Channels of F_l that join the context head, for fine detail.
    context_skip: int = ranged(0, low=0, high=1024)
    #: K: side of the predicted kernels, which have a centre.
    kernel_size: int = ranged(9, choices=tuple(range(1, 32, 2)))
    #: Logits per side of a feature cell; with 2 each classifier answers four times per cell
    #: (sub-pixel convolution), so that thin things survive the stride of 8.
    classifier_upsampling: int = ranged(1, choices=(1, 2, 4, 8))
    #: Channels of AdaptNet's second branch, at strides 16 and 32.
    adapt_context: int = ranged(0, low=0, high=1024)
    #: 3x3 convolutions of AdaptNet; the shared one counts as the first.
    adapt_depth: int = ranged(3, low=1, high=3)
    #: Side of the one convolution of F_l that selector, predictor and AdaptNet share; with 0 each
    #: begins with a 3x3 convolution of its own.
    shared_reduction: int = ranged(0, choices=(0, 1, 3))
    #: Whether fusion corrects the full network's classifier on the propagated F_h instead of
    #: answering by itself.
    residual_fusion: bool = False
    #: Whether the full network's answers are warped at their own resolution by optical flow from
    #: the frame that Sh has seen, besides F_h, which Eq. (1) moves in whole cells. A gate weighs
    #: each against the frame's own answer by a trust that is learned from the age of the features,
    #: the change of F_l, the agreement of both answers and how well the warped image fits.
    fine_carry: bool = False
    #: Stride of the cells that Eq. (1) carries and fusion mixes, 8 as published. With 16 they are
    #: means of 2x2 cells, a quarter of the work, and kernels reach twice as far; for fine_carry.
    propagation_stride: int = ranged(8, choices=(8, 16))
    #: Weight of the auxiliary classifier, which has seen F_l alone, against the full network's in
    #: the answer that residual fusion corrects.
    ensemble: float = ranged(0.0, low=0.0, high=1.0)

    def __post_init__(self) -> None:
        check(self)
        if not 1 <= len(self.context_bins) <= 8 or not all(1 <= n <= 64 for n in self.context_bins):
            raise ConfigError(
                f"context_bins is {self.context_bins}; it must be 1 to 8 numbers from 1 to 64"
            )
        if self.has_trunk and self.encoder == "backbone":
            raise ConfigError(
                f"backbone {self.backbone} cannot be split; set encoder to ddrnet or to one of "
                f"{', '.join(TRUNKS)}"
            )
        families = {name.rstrip("012") for name in (self.encoder, self.backbone)}
        if self.encoder in TRUNKS and len(families) > 1:
            raise ConfigError(
                f"encoder is {self.encoder} beside backbone {self.backbone}, which reads images "
                "normalised in another way; choose both of one family of trunks, which are "
                f"{', '.join(TRUNKS)}"
            )
        if (self.fine_carry or self.ensemble) and not self.residual_fusion:
            raise ConfigError(
                f"fine_carry is {self.fine_carry} and ensemble {self.ensemble} without "
                "residual_fusion, which both are a part of; set that, or neither of them"
            )
        if self.fine_carry and self.ensemble:
            raise ConfigError(
                f"ensemble is {self.ensemble} with fine_carry, whose gate replaces it; set it to 0"
            )

        if self.propagation_stride > 8 and not self.fine_carry:
            raise ConfigError(
                f"propagation_stride is {self.propagation_stride} without fine_carry, so masks "
                "would be made of cells that large; set fine_carry, or set it to 8"
            )

    @property
    def has_trunk(self) -> bool:
        """Whether Sh is a pretrained network that reads the image, see :data:`TRUNKS`."""
        return self.backbone in TRUNKS


_RESNET18 = NetworkConfig(
    context_skip=32, classifier_upsampling=2, adapt_context=128, residual_fusion=True
)
_RESNET101 = NetworkConfig(
    backbone="resnet101",
    split="layer3.2",
    num_classes=19,
    module_channels=256,
    high_channels=256,
    context_channels=512,
    context_merge=512,
)
_TINY = NetworkConfig(
    backbone="tiny",
    module_channels=8,
    high_channels=8,
    context_channels=4,
    context_bins=(1, 2),
    context_skip=4,
    classifier_upsampling=2,
    adapt_context=8,
    residual_fusion=True,
)


def _with_ddrnet(network: NetworkConfig, width: int, ensemble: float = 0.3) -> NetworkConfig:
    """``network`` with DDRNet's first stages as Sl, which sees far without ``adapt_context``."""
    return replace(
        network,
        encoder="ddrnet",
        encoder_width=width,
        encoder_blocks=(1, 1, 1),
        shared_reduction=3,
        adapt_context=0,
        adapt_depth=1,
        ensemble=ensemble,
    )


_TINY_GATED = replace(_with_ddrnet(_TINY, width=6, ensemble=0.0), fine_carry=True)


def _pretrained(trunk: str) -> NetworkConfig:
    """``trunk`` as Sh and as Sl, and answers that are carried by optical flow."""
    return NetworkConfig(
        backbone=trunk,
        high_scale=1.5,
        encoder=trunk,
        shared_reduction=3,
        adapt_depth=1,
        classifier_upsampling=2,
        residual_fusion=True,
        fine_carry=True,
    )


#: Named networks. ``edgetpu`` is the default and runs on a CPU, as do ``efficientnet_lite0`` and
#: ``resnet18_ddr``, all three with an Sl of its own; ``resnet18`` splits one ResNet as the paper
#: does, and ``paper_resnet18`` is without all that goes beyond the paper; ``paper_resnet101`` has
#: the sizes published in Sec. 4, and ``resnet101_fast`` differs from it by the shared reduction
#: alone. The ``tiny`` ones are for tests.
NETWORKS: dict[str, NetworkConfig] = {
    "resnet18": _RESNET18,
    "resnet18_ddr": _with_ddrnet(_RESNET18, width=32),
    "paper_resnet18": NetworkConfig(),
    "paper_resnet101": _RESNET101,
    "resnet101_fast": replace(_RESNET101, shared_reduction=1),
    "edgetpu": replace(_pretrained("mobilenet_edgetpu"), propagation_stride=16),
    "efficientnet_lite0": _pretrained("efficientnet_lite0"),
    "tiny": _TINY,
    "tiny_ddr": _with_ddrnet(_TINY, width=6),
    "tiny_gated": _TINY_GATED,
    "tiny_coarse": replace(_TINY_GATED, propagation_stride=16),
}


def name_of(network: NetworkConfig) -> str:
    """Its name in :data:`NETWORKS`, whatever its classes; that of its backbone if it has none."""
    for name, config in NETWORKS.items():
        if replace(config, num_classes=network.num_classes) == network:
            return name
    return network.backbone


#: The network whose weights are used, and trained, when none is named.
DEFAULT_NETWORK = "edgetpu"


@dataclass(frozen=True)
class EngineConfig:
    """How frames are scheduled and at what size they are segmented (paper Sec. 3.4)."""

    inference_height: int = setting(
        -1,
        "height at which the network runs; -1 for that of its training images, where objects have "
        "the size that it knows, 0 for the input's own; the width follows from the aspect ratio, "
        "and both are padded (edge pixels repeated, right and bottom) to a multiple of 8; masks "
        "have the input's size unless output_size of the node says otherwise",
        Rule(unit="px", low=-1, high=4320, top_level=True),
    )
    precision: str = setting(
        "auto",
        "number format of the network's convolutions; auto takes int8 if Sl is clearly faster in "
        "it, measured when weights are first loaded, else bf16 where the processor has it; int8 is "
        "for CPUs and for weights prepared by 'lowlat-seg quantize', takes a fraction of the time "
        "with VNNI or AMX, and changes the class of one pixel in 150; bf16 is faster than fp32 on "
        "CPUs with avx512_bf16 or amx_bf16 and on GPUs, and changes the class of one pixel in 1500",
        Rule(choices=PRECISIONS, top_level=True),
    )
    runtime: str = setting(
        "auto",
        "what runs a frame's convolutions up to its mask on a CPU; auto takes OpenVINO if it is "
        "installed ('pip install openvino') and the network is in 8 bits, else PyTorch; with "
        "OpenVINO frames take a third to a half less time, and the class of one pixel in 2500 "
        "changes",
        Rule(choices=("auto", "pytorch", "openvino")),
    )
    key_frame_policy: str = setting(
        "when_free",
        "when a frame becomes the key frame; when_free: whenever the slow track (Sh) is idle, so "
        "that Sh runs back to back on the newest frame; deviation: when the predicted deviation is "
        "above the threshold, which saves power and leaves the cores to others; deviation is also "
        "in force with key_frame_budget, from level 2 of load shedding on, and after a failure of "
        "Sh, which is then tried again every 30 frames at the latest",
        Rule(choices=("when_free", "deviation"), dynamic=True, top_level=True),
    )
    deviation_threshold: float = setting(
        -1.0,
        "predicted deviation, the share of pixels whose class has changed since the key frame, "
        "above which a frame becomes the key frame; -1 for the checkpoint's calibrated value",
        Rule(low=-1.0, high=1.0, dynamic=True, top_level=True),
    )
    confidence_threshold: float = setting(
        0.0,
        "pixels with a lower confidence (the highest softmax probability) become 255, unlabelled, "
        "in the mask; 0 for off",
        Rule(low=0.0, high=1.0, dynamic=True, top_level=True),
    )
    max_key_interval: int = setting(
        0,
        "longest interval between key frames, whatever the selector says; 0 for no limit",
        Rule(unit="frames", low=0, high=100_000, dynamic=True),
    )
    key_frame_budget: float = setting(
        0.0,
        "target share of frames that become the key frame; the threshold, which starts at "
        "deviation_threshold, is adjusted to reach it; 0 for a fixed threshold",
        Rule(low=0.0, high=1.0, dynamic=True),
    )
    late_refinement: str = setting(
        "propagate",
        "what to do with exact features that arrive after their key frame was replaced: propagate "
        "them to the current key frame, use them as_is, or drop them",
        Rule(choices=("propagate", "as_is", "drop")),
    )
    slow_track_min_share: float = setting(
        0.25,
        "share of the time that the slow track (Sh) gets even if frames leave it none, as at high "
        "camera rates",
        Rule(low=0.0, high=1.0, dynamic=True),
    )
    max_gap_ms: float = setting(
        1000.0,
        "a longer gap between stamps resets the stream; right after a full frame, which may take "
        "long itself, it may be 30 s longer; 0 for never",
        Rule(unit="ms", low=0.0, high=3.6e6, dynamic=True),
    )
    max_latency_ms: float = setting(
        0.0,
        "deadline of a mask, counted from the image's arrival on this machine; later masks are "
        "counted, and while too many are late, load is shed step by step (selector, pictures, slow "
        "track, then the network's size); 0 for no deadline",
        Rule(unit="ms", low=0.0, high=3.6e6, dynamic=True, top_level=True),
    )
    foreground_threads: int = setting(
        0,
        "CPU threads of a frame (the fast track); 0 for automatic: one, or, if the first frames "
        "are clearly faster with more, as many as other processes leave cores",
        Rule(low=0, high=256),
    )
    foreground_priority: str = setting(
        "normal",
        "normal: frames compete with other programs; realtime: while a frame is segmented, no "
        "program of normal priority takes its cores, where the system allows it (Linux' SCHED_RR "
        "with the lowest priority: needs root, CAP_SYS_NICE or an rtprio limit)",
        Rule(choices=("normal", "realtime")),
    )
    slow_track_threads: int = setting(
        1, "CPU threads of the slow track (Sh); 0 for all cores", Rule(low=0, high=256)
    )
    slow_track_priority: str = setting(
        "idle",
        "idle: Sh gives way to everything else (Linux' SCHED_IDLE, if there are at least two "
        "cores); normal: Sh competes, and frames leave it cores of its own",
        Rule(choices=("idle", "normal")),
    )

    def __post_init__(self) -> None:
        check(self)
