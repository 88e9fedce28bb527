"""``lowlat-seg evaluate``: every method over the same labelled frames, in one run and one table."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from lowlat_seg_ros.arguments import changed, settings_from
from lowlat_seg_ros.config import ConfigError, EngineConfig
from lowlat_seg_ros.lab.evaluation import dataset
from lowlat_seg_ros.lab.evaluation.catalogue import catalogue, choose
from lowlat_seg_ros.lab.evaluation.options import check, configure

if TYPE_CHECKING:
    from lowlat_seg_ros.lab.evaluation.comparison import Comparison
    from lowlat_seg_ros.lab.evaluation.footage import Footage
    from lowlat_seg_ros.lab.evaluation.report import Facts
    from lowlat_seg_ros.network.checkpoint import Header


def run(args: argparse.Namespace) -> int:
    """Play, score, measure, write."""
    check(args)
    config = settings_from(args, EngineConfig)
    specs = choose(args.methods, catalogue(args.delay_frames))
    from rich.console import Console
    from tqdm import tqdm

    from lowlat_seg_ros.lab.evaluation import report
    from lowlat_seg_ros.lab.evaluation.comparison import compare
    from lowlat_seg_ros.lab.evaluation.methods import workshop
    from lowlat_seg_ros.lab.evaluation.streaming import measured
    from lowlat_seg_ros.lab.evaluation.summary import write_json
    from lowlat_seg_ros.network.checkpoint import DEFAULT_CHECKPOINT, load
    from lowlat_seg_ros.network.inference import resolve_device

    load_average = os.getloadavg()[0]
    path = args.checkpoint or DEFAULT_CHECKPOINT
    segmenter, header = load(path, resolve_device(args.device))
    if args.high_scale is not None:
        segmenter.read_at(args.high_scale)
    footage = _footage(args)
    _check_classes(path, header, footage)
    with tqdm(total=len(footage), unit="frame", desc="low-level features", leave=False) as bar:
        shop = workshop(segmenter, header, config, footage, specs, args.baselines, bar.update)
    facts = _facts(args, path, header, footage, config, load_average)

    def keep(done: Comparison) -> None:
        if args.json is not None:
            args.json.parent.mkdir(parents=True, exist_ok=True)
            write_json(args.json, report.as_json(facts, done))

    cost = measured(args.speed) if args.streaming else None
    pictures = args.out is not None
    done = compare(shop, specs, pictures=pictures, streaming=cost, after_each=keep)
    console = Console()
    report.print_report(console, facts, done)
    if args.out is not None:
        console.print(_written(args.out, facts, footage, done), soft_wrap=True)
    return 0


def _written(out: Path, facts: Facts, footage: Footage, done: Comparison) -> str:
    """Write page and charts; says where."""
    from lowlat_seg_ros.lab.evaluation.charts import draw
    from lowlat_seg_ros.lab.evaluation.page import write_page

    out.mkdir(parents=True, exist_ok=True)
    charts = draw(out / "figures", footage, done) if done.results else []
    return f"Written: {write_page(out, facts, done, charts)}, {len(charts)} charts beside it"


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
    from lowlat_seg_ros.lab.evaluation import machine, report
    from lowlat_seg_ros.network import checkpoint
    from lowlat_seg_ros.network.inference import precision_of, resolve_device

    precision = precision_of(config.precision, resolve_device(args.device))
    return report.facts_of(
        footage,
        command=" ".join(["lowlat-seg evaluate", *_words(args)]),
        checkpoint=path.name,
        sha256=checkpoint.sha256(path),
        provenance=header.provenance,
        precision=str(precision).removeprefix("torch."),
        fast_track_threads=foreground_threads(config),
        speed=args.speed if args.streaming else None,
        load_average=load_average,
        machine=machine.describe(args.device),
    )


def _words(args: argparse.Namespace) -> list[str]:
    """The options that shape the figures, without the places of files on this machine."""
    shown = {**vars(args), "json": None, "out": None}
    if args.root is not None:
        shown["root"] = "DIR"
    return changed(argparse.Namespace(**shown), configure)


def _footage(args: argparse.Namespace) -> Footage:
    from tqdm import tqdm

    from lowlat_seg_ros.lab.evaluation.footage import load

    name, sequence = dataset.chosen(args, args.rate)
    with tqdm(total=min(args.frames or len(sequence), len(sequence)), unit="frame") as bar:
        bar.set_description("loading")
        return load(name, sequence, args.frames, bar.update)
