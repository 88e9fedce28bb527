"""The options that say which labelled frames: ``--dataset``, and what goes with it."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from lowlat_seg_ros.arguments import check_camera, size
from lowlat_seg_ros.config import ConfigError

if TYPE_CHECKING:
    from lowlat_seg_ros.data.sequence import Sequence

#: Of a rendered drive, unless told otherwise: as many as CamVid's labelled clip has.
RENDERED_FRAMES = 50

#: Of a rendered drive or a folder, unless told otherwise: CamVid's.
RATE_HZ = 15.0


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
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
        "--frames",
        type=int,
        default=0,
        metavar="N",
        help=f"first frames, 0 for all; of a drive {RENDERED_FRAMES} are rendered",
    )
    parser.add_argument(
        "--size", type=size, metavar="HxW", help="of the images (360x480, or the data's own)"
    )
    parser.add_argument(
        "--seed", type=int, default=1, help="of the rendered drive (default %(default)s)"
    )


def check(args: argparse.Namespace) -> None:
    """Raise ``ConfigError`` for options that contradict each other or make no sense."""
    check_camera(args)
    if args.frames < 0:
        raise ConfigError(f"--frames is {args.frames}; give a number, or 0 for all")
    if args.dataset != "drive" and args.root is None:
        raise ConfigError(f"--dataset {args.dataset} needs --root, the folder that holds it")
    if args.dataset == "folder" and args.size is not None:
        raise ConfigError("--size does not resize a folder's images; leave it out")


def chosen(args: argparse.Namespace, rate_hz: float) -> tuple[str, Sequence]:
    """Name and frames; ``rate_hz`` of a drive or folder. DataError where they cannot be read."""
    from lowlat_seg_ros.evaluation import clip

    if args.dataset == "camvid":
        return clip.camvid(args.root, args.split, args.size)
    if args.dataset == "cityscapes":
        return clip.cityscapes(args.root, args.split, args.size)
    if args.dataset == "folder":
        return clip.folder(args.root, rate_hz)
    return clip.rendered(args.seed, args.frames or RENDERED_FRAMES, rate_hz, args.size)
