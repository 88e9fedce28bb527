"""``lowlat-seg evaluate``: every method over the same labelled frames, in one run and one table."""

from __future__ import annotations

import argparse
import hashlib
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING

from lowlat_seg_ros.arguments import add_settings, settings_from, size
from lowlat_seg_ros.config import ConfigError, EngineConfig
from lowlat_seg_ros.evaluation.catalogue import DELAYS, catalogue, choose

if TYPE_CHECKING:
    from lowlat_seg_ros.evaluation.footage import Footage
    from lowlat_seg_ros.evaluation.report import Facts
    from lowlat_seg_ros.network.checkpoint import Header

EXAMPLES = """\
examples:
  lowlat-seg evaluate                                   all methods on a rendered drive
  lowlat-seg evaluate --dataset camvid --root DIR       on CamVid's labelled clip (split val)
  lowlat-seg evaluate --methods 'full*,adaptive,adaptive_low_latency*'
  lowlat-seg evaluate --checkpoint FILE --json figures.json --out evaluation

methods, all on one checkpoint; those marked * have weights of their own, from --baselines:
{methods}

Key frames of the schedules threshold and adaptive are taken where the change exceeds a threshold
that gives the wanted mean interval on these frames. Sh of adaptive_low_latency takes a given number
of frames, so that its masks do not depend on the machine. All frames are held in memory.

written to --out: latency_accuracy.png, schedules.png, deviation.png, distance.png, grid.png, those
that the chosen methods allow (the paper's Figs. 1, 5, 3 and 6)
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    specs = catalogue(DEFAULT_DELAY)
    lines = "\n".join(f"  {spec.name + '*' * spec.weights:26}{spec.help}" for spec in specs)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EXAMPLES.format(methods=lines)
    parser.add_argument(
        "--dataset",
        choices=("drive", "camvid", "cityscapes", "folder"),
        default="drive",
        help="a rendered drive, CamVid, Cityscapes' snippets, or a folder with images, labels and "
        "classes.yaml (default %(default)s)",
    )
    parser.add_argument("--root", type=Path, metavar="DIR", help="the data set's folder")
    parser.add_argument(
        "--split",
        default="val",
        help="of CamVid, where only val is continuous video, or Cityscapes (default %(default)s)",
    )
    parser.add_argument(
        "--methods", default="all", help="all, or names with * and ?, comma-separated (all)"
    )
    parser.add_argument(
        "--frames",
        type=int,
        default=0,
        metavar="N",
        help="first frames of the data, 0 for all; of a drive 50 are rendered",
    )
    parser.add_argument(
        "--size", type=size, metavar="HxW", help="of the images (360x480, or the data set's own)"
    )
    parser.add_argument("--seed", type=int, default=1, help="of the drive (default %(default)s)")
    parser.add_argument(
        "--rate", type=float, default=15.0, metavar="HZ", help="of drive or folder (%(default)s)"
    )
    parser.add_argument(
        "--delay-frames",
        type=int,
        default=DEFAULT_DELAY,
        metavar="N",
        help="frames that Sh takes in adaptive_low_latency (default %(default)s)",
    )
    parser.add_argument(
        "--checkpoint", type=Path, metavar="FILE", help="weights (default: those of the package)"
    )
    parser.add_argument(
        "--baselines",
        type=Path,
        metavar="DIR",
        help="weights of the methods that have their own, from 'lowlat-seg train baseline'",
    )
    parser.add_argument(
        "--device", default="auto", help="auto, cpu, cuda or cuda:N (default %(default)s)"
    )
    parser.add_argument(
        "--streaming",
        action="store_true",
        help="also score the newest mask that is out at each instant, at the latencies measured",
    )
    parser.add_argument(
        "--speed",
        type=float,
        default=1.0,
        metavar="X",
        help="for --streaming, a machine X times as fast as this one (default %(default)s)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures as JSON")
    parser.add_argument("--out", type=Path, metavar="DIR", help="draw charts into this folder")
    add_settings(parser, EngineConfig)


#: Frames that Sh takes unless told otherwise: about a quarter of a second at CamVid's 15 Hz.
DEFAULT_DELAY = DELAYS[2]


def run(args: argparse.Namespace) -> int:
    """Play, score, measure, write."""
    _check(args)
    config = settings_from(args, EngineConfig)
    specs = choose(args.methods, catalogue(args.delay_frames))
    from rich.console import Console
    from tqdm import tqdm

    from lowlat_seg_ros.evaluation import report
    from lowlat_seg_ros.evaluation.comparison import compare, draw
    from lowlat_seg_ros.evaluation.methods import workshop
    from lowlat_seg_ros.evaluation.streaming import measured
    from lowlat_seg_ros.evaluation.summary import write_json
    from lowlat_seg_ros.network.checkpoint import DEFAULT_CHECKPOINT, load
    from lowlat_seg_ros.network.device import resolve_device

    load_average = os.getloadavg()[0]
    path = args.checkpoint or DEFAULT_CHECKPOINT
    segmenter, header = load(path, resolve_device(args.device))
    footage = _footage(args)
    _check_classes(path, header, footage)
    with tqdm(total=len(footage), unit="frame", desc="low-level features", leave=False) as bar:
        shop = workshop(segmenter, header, config, footage, specs, args.baselines, bar.update)
    cost = measured(args.speed) if args.streaming else None
    done = compare(shop, specs, pictures=args.out is not None, streaming=cost)
    facts = _facts(args, path, header, footage, config, load_average)
    console = Console()
    report.print_table(console, facts, done)
    if args.json is not None:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        write_json(args.json, report.as_json(facts, done))
    if args.out is not None and done.results:
        for chart in draw(args.out, footage, specs, done):
            console.print(chart)
    return 0


def _check_classes(path: Path, header: Header, footage: Footage) -> None:
    if len(footage.table) != header.network.num_classes:
        raise ConfigError(
            f"{path} has {header.network.num_classes} classes and {footage.name} "
            f"{len(footage.table)}; give a checkpoint trained for these classes"
        )


def _facts(
    args: argparse.Namespace,
    path: Path,
    header: Header,
    footage: Footage,
    config: EngineConfig,
    load_average: float,
) -> Facts:
    from lowlat_seg_ros.engine.device import foreground_threads
    from lowlat_seg_ros.evaluation import machine, report

    return report.facts_of(
        footage,
        checkpoint=path.name,
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        provenance=header.provenance,
        fast_track_threads=foreground_threads(config),
        speed=args.speed if args.streaming else None,
        load_average=load_average,
        machine=machine.describe(args.device),
    )


def _footage(args: argparse.Namespace) -> Footage:
    from tqdm import tqdm

    from lowlat_seg_ros.evaluation import clip
    from lowlat_seg_ros.evaluation.footage import load

    if args.dataset == "camvid":
        name, sequence = clip.camvid(args.root, args.split, args.size)
    elif args.dataset == "cityscapes":
        name, sequence = clip.cityscapes(args.root, args.split, args.size)
    elif args.dataset == "folder":
        name, sequence = clip.folder(args.root, args.rate)
    else:
        name, sequence = clip.rendered(args.seed, args.frames or 50, args.rate, args.size)
    with tqdm(total=min(args.frames or len(sequence), len(sequence)), unit="frame") as bar:
        bar.set_description("loading")
        return load(name, sequence, args.frames, bar.update)


def _check(args: argparse.Namespace) -> None:
    if args.dataset != "drive" and args.root is None:
        raise ConfigError(f"--dataset {args.dataset} needs --root, the folder that holds it")
    if args.dataset == "folder" and args.size is not None:
        raise ConfigError("--size does not resize a folder's images; give --inference-height")
    if args.frames < 0:
        raise ConfigError(f"--frames is {args.frames}; give a number, or 0 for all")
    if args.delay_frames < 0:
        raise ConfigError(f"--delay-frames is {args.delay_frames}; it must be 0 or more")
    if args.baselines is not None and not args.baselines.is_dir():
        raise ConfigError(f"--baselines is {args.baselines}, which is no folder; check the path")
    if not 0.0 < args.speed < math.inf:
        raise ConfigError(f"--speed is {args.speed}; it must be above 0, 1 for this machine")
    if not 0.0 < args.rate <= 1000.0:
        raise ConfigError(f"--rate is {args.rate}; it must lie in (0, 1000] Hz")
