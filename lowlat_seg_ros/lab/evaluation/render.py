"""``lowlat-seg render``: a rendered drive as a data set of one's own, and how fast that goes."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from lowlat_seg_ros.arguments import check_camera, size
from lowlat_seg_ros.config import ConfigError
from lowlat_seg_ros.lab.evaluation.dataset import RATE_HZ, RENDERED_FRAMES

if TYPE_CHECKING:
    from lowlat_seg_ros.lab.data.sequence import LabelledFrame, Sequence

EXAMPLES = """\
examples:
  lowlat-seg render --frames 200                     only says how many frames a second it renders
  lowlat-seg render --out DIR                        50 frames and their labels, as PNG
  lowlat-seg render --out DIR --seed 2 --video       another street beside it, and a video of it
  lowlat-seg render --out DIR --seed 3 --rate 30 --frames 600
  lowlat-seg evaluate --dataset folder --root DIR    what was written, as data to evaluate on

A drive is a camera car in a made-up street with moving traffic; labels are exact and in CamVid's 11
classes. Seed, duration (frames / rate) and size alone decide what is seen: two rates show the same
drive.

written to --out, to which each seed adds a drive:
  images/rendered_SEED/000000.png ...   RGB, 8 bit
  labels/rendered_SEED/000000.png ...   class ids, one channel, 255 where there is none
  classes.yaml                          names and colours of the classes
  rendered_SEED.mp4                     with --video: image beside labels

The time that is printed is that of image and labels, from the second frame on; building the street
and writing files are not part of it.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EXAMPLES
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="folder to write to; without it none is written"
    )
    parser.add_argument(
        "--seed", type=int, default=1, help="street, light and traffic (default %(default)s)"
    )
    parser.add_argument(
        "--frames",
        type=int,
        default=RENDERED_FRAMES,
        metavar="N",
        help="how many (default %(default)s)",
    )
    parser.add_argument(
        "--rate",
        type=float,
        default=RATE_HZ,
        metavar="HZ",
        help="of the camera (default %(default)s)",
    )
    parser.add_argument(
        "--size", type=size, metavar="HxW", help="of the images, in pixels (default 360x480)"
    )
    parser.add_argument("--video", action="store_true", help="also write an MP4 into --out")


def run(args: argparse.Namespace) -> int:
    """Render, write, say how fast."""
    _check(args)
    import cv2
    from tqdm import tqdm

    from lowlat_seg_ros.engine.cpu_threads import ExternalCpuLoad
    from lowlat_seg_ros.lab.evaluation import clip, machine

    begin = time.perf_counter()
    _, drive = clip.rendered(args.seed, args.frames, args.rate, args.size)
    built_s = time.perf_counter() - begin
    neighbours = ExternalCpuLoad()
    with ExitStack() as stack:
        keep = _keeper(stack, args, drive) if args.out is not None else None
        bar = stack.enter_context(tqdm(total=args.frames, unit="frame", desc=drive.drive(0)))
        seconds = _render(drive, keep, bar.update)
    height, width = drive[0].label.shape
    print(
        f"{args.frames} frames of {width}x{height}: {(args.frames - 1) / seconds:.1f} frames/s, "
        f"{1000 * seconds / (args.frames - 1):.1f} ms each (street built in {built_s:.1f} s)\n"
        f"Measured on {machine.describe()}, "
        f"OpenCV {cv2.__version__} on {cv2.getNumThreads()} threads; "
        f"other processes kept {neighbours.cores():.1f} cores busy"
    )
    if args.out is not None:
        print(f"Written to {args.out}")
    return 0


def _render(
    drive: Sequence,
    keep: Callable[[LabelledFrame], None] | None,
    progress: Callable[[int], object],
) -> float:
    """Seconds that all frames but the first took, which makes textures that all drives share."""
    seconds = 0.0
    for index in range(len(drive)):
        begin = time.perf_counter()
        frame = drive[index]
        seconds += (time.perf_counter() - begin) if index > 0 else 0.0
        if keep is not None:
            keep(frame)
        progress(1)
    return seconds


def _keeper(
    stack: ExitStack, args: argparse.Namespace, drive: Sequence
) -> Callable[[LabelledFrame], None]:
    """What is done with each frame; files that stay open are closed with ``stack``."""
    import numpy as np

    from lowlat_seg_ros.lab.data.folder import FolderWriter
    from lowlat_seg_ros.lab.evaluation.video import VideoWriter
    from lowlat_seg_ros.labels import colour_mask

    name = drive.drive(0)
    folder = FolderWriter(args.out, drive.table, name)
    if not args.video:
        return folder.write
    height, width = drive[0].label.shape
    path = args.out / f"{name}.mp4"
    video = stack.enter_context(VideoWriter(path, (height, 2 * width), drive.rate_hz))

    def write(frame: LabelledFrame) -> None:
        folder.write(frame)
        video.write(np.hstack([frame.image, colour_mask(frame.label, drive.table)]))

    return write


def _check(args: argparse.Namespace) -> None:
    if args.frames < 2:
        raise ConfigError(f"--frames is {args.frames}; render at least 2")
    check_camera(args)
    if args.video and args.out is None:
        raise ConfigError("--video needs --out, the folder that it is written to")
