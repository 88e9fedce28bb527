"""What ``lowlat-seg demo`` does, once its options are known and ROS 2 is there."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from lowlat_seg_ros.config import ConfigError, EngineConfig, name_of
from lowlat_seg_ros.frames import Frame
from lowlat_seg_ros.lab.baselines.full import FullEngine
from lowlat_seg_ros.lab.evaluation import clip as clips
from lowlat_seg_ros.lab.evaluation.clip import Clip
from lowlat_seg_ros.lab.evaluation.machine import describe
from lowlat_seg_ros.lab.evaluation.plots import latency_chart
from lowlat_seg_ros.lab.evaluation.summary import (
    Accuracy,
    Latency,
    Summary,
    accuracy,
    summarise,
    write_json,
)
from lowlat_seg_ros.lab.evaluation.tables import print_summary
from lowlat_seg_ros.lab.evaluation.video import Storyboard, VideoWriter
from lowlat_seg_ros.labels import ClassTable
from lowlat_seg_ros.network import inference
from lowlat_seg_ros.network.checkpoint import DEFAULT_CHECKPOINT, Header, read_header
from lowlat_seg_ros.network.device import resolve_device
from lowlat_seg_ros.ros.environment import RosError
from lowlat_seg_ros.tools.live import LiveRun, live_node

#: Of the full network on each frame.
Full = tuple[Latency, Accuracy]


@dataclass(frozen=True)
class _Job:
    """What is asked for: the command line, the engine's settings in it, and the weights."""

    args: argparse.Namespace
    config: EngineConfig
    checkpoint: Path
    header: Header


def run_demo(args: argparse.Namespace, config: EngineConfig) -> int:
    """Play, record, measure, write; the exit status, 1 if a frame is unaccounted for."""
    checkpoint, console = args.checkpoint or DEFAULT_CHECKPOINT, Console()
    job = _Job(args, config, checkpoint, read_header(checkpoint))
    resolve_device(args.device)
    args.out.mkdir(parents=True, exist_ok=True)
    with _progress(console) as progress:
        clip = _load_clip(args, progress)
        _check_classes(clip, job)
        run = _play(clip, job, progress)
        if not run.answers:
            raise RosError(f"no mask came back; see what the node says in {args.out / 'node.log'}")
        full = None if args.no_full else _full_network(clip, run, job, progress)
        _write_video(clip, run, job, progress)
    _report(job, clip, run, full, console)
    return _verdict(job, run, console)


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description:<32}"), BarColumn(), MofNCompleteColumn(),
        TimeElapsedColumn(), TextColumn("{task.fields[note]}"), console=console,
    )  # fmt: skip


def _load_clip(args: argparse.Namespace, progress: Progress) -> Clip:
    if args.dataset == "camvid":
        name, sequence = clips.camvid(args.root, args.split, args.size)
    else:
        name, sequence = clips.rendered(args.seed, args.frames, args.rate, args.size)
    total = min(args.frames, len(sequence))
    task = progress.add_task(f"loading {name}", total=total, note="")
    clip = clips.load(name, sequence, args.frames, lambda n: progress.update(task, completed=n))
    progress.update(task, total=len(clip.images))
    return clip


def _check_classes(clip: Clip, job: _Job) -> None:
    if job.header.classes != clip.table.names:
        raise ConfigError(
            f"{job.checkpoint} knows the classes {', '.join(job.header.classes)}, but {clip.name} "
            f"has {', '.join(clip.table.names)}; masks can be scored only where they are the same"
        )


def _play(clip: Clip, job: _Job, progress: Progress) -> LiveRun:
    height, width = clip.size
    parameters: dict[str, Any] = vars(job.config) | {
        "checkpoint": str(job.checkpoint.resolve()),
        "device": job.args.device,
        "expected_height": height,
        "expected_width": width,
    }
    start = progress.add_task("starting the node", total=1, note="")
    with live_node(parameters, job.args.out / "node.log") as node:
        progress.update(start, completed=1)
        task = progress.add_task(
            f"playing at {job.args.rate:g} Hz over DDS", total=len(clip.images), note=""
        )
        return node.play(
            clip.images, job.args.rate,
            lambda played, masks: progress.update(task, completed=played, note=f"{masks} masks"),
        )  # fmt: skip


