"""``lowlat-seg bag make``: a drive with labels, or a video file, as a bag."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from lowlat_seg_ros.lab.evaluation import dataset
from lowlat_seg_ros.tools.bag import options, topics

if TYPE_CHECKING:
    from lowlat_seg_ros.labels import ClassTable
    from lowlat_seg_ros.tools.bag.source import Source

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
    dataset.configure(parser)
    parser.add_argument("--video", type=Path, metavar="FILE", help="a video file instead")
    parser.add_argument(
        "--drive", metavar="NAME", help="of the data set (default: its first one; a bag holds one)"
    )
    parser.add_argument(
        "--rate", type=float, metavar="HZ",
        help=f"of drive or folder ({dataset.RATE_HZ:g}), or of a video's frames instead of its own "
        "times",
    )  # fmt: skip
    options.storage(parser)
    topics.configure(parser, "image", "label")


def run(args: argparse.Namespace) -> int:
    """Write the bag; DataError for what cannot be read or written."""
    dataset.check(args)
    source = _source(args)
    count = write(source, args.out, args.storage, topics.chosen(args))
    print(f"{count} frames of {source.name} written to {args.out}")
    return 0


def write(source: Source, out: Path, storage: str, names: topics.Topics) -> int:
    """Write ``source`` to the new bag ``out``; returns how many frames there were.

    DataError if there was none.
    """
    from tqdm import tqdm

    from lowlat_seg_ros.lab.data.sequence import DataError
    from lowlat_seg_ros.tools.bag.messages import CLOCK
    from lowlat_seg_ros.tools.bag.storage import BagWriter

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
    from lowlat_seg_ros.tools.bag.source import of_sequence, of_video

    if args.video is not None:
        return of_video(args.video, args.frames, args.rate, args.size)
    name, sequence = dataset.chosen(args, args.rate or dataset.RATE_HZ)
    return of_sequence(name, sequence, args.drive, args.frames)
