"""``lowlat-seg bag run``: a bag's images through the node's engine, into another bag."""

from __future__ import annotations

import argparse
from contextlib import closing, suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lowlat_seg_ros.arguments import add_network, add_settings, settings_from
from lowlat_seg_ros.config import ConfigError, EngineConfig
from lowlat_seg_ros.tools.bag import options, topics

if TYPE_CHECKING:
    from lowlat_seg_ros.engine.engine import Engine
    from lowlat_seg_ros.network.checkpoint import Header
    from lowlat_seg_ros.network.segmenter import Segmenter
    from lowlat_seg_ros.tools.bag.pace import Pace
    from lowlat_seg_ros.tools.bag.storage import BagReader
    from lowlat_seg_ros.tools.bag.topics import Topics

#: Frames that Sh takes in virtual time: about a quarter of a second at 15 Hz.
DELAY_FRAMES = 4

EXAMPLES = """\
examples:
  lowlat-seg bag run drive --out masks                     every image, masks the same on each run
  lowlat-seg bag run drive --out masks --latency-ms 120    as on a machine that takes so long
  lowlat-seg bag run drive --out masks --time real         as fast as this machine is, at the
                                                           bag's own pace, as the node would do

time:
  virtual   Sh takes --delay-frames frames and each mask --latency-ms; nothing depends on how fast
            this machine is, but the times of the stages, which are measured
  real      images come when they were recorded; Sh runs in the background; while the engine is
            busy only the newest image waits, and those that it replaces are counted

written to OUT: all of IN's messages and, for each image segmented, a mask (mono8 class ids), its
confidence (mono8, 255 for certain) and a FrameReport, stamped as the image and recorded when the
mask was published; how they were made stands in metadata.yaml
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EXAMPLES
    parser.add_argument("bag", type=Path, metavar="IN", help="bag with a camera's images")
    parser.add_argument("--out", type=Path, required=True, metavar="BAG", help="folder to make")
    parser.add_argument(
        "--time", choices=("virtual", "real"), default="virtual", help="(default %(default)s)"
    )
    parser.add_argument(
        "--delay-frames", type=int, default=DELAY_FRAMES, metavar="N",
        help="frames that Sh takes in virtual time (default %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--latency-ms", type=float, default=0.0, metavar="MS",
        help="time that a mask takes in virtual time (default %(default)s: no image is superseded)",
    )  # fmt: skip
    add_network(parser)
    options.storage(parser)
    topics.configure(parser, "image")
    add_settings(parser, EngineConfig)


def run(args: argparse.Namespace) -> int:
    """Segment and write; 1 if no image could be segmented."""
    config = settings_from(args, EngineConfig)
    _check(args)
    from lowlat_seg_ros.network import inference
    from lowlat_seg_ros.network.checkpoint import DEFAULT_CHECKPOINT
    from lowlat_seg_ros.network.inference import resolve_device
    from lowlat_seg_ros.tools.bag.storage import BagReader

    names, path = topics.chosen(args), args.checkpoint or DEFAULT_CHECKPOINT
    with BagReader(args.bag) as source:
        _check_topics(source, names)
        segmenter, header = inference.load(path, resolve_device(args.device), config.precision)
        engine, pace = _engine(args, segmenter, header, config, source, names)
        facts = _facts(args, path, header, config)
        with closing(engine):
            masks = _play(args, source, names, engine, pace, facts)
    return 0 if masks else 1


def _play(
    args: argparse.Namespace,
    source: BagReader,
    names: Topics,
    engine: Engine,
    pace: Pace,
    facts: dict[str, Any],
) -> int:
    """Write the bag; returns the number of masks in it."""
    from lowlat_seg_ros.tools.bag.offline import replay
    from lowlat_seg_ros.tools.bag.storage import BagWriter

    with BagWriter(args.out, args.storage) as out, _bar(args, source, names) as bar:
        outcome = replay(source, out, engine, pace, names, bar.update)
        for raw in source.raw():  # afterwards, as it takes time
            out.copy(raw)
        ledger = asdict(outcome.ledger)
        out.facts = source.facts | facts | {"ledger": ledger, "counters": asdict(engine.counters)}
    for complaint in sorted(set(outcome.complaints)):
        print(f"No mask for {outcome.complaints.count(complaint)} images: {complaint}")
    counts = ", ".join(f"{name} {count}" for name, count in ledger.items() if name != "in_flight")
    print(f"Images: {counts}\nWritten to {args.out}")
    return outcome.ledger.published


def _bar(args: argparse.Namespace, source: BagReader, names: Topics) -> Any:
    from tqdm import tqdm

    return tqdm(total=source.counts[names.image], unit="frame", desc=args.bag.name, disable=None)


def _engine(
    args: argparse.Namespace,
    segmenter: Segmenter,
    header: Header,
    config: EngineConfig,
    source: BagReader,
    names: Topics,
) -> tuple[Engine, Pace]:
    """The engine, and the time that it runs in."""
    from lowlat_seg_ros.engine.engine import Engine
    from lowlat_seg_ros.tools.bag.pace import RealTime, VirtualTime

    if args.time == "virtual":
        pace = VirtualTime(args.latency_ms)
        engine = Engine.deterministic(
            segmenter, config, threshold=header.threshold, delay_frames=args.delay_frames
        )
        return engine, pace
    _warm_up(segmenter, config, source, names)
    return Engine(segmenter, config, threshold=header.threshold), RealTime()


def _warm_up(segmenter: Segmenter, config: EngineConfig, source: BagReader, names: Topics) -> None:
    """Run every stage at the images' size, as the node does before it subscribes."""
    from lowlat_seg_ros.engine import frame_cost
    from lowlat_seg_ros.images import ImageError, to_rgb

    first = next(source.raw([names.image]), None)
    if first is not None:
        with suppress(ImageError):  # it will be told when its turn comes
            frame_cost.measure(segmenter, config, to_rgb(source.decode(first)).shape[:2])


