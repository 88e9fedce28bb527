"""``lowlat-seg evaluate``: every method over the same labelled frames, in one run and one table."""

from __future__ import annotations

import argparse
import dataclasses
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lowlat_seg_ros.config import ConfigError, EngineConfig
from lowlat_seg_ros.lab.arguments import (
    HIGH_SCALE,
    add_network,
    add_settings,
    changed,
    settings_from,
)
from lowlat_seg_ros.lab.data import dataset
from lowlat_seg_ros.lab.evaluation.catalogue import DELAYS, Spec, catalogue, choose

if TYPE_CHECKING:
    from lowlat_seg_ros.lab.data.clip import Clip
    from lowlat_seg_ros.lab.evaluation.comparison import Comparison

#: Default number of frames that Sh takes: about a quarter of a second at CamVid's 15 Hz.
DEFAULT_DELAY = DELAYS[2]

EXAMPLES = """\
examples:
  lowlat-seg evaluate                                   all methods on a rendered drive
  lowlat-seg evaluate --dataset camvid --root DIR       on CamVid's labelled clip (split val)
  lowlat-seg evaluate --methods 'full*,adaptive,adaptive_low_latency*'
  lowlat-seg evaluate --checkpoint FILE --json figures.json --out evaluation
  lowlat-seg evaluate --foreground-threads 1            every method on one CPU thread

methods, all on one checkpoint; those marked * need weights of their own, from --baselines:
{methods}

In schedule_threshold_N and schedule_adaptive_N a frame is a key frame if the change, or the
selector's deviation, is above a threshold, which is chosen so that the mean interval on these
frames is N. In adaptive_low_latency Sh takes a fixed number of frames, so that the masks do not
depend on the machine. All frames are held in memory.

threads: every method uses all cores, or N with --foreground-threads N. With --slow-track-priority
normal adaptive_low_latency leaves cores to Sh (--slow-track-threads). The column thr and the key
"threads" give the number of each method; the chart of latency marks those that used fewer.
Propagation always uses one thread.

written to --json, after each method: scores in [0, 1], times in ms, IoU by class. "complete" is
false until the last method is done.

written to --out: results.md with all tables, and in figures/ latency_accuracy.png, schedules.png,
deviation.png, distance.png, grid.png, as far as the chosen methods allow (the paper's Figs. 1, 5, 3
and 6)
"""


def configure(parser: argparse.ArgumentParser) -> None:
    specs = catalogue(DEFAULT_DELAY)
    lines = "\n".join(f"  {spec.name + '*' * spec.weights:26}{spec.help}" for spec in specs)
    parser.epilog = EXAMPLES.format(methods=lines)
    dataset.configure(parser)
    add = parser.add_argument
    # fmt: off
    add("--methods", default="all",
        help="all, or names with * and ?, comma-separated (default %(default)s)")
    add("--rate", type=float, default=dataset.RATE_HZ, metavar="HZ",
        help="frame rate of a drive or folder (default %(default)s)")
    add("--delay-frames", type=int, default=DEFAULT_DELAY, metavar="N",
        help="frames that Sh takes in adaptive_low_latency (default %(default)s)")
    add_network(parser)
    add("--high-scale", type=float, metavar="S", help=HIGH_SCALE)
    add("--baselines", type=Path, metavar="DIR",
        help="folder with the weights of methods marked *, from 'lowlat-seg train baseline'")
    add("--streaming", action="store_true",
        help="also score the newest mask that is out when each frame comes, with the latencies "
        "measured")
    add("--speed", type=float, default=1.0, metavar="X",
        help="for --streaming: as on a machine X times as fast as this one (default %(default)s)")
    add("--json", type=Path, metavar="FILE", help="write the figures as JSON")
    add("--out", type=Path, metavar="DIR",
        help="write a page with tables and charts to this folder")
    add_settings(parser, EngineConfig, inference_height=0)
    # fmt: on


def check(args: argparse.Namespace) -> None:
    """Raise ``ConfigError`` for options that contradict each other or make no sense."""
    dataset.check(args)
    if args.max_latency_ms > 0:
        raise ConfigError(
            f"--max-latency-ms is {args.max_latency_ms}, but evaluated masks must not depend on "
            "this machine's speed; leave it at 0"
        )
    if args.confidence_threshold > 0:
        raise ConfigError(
            f"--confidence-threshold is {args.confidence_threshold}, but the compared methods "
            "label every pixel; leave it at 0"
        )
    if args.delay_frames < 0:
        raise ConfigError(f"--delay-frames is {args.delay_frames}; it must be 0 or more")
    if args.baselines is not None and not args.baselines.is_dir():
        raise ConfigError(f"--baselines is {args.baselines}, which is no folder; check the path")
    if not 0.0 < args.speed < math.inf:
        raise ConfigError(f"--speed is {args.speed}; it must be above 0, 1 for this machine")


