"""``lowlat-seg render``: writes a rendered drive as a data set, and says how fast that goes."""

from __future__ import annotations

import argparse
import time
from contextlib import ExitStack
from pathlib import Path

from lowlat_seg_ros.config import ConfigError
from lowlat_seg_ros.lab.arguments import check_camera, size
from lowlat_seg_ros.lab.data.dataset import RATE_HZ, RENDERED_FRAMES

EXAMPLES = """\
examples:
  lowlat-seg render --frames 200                     only prints the frames rendered per second
  lowlat-seg render --out DIR                        50 frames and their labels, as PNG
  lowlat-seg render --out DIR --seed 2 --video       another street in addition, and a video of it
  lowlat-seg render --out DIR --seed 3 --rate 30 --frames 600
  lowlat-seg evaluate --dataset folder --root DIR    evaluates on what was written

A drive is what a camera on a car sees in an invented street with moving traffic. Labels are exact
and have CamVid's 11 classes. What is seen depends on the seed, the duration (frames / rate) and the
size only, so two rates show the same drive.

written to --out, to which each seed adds a drive:
  images/rendered_SEED/000000.png ...   RGB, 8 bit
  labels/rendered_SEED/000000.png ...   class ids, one channel, 255 where there is none
  classes.yaml                          names and colours of the classes
  rendered_SEED.mp4                     with --video: image beside labels

The printed time is that of rendering image and labels, from the second frame on, without building
the street and without writing files.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EXAMPLES
    add = parser.add_argument
    # fmt: off
    add("--out", type=Path, metavar="DIR", help="folder to write to; without it nothing is written")
    add("--seed", type=int, default=1, help="street, light and traffic (default %(default)s)")
    add("--frames", type=int, default=RENDERED_FRAMES, metavar="N",
        help="number of frames (default %(default)s)")
    add("--rate", type=float, default=RATE_HZ, metavar="HZ",
        help="rate of the camera (default %(default)s)")
    add("--size", type=size, metavar="HxW", help="size of the images, in pixels (default 360x480)")
    add("--video", action="store_true", help="also write an MP4 into --out")
    # fmt: on


def run(args: argparse.Namespace) -> int:
    if args.frames < 2:
        raise ConfigError(f"--frames is {args.frames}; render at least 2")
    check_camera(args)
    if args.video and args.out is None:
        raise ConfigError("--video needs --out, the folder that it is written to")
    # Imported late: --help needs none of this.
    import cv2
    import numpy as np
    from tqdm import tqdm

    from lowlat_seg_ros.engine.cpu_threads import ExternalCpuLoad
    from lowlat_seg_ros.lab.data import clip
    from lowlat_seg_ros.lab.data.folder import FolderWriter
    from lowlat_seg_ros.lab.report import describe
    from lowlat_seg_ros.labels import colour_mask
    from lowlat_seg_ros.tools.pictures import VideoWriter

    begin = time.perf_counter()
    _, drive = clip.rendered(args.seed, args.frames, args.rate, args.size)
    built_s = time.perf_counter() - begin
    name, (height, width) = drive.drive(0), drive[0].label.shape
    other_work, seconds = ExternalCpuLoad(), 0.0
    folder = None if args.out is None else FolderWriter(args.out, drive.table, name)
    with ExitStack() as stack:
        video = None
        if args.video:
            video = VideoWriter(args.out / f"{name}.mp4", (height, 2 * width), drive.rate_hz)
            stack.enter_context(video)
        for index in tqdm(range(args.frames), unit="frame", desc=name):
            begin = time.perf_counter()
            frame = drive[index]
            if index > 0:  # the first one makes the textures that all drives share
                seconds += time.perf_counter() - begin
            if folder is not None:
                folder.write(frame)
            if video is not None:
                video.write(np.hstack([frame.image, colour_mask(frame.label, drive.table)]))
    print(
        f"{args.frames} frames of {width}x{height}: {(args.frames - 1) / seconds:.1f} frames/s, "
        f"{1000 * seconds / (args.frames - 1):.1f} ms each (street built in {built_s:.1f} s)\n"
        f"Measured on {describe()}, "
        f"OpenCV {cv2.__version__} on {cv2.getNumThreads()} threads; "
        f"other processes kept {other_work.cores():.1f} cores busy"
    )
    if args.out is not None:
        print(f"Written to {args.out}")
    return 0