def _check_topics(source: BagReader, names: Topics) -> None:
    from lowlat_seg_ros.lab.data.sequence import DataError
    from lowlat_seg_ros.messages import COMPRESSED, IMAGE

    source.require(names.image, (IMAGE, COMPRESSED), "--image-topic")
    for topic in (names.mask, names.report, names.confidence):
        if topic in source.topics:
            raise DataError(f"{source.path} has masks already, on {topic}; give a bag without")


def _facts(
    args: argparse.Namespace, path: Path, header: Header, config: EngineConfig
) -> dict[str, Any]:
    """How the masks were made, for the bag's metadata."""
    import lowlat_seg_ros
    from lowlat_seg_ros.lab.evaluation.summary import describe
    from lowlat_seg_ros.network.checkpoint import sha256

    virtual = {"delay_frames": args.delay_frames, "latency_ms": args.latency_ms}
    return {
        "version": lowlat_seg_ros.__version__,
        "checkpoint": path.name,
        "sha256": sha256(path),
        "mask_classes": list(header.classes),
        "mask_colours": [list(colour) for colour in header.colours],
        "engine": asdict(config),
        "time": {"kind": args.time} | (virtual if args.time == "virtual" else {}),
        "machine": asdict(describe(args.device)),
    }


def _check(args: argparse.Namespace) -> None:
    if args.delay_frames < 0:
        raise ConfigError(f"--delay-frames is {args.delay_frames}; it must be 0 or more")
    if args.time == "virtual" and args.max_latency_ms > 0:
        raise ConfigError(
            f"--max-latency-ms is {args.max_latency_ms}, but in virtual time masks must not depend "
            "on this machine's speed; leave it at 0, or give --time real"
        )
    if args.time == "real" and args.latency_ms > 0:
        raise ConfigError(
            f"--latency-ms is {args.latency_ms}, but real time takes what it takes; leave it out, "
            "or give --time virtual"
        )
