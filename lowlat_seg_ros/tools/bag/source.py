"""What a bag is made of: one drive of a data set, with labels, or a video file, without."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lowlat_seg_ros.lab.data.sequence import DataError, Sequence, Subset
from lowlat_seg_ros.labels import ClassTable


@dataclass(frozen=True, eq=False)
class Shot:
    """``image`` uint8 (H, W, 3) RGB, ``label`` uint8 (H, W) or None, ``stamp_ns`` from 0 on."""

    image: np.ndarray
    label: np.ndarray | None
    stamp_ns: int


@dataclass(frozen=True)
class Source:
    """``count`` frames, or as many as there are where it is 0; ``table`` only if there are labels.

    Iterating reads them one by one.
    """

    name: str
    count: int
    table: ClassTable | None
    shots: Iterator[Shot]


def of_sequence(name: str, sequence: Sequence, drive: str | None, frames: int) -> Source:
    """The first ``frames`` frames, 0 for all, of ``drive``, or of the first drive.

    DataError if there is no such drive.
    """
    drives: dict[str, list[int]] = {}
    for index in range(len(sequence)):
        drives.setdefault(sequence.drive(index), []).append(index)
    wanted = next(iter(drives), "") if drive is None else drive
    if wanted not in drives:
        raise DataError(
            f"{name} has no drive {wanted!r}; it has {', '.join(map(repr, drives)) or 'none'}"
        )
    indices = drives[wanted][: frames or None]
    title = name if len(drives) == 1 else f"{name}, {wanted}"
    return Source(title, len(indices), sequence.table, _labelled(Subset(sequence, indices)))


def _labelled(sequence: Subset) -> Iterator[Shot]:
    first_ns = 0
    for index in range(len(sequence)):
        frame = sequence[index]
        first_ns = frame.stamp_ns if index == 0 else first_ns
        yield Shot(frame.image, frame.label, frame.stamp_ns - first_ns)


def of_video(
    path: Path, frames: int, rate_hz: float | None, size: tuple[int, int] | None
) -> Source:
    """The first ``frames`` frames, 0 for all, of a video file, as ``size`` (H, W) if given.

    Stamps are the video's own or, with ``rate_hz``, those of a camera that takes its frames one by
    one. DataError if it is no video.
    """
    return Source(path.name, frames, None, _decoded(path, frames, rate_hz, size))


def _decoded(
    path: Path, frames: int, rate_hz: float | None, size: tuple[int, int] | None
) -> Iterator[Shot]:
    import av

    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise DataError(f"{path} holds no video; give a video file")
            first_ns = None
            for index, picture in enumerate(container.decode(video=0)):
                if frames and index >= frames:
                    return
                height, width = size or (picture.height, picture.width)
                image = picture.to_ndarray(format="rgb24", width=width, height=height)
                if rate_hz is not None:
                    yield Shot(image, None, round(index * 1e9 / rate_hz))
                    continue
                if picture.pts is None or picture.time_base is None:
                    raise DataError(f"{path} has no times for its frames; give --rate")
                now_ns = int(picture.pts * picture.time_base * 1_000_000_000)
                first_ns = now_ns if first_ns is None else first_ns
                yield Shot(image, None, now_ns - first_ns)
    except (av.FFmpegError, OSError) as error:
        raise DataError(f"{path} cannot be read as a video ({error}); check the file") from error
