"""What ``lowlat-seg demo`` does, once its options are known and ROS 2 is there."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from rich.console import Console
from tqdm import tqdm

from lowlat_seg_ros.config import ConfigError, EngineConfig, name_of
from lowlat_seg_ros.frames import Frame
from lowlat_seg_ros.lab.baselines.stream import FullEngine
from lowlat_seg_ros.lab.data import dataset
from lowlat_seg_ros.lab.data.clip import Clip, load, one_drive
from lowlat_seg_ros.lab.data.sequence import DataError
from lowlat_seg_ros.lab.metrics import Accuracy, Latency, accuracy
from lowlat_seg_ros.lab.report import describe, write_json
from lowlat_seg_ros.labels import ClassTable
from lowlat_seg_ros.network import inference
from lowlat_seg_ros.network.checkpoint import DEFAULT_CHECKPOINT, Header, read_header
from lowlat_seg_ros.network.inference import resolve_device
from lowlat_seg_ros.ros.params import as_parameters
from lowlat_seg_ros.ros.start import RosError
from lowlat_seg_ros.tools.demo_figures import Storyboard, latency_chart, print_figures
from lowlat_seg_ros.tools.live import LiveRun, live_node
from lowlat_seg_ros.tools.pictures import VideoWriter

#: Latency and accuracy of the full network on each frame.
Full = tuple[Latency, Accuracy]


def run_demo(args: argparse.Namespace, config: EngineConfig) -> int:
    """Play, record, measure, write; the exit status, 1 if a frame is unaccounted for."""
    checkpoint, console = args.checkpoint or DEFAULT_CHECKPOINT, Console()
    header, log = read_header(checkpoint), args.out / "node.log"
    device = resolve_device(args.device)  # raises where there is no such device
    args.out.mkdir(parents=True, exist_ok=True)
    clip = _load_clip(args)
    if header.classes != clip.table.names:
        raise ConfigError(
            f"{checkpoint} knows the classes {', '.join(header.classes)}, but {clip.name} has "
            f"{', '.join(clip.table.names)}; masks can be scored only where they are the same"
        )
    run = _play(args, vars(config) | {"checkpoint": str(checkpoint.resolve())}, clip)
    if not run.answers:
        raise RosError(f"no mask came back; see what the node says in {log}")
    # In this process, now that the node is gone.
    segmenter, _ = inference.load(checkpoint, device, config.precision, config.runtime)
    full = _full_network(FullEngine(segmenter, config), clip, run)
    table = ClassTable(clip.table.name, header.classes, header.colours)
    _write_video(args.out / "overlay.mp4", clip, run, table, args.rate)
    _report(args, config, checkpoint, header, clip, run, full, console)
    if run.account.unaccounted:
        console.print(
            f"[bold red]{run.account.unaccounted} of {run.account.played} frames are unaccounted "
            f"for[/]; see {log}"
        )
        return 1
    return 0


def _bar(what: str, total: int) -> tqdm[Any]:
    return tqdm(desc=f"{what:<28}", total=total, unit="frame", disable=None)


def _load_clip(args: argparse.Namespace) -> Clip:
    name, sequence = one_drive(*dataset.chosen(args, args.rate))
    total = min(args.frames or len(sequence), len(sequence))
    with _bar(f"loading {name}", total) as bar:
        clip = load(name, sequence, args.frames, bar.update)
    if len(clip) < 2:
        raise DataError(f"{name} has {len(clip)} frames; a clip takes 2")
    return clip


def _play(args: argparse.Namespace, settings: dict[str, Any], clip: Clip) -> LiveRun:
    """The clip through a live node with ``settings``."""
    height, width = clip.size
    size = {"expected_height": height, "expected_width": width}
    parameters = as_parameters({**settings, "device": args.device, **size})
    with (
        live_node(parameters, args.out / "node.log") as node,
        _bar(f"playing at {args.rate:g} Hz over DDS", len(clip)) as bar,
    ):
        return node.play(clip.images, args.rate, bar.update)


def _full_network(engine: FullEngine, clip: Clip, run: LiveRun) -> Full:
    frames = [answer.index for answer in run.answers]
    engine.process(Frame(clip.images[0], 0))  # warms up, as the node does
    results = []
    with _bar("full network on every frame", len(frames)) as bar:
        for index in frames:
            results.append(engine.process(Frame(clip.images[index], index)))
            bar.update()
    masks = ((index, result.mask) for index, result in zip(frames, results, strict=True))
    scores = accuracy(clip.labels, masks, clip.table.names)
    return Latency.of([result.timing.latency_ms for result in results]), scores


def _write_video(path: Path, clip: Clip, run: LiveRun, table: ClassTable, rate_hz: float) -> None:
    board = Storyboard(len(clip), clip.size, table)
    by_index = {answer.index: answer for answer in run.answers}
    with (
        VideoWriter(path, board.size, rate_hz) as video,
        _bar("writing the video", len(clip)) as bar,
    ):
        for index, image in enumerate(clip.images):
            video.write(board.picture(index, image, by_index.get(index)))
            bar.update()


def _report(
    args: argparse.Namespace,
    config: EngineConfig,
    checkpoint: Path,
    header: Header,
    clip: Clip,
    run: LiveRun,
    full: Full,
    console: Console,
) -> None:
    (height, width), network = clip.size, name_of(header.network)
    title = f"{clip.name}, {width}x{height} at {run.played_hz:.1f} Hz, {network}"
    latencies = {
        "engine": Latency.of([answer.segmentation.timing.latency_ms for answer in run.answers]),
        "published": Latency.of([answer.published_ms for answer in run.answers]),
        "received": Latency.of([answer.received_ms for answer in run.answers]),
    }
    masks = [(answer.index, answer.segmentation.mask) for answer in run.answers]
    keys = run.counters.key_frames
    figures: dict[str, Any] = {
        "clip": {
            "name": clip.name,
            "frames": len(clip),
            "width": width,
            "height": height,
            "rate_hz": args.rate,
            "played_hz": run.played_hz,
        },
        "network": {
            "checkpoint": checkpoint.name, "name": network, "threshold": header.threshold,
        },
        "settings": config,
        "machine": describe(args.device),
        "latency_ms": latencies,
        "key_frames": {"count": keys, "share": keys / len(masks)},
        "accuracy": accuracy(clip.labels, masks, header.classes),
        "full_network": {"latency_ms": full[0], "accuracy": full[1]},
        "account": vars(run.account) | {"unaccounted": run.account.unaccounted},
        "counters": run.counters,
    }  # fmt: skip
    latency_chart(args.out / "latency.png", run.answers, len(clip), title)
    write_json(args.out / "summary.json", figures)
    print_figures(console, title, figures, run.account)
    names = ", ".join(path.name for path in sorted(args.out.iterdir()))
    console.print(f"Written to {args.out}: {names}")
    console.print("Your own pictures, video or camera: lowlat-seg segment INPUT --out DIR")