def run(args: argparse.Namespace) -> int:
    """Measure the methods, and write what they achieved."""
    check(args)
    config = settings_from(args, EngineConfig)
    return _compare(args, config, choose(args.methods, catalogue(args.delay_frames)))


def _compare(args: argparse.Namespace, config: EngineConfig, specs: list[Spec]) -> int:
    # Imported late: torch is slow to load, and --help needs none of this.
    from rich.console import Console
    from tqdm import tqdm

    from lowlat_seg_ros.engine.cpu_threads import foreground_threads
    from lowlat_seg_ros.engine.runner import format_name
    from lowlat_seg_ros.lab.evaluation import report
    from lowlat_seg_ros.lab.evaluation.charts import draw
    from lowlat_seg_ros.lab.evaluation.comparison import compare, measured
    from lowlat_seg_ros.lab.evaluation.methods import factory_for
    from lowlat_seg_ros.lab.report import describe, write_json
    from lowlat_seg_ros.network import checkpoint
    from lowlat_seg_ros.network.inference import resolve_device

    load_average = os.getloadavg()[0]
    path = args.checkpoint or checkpoint.DEFAULT_CHECKPOINT
    segmenter, header = checkpoint.load(path, resolve_device(args.device))
    if args.high_scale is not None:
        segmenter.read_at(args.high_scale)
    if config.inference_height < 0:  # all methods are compared at one size
        config = dataclasses.replace(config, inference_height=header.trained_height)
    clip = _load(args)
    if len(clip.table) != header.network.num_classes:
        raise ConfigError(
            f"{path} has {header.network.num_classes} classes and {clip.name} "
            f"{len(clip.table)}; give a checkpoint trained for these classes"
        )
    with tqdm(total=len(clip), unit="frame", desc="low-level features", leave=False) as bar:
        factory = factory_for(specs, segmenter, header, config, clip, args.baselines, bar.update)

    facts = report.Facts(
        **_facts(args, clip),
        checkpoint=path.name,
        sha256=checkpoint.sha256(path),
        provenance=header.provenance,
        precision=format_name(segmenter, config.runtime),
        fast_track_threads=foreground_threads(config),
        load_average=load_average,
        machine=describe(args.device),
    )

    def save(done: Comparison) -> None:
        if args.json is not None:
            args.json.parent.mkdir(parents=True, exist_ok=True)
            write_json(args.json, report.as_json(facts, done))

    cost = measured(args.speed) if args.streaming else None
    pictures = args.out is not None
    done = compare(factory, specs, clip, pictures=pictures, streaming=cost, after_each=save)
    console = Console()
    report.print_report(console, facts, done)
    if args.out is not None:
        args.out.mkdir(parents=True, exist_ok=True)
        charts = draw(args.out / "figures", clip, done) if done.results else {}
        page = report.write_page(args.out, facts, done, charts)
        console.print(f"Written: {page}, {len(charts)} charts beside it", soft_wrap=True)
    return 0


def _load(args: argparse.Namespace) -> Clip:
    from tqdm import tqdm

    from lowlat_seg_ros.lab.data.clip import load

    name, sequence = dataset.chosen(args, args.rate)
    count = min(args.frames or len(sequence), len(sequence))
    with tqdm(total=count, unit="frame", desc="loading") as bar:
        return load(name, sequence, args.frames, bar.update)


def _facts(args: argparse.Namespace, clip: Clip) -> dict[str, Any]:
    """Those of :class:`~.report.Facts` that options and data say."""
    from lowlat_seg_ros.lab.evaluation.report import CLOSE_TO_THE_CLIP

    # The options that shape the figures, without the places of files on this machine.
    options = {**vars(args), "json": None, "out": None} | ({"root": "DIR"} if args.root else {})
    words = changed(argparse.Namespace(**options), configure)
    return {
        "dataset": clip.name,
        "classes": clip.table.names,
        "frames": len(clip),
        "size": clip.size,
        "rate_hz": clip.rate_hz,
        "command": " ".join(["lowlat-seg evaluate", *words]),
        "speed": args.speed if args.streaming else None,
        "note": CLOSE_TO_THE_CLIP if clip.name == "CamVid val" else "",
    }
