"""A bag's images through the node's engine, without ROS, into another bag; or those of many."""

from __future__ import annotations

import argparse
import dataclasses
from collections import Counter
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

import lowlat_seg_ros
from lowlat_seg_ros.arguments import settings_from
from lowlat_seg_ros.config import ConfigError, EngineConfig
from lowlat_seg_ros.engine import frame_cost
from lowlat_seg_ros.engine.engine import Engine
from lowlat_seg_ros.images import ImageError, to_rgb
from lowlat_seg_ros.lab.data.sequence import DataError
from lowlat_seg_ros.lab.evaluation.summary import describe
from lowlat_seg_ros.messages import COMPRESSED, IMAGE
from lowlat_seg_ros.network import inference
from lowlat_seg_ros.network.checkpoint import DEFAULT_CHECKPOINT, Header, sha256
from lowlat_seg_ros.network.inference import resolve_device
from lowlat_seg_ros.network.segmenter import Segmenter
from lowlat_seg_ros.tools.bag.messages import CLOCK
from lowlat_seg_ros.tools.bag.offline import Pace, RealTime, VirtualTime, replay
from lowlat_seg_ros.tools.bag.storage import BagReader, BagWriter
from lowlat_seg_ros.tools.bag.topics import Topics

#: Types of the messages that are copied in any case: what one looks at masks with.
COPIED = (IMAGE, COMPRESSED, CLOCK, "sensor_msgs/msg/CameraInfo", "tf2_msgs/msg/TFMessage")


@dataclass(frozen=True)
class Segmented:
    """What became of the images of one bag.

    ``complaints``: why images gave no mask, and how many for each reason.
    """

    ledger: dict[str, int]
    counters: dict[str, Any]
    complaints: dict[str, int]


def replay_offline(args: argparse.Namespace) -> int:
    """Segment and write; the exit status, 1 if no image could be segmented."""
    settings_from(args, EngineConfig)  # what is wrong is said at once
    _check(args)
    if len(args.bags) > 1 or args.ray is not None:
        from lowlat_seg_ros.tools.bag.many import segment_all

        return segment_all(args)
    done = segment_bag(args, args.bags[0], args.out)
    for complaint, count in sorted(done.complaints.items()):
        print(f"No mask for {count} images: {complaint}")
    counts = ", ".join(f"{name} {n}" for name, n in done.ledger.items() if name != "in_flight")
    print(f"Images: {counts}\nWritten to {args.out}")
    return 0 if done.ledger["published"] else 1


def segment_bag(args: argparse.Namespace, bag: Path, out_path: Path) -> Segmented:
    """Segment ``bag`` into the new bag ``out_path`` as ``args`` says.

    Raises ``DataError``, ``ConfigError`` and ``CheckpointError`` for what a user can have got
    wrong; then nothing is left at ``out_path``.
    """
    config = settings_from(args, EngineConfig)
    topics, path = Topics.of(args), args.checkpoint or DEFAULT_CHECKPOINT
    with BagReader(bag) as source:
        source.require(topics.image, (IMAGE, COMPRESSED), "--image-topic")
        for topic in (topics.mask, topics.report, topics.statistics, topics.confidence):
            if topic in source.topics:
                raise DataError(f"{source.path} has masks already, on {topic}; give a bag without")
        copied = copied_topics(source, args.copy)
        segmenter, header = inference.load(path, resolve_device(args.device), config.precision)
        engine, pace = _engine(args, segmenter, header, config, source, topics)
        count = source.counts[topics.image]
        with (
            closing(engine),
            BagWriter(out_path, args.storage) as out,
            tqdm(total=count, unit="frame", desc=bag.name, disable=None) as bar,
        ):
            outcome = replay(source, out, engine, pace, topics, bar.update)
            for raw in source.raw(copied):  # afterwards, as it takes time
                out.copy(raw)
            done = Segmented(
                dataclasses.asdict(outcome.ledger),
                dataclasses.asdict(engine.counters),
                dict(Counter(outcome.complaints)),
            )
            out.facts = source.facts | _facts(args, path, header, config)
            out.facts |= {"ledger": done.ledger, "counters": done.counters}
    return done


def copied_topics(source: BagReader, named: list[str]) -> list[str]:
    """Topics to copy: those of the types in :data:`COPIED`, and those ``named`` by ``--copy``.

    DataError for a named topic that is not there, or whose type nobody defines; where all are to
    be copied those are left out, with a word.
    """
    chosen = {topic for topic, kind in source.topics.items() if kind in COPIED}
    undefined = [topic for topic in sorted(source.topics) if not source.defines(topic)]
    for topic in named:
        if topic == "all":
            chosen |= source.topics.keys() - set(undefined)
            for left_out in undefined:
                print(
                    f"Left out, as its type is not defined: {left_out} ({source.topics[left_out]})"
                )
        elif topic not in source.topics:
            raise DataError(
                f"--copy is {topic}, but {source.path} has no such topic; it has "
                f"{', '.join(sorted(source.topics))}"
            )
        elif topic in undefined:
            raise DataError(
                f"--copy is {topic}, but its type {source.topics[topic]} is defined neither in "
                f"{source.path} nor here; leave it out, or turn the bag into mcap where the type's "
                "package is installed (ros2 bag convert), which stores definitions"
            )
        else:
            chosen.add(topic)
    return sorted(chosen)


def _engine(
    args: argparse.Namespace,
    segmenter: Segmenter,
    header: Header,
    config: EngineConfig,
    source: BagReader,
    topics: Topics,
) -> tuple[Engine, Pace]:
    """The engine, and the time that it runs in."""
    if args.time == "virtual":
        pace = VirtualTime(args.latency_ms)
        engine = Engine.deterministic(
            segmenter, config, threshold=header.threshold, delay_frames=args.delay_frames
        )
        return engine, pace
    first = next(source.raw([topics.image]), None)
    if first is not None:
        # Every stage runs once at the images' size, as in the node before it subscribes.
        with suppress(ImageError):  # it is counted when it is played
            frame_cost.measure(segmenter, config, to_rgb(source.decode(first)).shape[:2])
    return Engine(segmenter, config, threshold=header.threshold), RealTime()


def _facts(
    args: argparse.Namespace, path: Path, header: Header, config: EngineConfig
) -> dict[str, Any]:
    """How the masks were made, for the bag's metadata."""
    virtual = {"delay_frames": args.delay_frames, "latency_ms": args.latency_ms}
    return {
        "version": lowlat_seg_ros.__version__,
        "checkpoint": path.name,
        "sha256": sha256(path),
        "mask_classes": list(header.classes),
        "mask_colours": [list(colour) for colour in header.colours],
        "engine": dataclasses.asdict(config),
        "time": {"kind": args.time} | (virtual if args.time == "virtual" else {}),
        "machine": dataclasses.asdict(describe(args.device)),
    }


def _check(args: argparse.Namespace) -> None:
    if args.delay_frames < 0:
        raise ConfigError(f"--delay-frames is {args.delay_frames}; it must be 0 or more")
    if args.time == "virtual":
        VirtualTime(args.latency_ms)  # ConfigError for a time that cannot be
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
