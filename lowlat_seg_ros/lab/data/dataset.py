"""The options that choose labelled frames: ``--dataset`` and those that go with it."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from lowlat_seg_ros.config import ConfigError
from lowlat_seg_ros.lab.arguments import check_camera, size

if TYPE_CHECKING:
    from lowlat_seg_ros.lab.data.sequence import Sequence

#: Default length of a rendered drive: as many frames as CamVid's labelled clip has.
RENDERED_FRAMES = 50

#: Default frame rate of a rendered drive or a folder: CamVid's.
RATE_HZ = 15.0

#: The ways of ``--degrade``, and the greatest strength of each.
WAYS = {"noise": 60.0, "blur": 5.0, "fog": 0.75, "dark": 0.88, "colours": 1.0}


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    add = parser.add_argument
    # fmt: off
    add("--dataset", choices=("drive", "camvid", "cityscapes", "folder"), default="drive",
        help="a rendered drive, CamVid, Cityscapes' snippets, or a folder with images, labels and "
        "classes.yaml (default %(default)s)")
    add("--root", type=Path, metavar="DIR", help="the data set's folder")
    add("--split", default="val",
        help="split of CamVid (only val is continuous video) or Cityscapes (default %(default)s)")
    add("--frames", type=int, default=0, metavar="N",
        help=f"take the first N frames; 0 for all, of a rendered drive {RENDERED_FRAMES} (default "
        "%(default)s)")
    add("--size", type=size, metavar="HxW",
        help="size of the images (default: 360x480 for a rendered drive, else the data's own)")
    add("--only-drive", metavar="NAME",
        help="take only this drive of CamVid, for example one that training left out")
    add("--degrade", metavar="WAY[:STRENGTH]",
        help=f"degrade the images: {', '.join(WAYS)}; the strength of noise is its standard "
        "deviation (of 255), of blur in pixels, of fog and dark a share; colours have none")
    add("--seed", type=int, default=1, help="seed of the rendered drive (default %(default)s)")
    # fmt: on


def check(args: argparse.Namespace) -> None:
    """Raise ``ConfigError`` for options that contradict each other or make no sense."""
    check_camera(args)
    if args.frames < 0:
        raise ConfigError(f"--frames is {args.frames}; give a number, or 0 for all")
    if args.dataset != "drive" and args.root is None:
        raise ConfigError(f"--dataset {args.dataset} needs --root, the folder that holds it")
    if args.only_drive is not None and args.dataset != "camvid":
        raise ConfigError("--only-drive is for --dataset camvid; leave it out")
    if args.degrade is not None:
        degradation(args.degrade)
    if args.dataset == "folder" and args.size is not None:
        raise ConfigError("--size does not resize a folder's images; leave it out")


def degradation(text: str) -> tuple[str, float]:
    """``WAY[:STRENGTH]`` -> both, the strength as ``lab.data.degrading`` takes it, in [0, 1].

    Raises ``ConfigError`` for an unknown way or a strength out of range.
    """
    way, _, strength = text.partition(":")
    if way not in WAYS or (strength and way == "colours"):
        raise ConfigError(f"--degrade is {text!r}; choose one of {', '.join(WAYS)}")
    try:
        share = float(strength) / WAYS[way] if strength else 1.0
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise ConfigError(f"--degrade is {text!r}; its strength must lie in [0, {WAYS[way]:g}]")
    return way, share


def chosen(args: argparse.Namespace, rate_hz: float) -> tuple[str, Sequence]:
    """Name and frames; ``rate_hz`` is for a drive or a folder.

    Raises ``DataError`` where they cannot be read.
    """
    from lowlat_seg_ros.lab.data import clip  # late, as is all that --help does not need
    from lowlat_seg_ros.lab.data.camvid import CamVid
    from lowlat_seg_ros.lab.data.cityscapes import Cityscapes
    from lowlat_seg_ros.lab.data.degrading import Degraded
    from lowlat_seg_ros.lab.data.folder import ImageFolder

    sequence: Sequence
    if args.dataset == "camvid":
        name, sequence = f"CamVid {args.split}", CamVid(args.root, args.split, args.size)
        if args.only_drive is not None:
            name, sequence = clip.one_drive(name, sequence, args.only_drive)
    elif args.dataset == "cityscapes":
        name = f"Cityscapes {args.split}"
        sequence = Cityscapes(args.root, args.split, args.size)
    elif args.dataset == "folder":
        name, sequence = args.root.resolve().name, ImageFolder(args.root, rate_hz=rate_hz)
    else:
        count = args.frames or RENDERED_FRAMES
        name, sequence = clip.rendered(args.seed, count, rate_hz, args.size)
    if args.degrade is None:
        return name, sequence
    return f"{name}, {args.degrade}", Degraded(sequence, *degradation(args.degrade))
