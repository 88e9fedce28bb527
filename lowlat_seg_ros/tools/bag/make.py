"""A drive of a data set, with labels, or a video file, without, written as a bag."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from itertools import islice

import numpy as np
from tqdm import tqdm

from lowlat_seg_ros.lab.data import dataset
from lowlat_seg_ros.lab.data.clip import one_drive
from lowlat_seg_ros.lab.data.sequence import DataError, Sequence
from lowlat_seg_ros.tools.bag.command import CLOCK as CLOCK_TOPIC
from lowlat_seg_ros.tools.bag.command import Topics
from lowlat_seg_ros.tools.bag.storage import CLOCK, BagWriter
from lowlat_seg_ros.tools.pictures import Video

#: The first stamp: to ROS a stamp of 0 means that there is none.
START_NS = 1_000_000_000
#: Of the camera, in the images' headers.
FRAME_ID = "camera"

#: Image, uint8 (H, W, 3) RGB; label, uint8 (H, W), if there is one; time in ns from 0 on.
Shot = tuple[np.ndarray, np.ndarray | None, int]


def make(args: argparse.Namespace) -> int:
    """Write the bag; DataError for what cannot be read or written. The exit status."""
    dataset.check(args)
    facts = {}
    if args.video is not None:
        name, total, shots = args.video.name, args.frames, _of_video(args)
    else:
        name, sequence = dataset.chosen(args, args.rate or dataset.RATE_HZ)
        name, sequence = one_drive(name, sequence, args.drive)
        total = min(args.frames or len(sequence), len(sequence))
        shots, table = _of_drive(sequence, total), sequence.table
        facts = {"classes": list(table.names), "colours": list(map(list, table.colours))}
    topics, count = Topics.of(args), 0
    with BagWriter(args.out, args.storage) as bag:
        new = bag.messages
        for image, label, time_ns in tqdm(
            shots, total=total or None, unit="frame", desc=name, disable=None
        ):
            now_ns = START_NS + time_ns
            header = new.header(now_ns, FRAME_ID)
            # The clock first: who plays the bag by it is at the image's time when it comes.
            bag.write(CLOCK_TOPIC, new.make(CLOCK, clock=header.stamp), now_ns)
            bag.write(topics.image, new.image(header, image, "rgb8"), now_ns)
            if label is not None:
                bag.write(topics.label, new.image(header, label, "mono8"), now_ns)
            count += 1
        if count == 0:
            raise DataError(f"{name} has no frames; there is nothing to write")
        bag.facts = {"source": name, **facts}
    print(f"{count} frames of {name} written to {args.out}")
    return 0


def _of_drive(sequence: Sequence, count: int) -> Iterator[Shot]:
    first_ns = None
    for frame in map(sequence.__getitem__, range(count)):
        first_ns = frame.stamp_ns if first_ns is None else first_ns
        yield frame.image, frame.label, frame.stamp_ns - first_ns


def _of_video(args: argparse.Namespace) -> Iterator[Shot]:
    """At the video's own times, or those of a camera of ``--rate`` that takes its frames."""
    with Video(args.video) as video:
        for image, time_ns in islice(video.frames(args.rate, args.size), args.frames or None):
            yield image, None, time_ns
