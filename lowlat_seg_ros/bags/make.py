"""``lowlat-seg bag make``: a drive with labels, or a video file, as a bag."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from lowlat_seg_ros.arguments import size
from lowlat_seg_ros.bags import options, topics
from lowlat_seg_ros.config import ConfigError

if TYPE_CHECKING:
    from lowlat_seg_ros.bags.source import Source
    from lowlat_seg_ros.data.labels import ClassTable

#: The first stamp: to ROS a stamp of 0 means that there is none.
START_NS = 1_000_000_000
#: Of the camera, in the images' headers.
FRAME_ID = "camera"

EXAMPLES = """\
examples:
  lowlat-seg bag make --out BAG                                 a rendered drive with exact labels
  lowlat-seg bag make --dataset camvid --root DIR --out BAG     CamVid's labelled clip
  lowlat-seg bag make --dataset cityscapes --root DIR --split val --drive NAME --out BAG
  lowlat-seg bag make --video drive.mp4 --size 360x480 --out BAG

written to the bag: images (rgb8), labels (mono8 class ids, 255 where there is none; not from a
video) and /clock, each stamped with the frame's time, from 1 s on
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EXAMPLES
    parser.add_argument("--out", type=Path, required=True, metavar="BAG", help="folder to make")
    parser.add_argument(
        "--dataset",
        choices=("drive", "camvid", "cityscapes", "folder"),
        default="drive",
        help="a rendered drive, CamVid, a Cityscapes snippet, or a folder with images, labels and "
        "classes.yaml (default %(default)s)",
    )
    parser.add_argument("--video", type=Path, metavar="FILE", help="a video file instead")
    parser.add_argument("--root", type=Path, metavar="DIR", help="the data set's folder")
    parser.add_argument(
        "--split", default="val", help="of CamVid or Cityscapes (default %(default)s)"
    )
    parser.add_argument(
        "--drive", metavar="NAME", help="of the data set (default: its first one; a bag holds one)"
    )
    parser.add_argument(
        "--frames", type=int, default=0, metavar="N",
        help="first frames, 0 for all; of a drive 50 are rendered",
    )  # fmt: skip
    parser.add_argument(
        "--size", type=size, metavar="HxW", help="of the images (360x480, or the data's own)"
    )
    parser.add_argument(
        "--seed", type=int, default=1, help="of the rendered drive (default %(default)s)"
    )
    parser.add_argument(
        "--rate", type=float, metavar="HZ",
        help="of drive or folder (15), or of a video's frames instead of its own times",
    )  # fmt: skip
    options.storage(parser)
    topics.configure(parser, "image", "label")


def run(args: argparse.Namespace) -> int:
    """Write the bag; DataError for what cannot be read or written."""
    _check(args)
    source = _source(args)
    count = write(source, args.out, args.storage, topics.chosen(args))
    print(f"{count} frames of {source.name} written to {args.out}")
    return 0


def write(source: Source, out: Path, storage: str, names: topics.Topics) -> int:
    """Write ``source`` to the new bag ``out``; returns how many frames there were.

    DataError if there was none.
    """
    from tqdm import tqdm

    from lowlat_seg_ros.bags.messages import CLOCK
    from lowlat_seg_ros.bags.storage import BagWriter
    from lowlat_seg_ros.data.sequence import DataError

    count = 0
    with BagWriter(out, storage) as bag:
        make = bag.messages
        for shot in tqdm(
            source.shots, total=source.count or None, unit="frame", desc=source.name, disable=None
        ):
            now_ns = START_NS + shot.stamp_ns
            header = make.header(now_ns, FRAME_ID)
            # The clock first: who plays the bag by it is at the image's time when it comes.
            bag.write(topics.CLOCK, make.make(CLOCK, clock=header.stamp), now_ns)
            bag.write(names.image, make.image(header, shot.image, "rgb8"), now_ns)
            if shot.label is not None:
                bag.write(names.label, make.image(header, shot.label, "mono8"), now_ns)
            count += 1
        if count == 0:
            raise DataError(f"{source.name} has no frames; there is nothing to write")
        bag.facts = {"source": source.name} | (classes(source.table) if source.table else {})
    return count


def classes(table: ClassTable) -> dict[str, object]:
    """The class table as it stands in a bag's facts."""
    return {"classes": list(table.names), "colours": [list(colour) for colour in table.colours]}


def _source(args: argparse.Namespace) -> Source:
    from lowlat_seg_ros.bags.source import of_sequence, of_video
    from lowlat_seg_ros.evaluation import clip

    if args.video is not None:
        return of_video(args.video, args.frames, args.rate, args.size)
    rate_hz = args.rate or 15.0
    if args.dataset == "camvid":
        name, sequence = clip.camvid(args.root, args.split, args.size)
    elif args.dataset == "cityscapes":
        name, sequence = clip.cityscapes(args.root, args.split, args.size)
    elif args.dataset == "folder":
        name, sequence = clip.folder(args.root, rate_hz)
    else:
        name, sequence = clip.rendered(args.seed, args.frames or 50, rate_hz, args.size)
    return of_sequence(name, sequence, args.drive, args.frames)


def _check(args: argparse.Namespace) -> None:
    if args.video is None and args.dataset != "drive" and args.root is None:
        raise ConfigError(f"--dataset {args.dataset} needs --root, the folder that holds it")
    if args.video is None and args.dataset == "folder" and args.size is not None:
        raise ConfigError("--size does not resize a folder's images; leave it out")
    if args.frames < 0:
        raise ConfigError(f"--frames is {args.frames}; give a number, or 0 for all")
    if args.rate is not None and not 0.0 < args.rate <= 1000.0:
        raise ConfigError(f"--rate is {args.rate}; it must lie in (0, 1000] Hz")
    if args.size is not None and min(args.size) < 16:
        height, width = args.size
        raise ConfigError(f"--size is {height}x{width}; it must be 16 pixels or more each way")
    if args.seed < 0:
        raise ConfigError(f"--seed is {args.seed}; it must be 0 or more")
