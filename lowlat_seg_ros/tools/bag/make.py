"""A drive of a data set, with labels, or a video file, without, written as a bag."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from tqdm import tqdm

from lowlat_seg_ros.lab.data.sequence import DataError, Sequence
from lowlat_seg_ros.lab.evaluation import dataset
from lowlat_seg_ros.labels import ClassTable
from lowlat_seg_ros.tools.bag.messages import CLOCK
from lowlat_seg_ros.tools.bag.storage import BagWriter
from lowlat_seg_ros.tools.bag.topics import CLOCK as CLOCK_TOPIC
from lowlat_seg_ros.tools.bag.topics import Topics
from lowlat_seg_ros.tools.pictures import Video

#: The first stamp: to ROS a stamp of 0 means that there is none.
START_NS = 1_000_000_000
#: Of the camera, in the images' headers.
FRAME_ID = "camera"


@dataclass(frozen=True, eq=False)
class Shot:
    """``image`` uint8 (H, W, 3) RGB, ``label`` uint8 (H, W) or None, ``stamp_ns`` from 0 on."""

    image: np.ndarray
    label: np.ndarray | None
    stamp_ns: int


@dataclass(frozen=True)
class Source:
    """``count`` frames, or as many as there are where it is 0; ``table`` only if there are labels.

    Iterating over ``shots`` reads them one by one.
    """

    name: str
    count: int
    table: ClassTable | None
    shots: Iterator[Shot]


def make(args: argparse.Namespace) -> int:
    """Write the bag; DataError for what cannot be read or written. The exit status."""
    dataset.check(args)
    if args.video is not None:
        source = of_video(args.video, args.frames, args.rate, args.size)
    else:
        name, sequence = dataset.chosen(args, args.rate or dataset.RATE_HZ)
        source = of_sequence(name, sequence, args.drive, args.frames)
    topics, count = Topics.of(args), 0
    with BagWriter(args.out, args.storage) as bag:
        new = bag.messages
        for shot in tqdm(
            source.shots, total=source.count or None, unit="frame", desc=source.name, disable=None
        ):
            now_ns = START_NS + shot.stamp_ns
            header = new.header(now_ns, FRAME_ID)
            # The clock first: who plays the bag by it is at the image's time when it comes.
            bag.write(CLOCK_TOPIC, new.make(CLOCK, clock=header.stamp), now_ns)
            bag.write(topics.image, new.image(header, shot.image, "rgb8"), now_ns)
            if shot.label is not None:
                bag.write(topics.label, new.image(header, shot.label, "mono8"), now_ns)
            count += 1
        if count == 0:
            raise DataError(f"{source.name} has no frames; there is nothing to write")
        bag.facts = {"source": source.name}
        if (table := source.table) is not None:
            bag.facts |= {"classes": list(table.names), "colours": list(map(list, table.colours))}
    print(f"{count} frames of {source.name} written to {args.out}")
    return 0


def of_sequence(name: str, sequence: Sequence, drive: str | None, frames: int) -> Source:
    """The first ``frames`` frames, 0 for all, of ``drive``, or of the first drive.

    DataError if there is no such drive.
    """
    drives: dict[str, list[int]] = {}
    for index in range(len(sequence)):
        drives.setdefault(sequence.drive(index), []).append(index)
    chosen = next(iter(drives), "") if drive is None else drive
    if chosen not in drives:
        raise DataError(
            f"{name} has no drive {chosen!r}; it has {', '.join(map(repr, drives)) or 'none'}"
        )
    indices = drives[chosen][: frames or None]

    def shots() -> Iterator[Shot]:
        first_ns = None
        for index in indices:
            frame = sequence[index]
            first_ns = frame.stamp_ns if first_ns is None else first_ns
            yield Shot(frame.image, frame.label, frame.stamp_ns - first_ns)

    title = name if len(drives) == 1 else f"{name}, {chosen}"
    return Source(title, len(indices), sequence.table, shots())


def of_video(
    path: Path, frames: int, rate_hz: float | None, size: tuple[int, int] | None
) -> Source:
    """The first ``frames`` frames, 0 for all, of a video file, as ``size`` (H, W) if given.

    Stamps are the video's own or, with ``rate_hz``, those of a camera that takes its frames one by
    one. Reading raises DataError if it is no video.
    """

    def shots() -> Iterator[Shot]:
        with Video(path) as video:
            for image, stamp_ns in islice(video.frames(rate_hz, size), frames or None):
                yield Shot(image, None, stamp_ns)

    return Source(path.name, frames, None, shots())