def _full_network(clip: Clip, run: LiveRun, job: _Job, progress: Progress) -> Full:
    """The whole network on the frames that have a mask, in this process, the node being gone."""
    device = resolve_device(job.args.device)
    segmenter, header = inference.load(job.checkpoint, device, job.config.precision)
    engine, frames = FullEngine(segmenter, job.config), [answer.index for answer in run.answers]
    task = progress.add_task("full network on every frame", total=len(frames), note="")
    engine.process(Frame(clip.images[0], 0))  # warms up, as the node does
    results = []
    for index in frames:
        results.append(engine.process(Frame(clip.images[index], index)))
        progress.advance(task)
    masks = ((index, result.mask) for index, result in zip(frames, results, strict=True))
    scores = accuracy(clip.labels, masks, header.classes)
    return Latency.of([result.timing.latency_ms for result in results]), scores


def _write_video(clip: Clip, run: LiveRun, job: _Job, progress: Progress) -> None:
    table = ClassTable(clip.table.name, job.header.classes, job.header.colours)
    board = Storyboard(len(clip.images), clip.size, table)
    by_index = {answer.index: answer for answer in run.answers}
    task = progress.add_task("writing the video", total=len(clip.images), note="")
    with VideoWriter(job.args.out / "overlay.mp4", board.size, job.args.rate) as video:
        for index, image in enumerate(clip.images):
            video.write(board.picture(index, image, by_index.get(index)))
            progress.advance(task)


def _report(job: _Job, clip: Clip, run: LiveRun, full: Full | None, console: Console) -> None:
    """Chart, JSON and terminal."""
    (height, width), network, out = clip.size, name_of(job.header.network), job.args.out
    title = f"{clip.name}, {width}x{height} at {run.played_hz:.1f} Hz, {network}"
    machine = describe(job.args.device)
    summary = summarise(run.account, run.answers, clip.labels, job.header.classes)
    latency_chart(out / "latency.png", run.answers, len(clip.images), title)
    content = _setting(job, clip, run) | {"machine": machine} | _figures(summary, full)
    write_json(out / "summary.json", content)
    print_summary(console, title, summary, machine, full)
    names = ", ".join(path.name for path in sorted(out.iterdir()))
    console.print(f"Written to {out}: {names}")
    console.print("Your own pictures, video or camera: lowlat-seg segment INPUT --out DIR")


def _setting(job: _Job, clip: Clip, run: LiveRun) -> dict[str, Any]:
    """The part of the JSON that says what was played through what."""
    height, width = clip.size
    return {
        "clip": {
            "name": clip.name,
            "frames": len(clip.images),
            "width": width,
            "height": height,
            "rate_hz": job.args.rate,
            "played_hz": run.played_hz,
        },
        "network": {
            "checkpoint": job.checkpoint.name,
            "name": name_of(job.header.network),
            "threshold": job.header.threshold,
        },
        "settings": job.config,
    }


def _figures(summary: Summary, full: Full | None) -> dict[str, Any]:
    """The part of the JSON that says what came of it."""
    return {
        "latency_ms": {
            "engine": summary.engine,
            "published": summary.published,
            "received": summary.received,
        },
        "key_frames": {"count": summary.key_frames, "share": summary.key_share},
        "accuracy": summary.accuracy,
        "full_network": {"latency_ms": full[0], "accuracy": full[1]} if full else None,
        "account": vars(summary.account) | {"unaccounted": summary.account.unaccounted},
        "counters": summary.counters,
    }


def _verdict(job: _Job, run: LiveRun, console: Console) -> int:
    if not run.account.unaccounted:
        return 0
    console.print(
        f"[bold red]{run.account.unaccounted} of {run.account.played} frames are unaccounted "
        f"for[/]; see {job.args.out / 'node.log'}"
    )
    return 1
