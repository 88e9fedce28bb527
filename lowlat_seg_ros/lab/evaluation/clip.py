"""Labelled frames in memory, with the drives they belong to, and the data sets they come from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from lowlat_seg_ros.frames import Frame
from lowlat_seg_ros.lab.data.camvid import CamVid
from lowlat_seg_ros.lab.data.cityscapes import Cityscapes
from lowlat_seg_ros.lab.data.sequence import DataError, LabelledFrame, Sequence, Subset
from lowlat_seg_ros.labels import ClassTable

#: Size of rendered drives, (H, W): that of CamVid's usual release.
RENDERED_SIZE = (360, 480)


@dataclass(frozen=True, eq=False)
class Clip:
    """``frames`` in order; ``drives`` names each one's drive, at whose change methods reset."""

    name: str
    table: ClassTable
    rate_hz: float
    frames: tuple[LabelledFrame, ...]
    drives: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.frames)

    @cached_property
    def images(self) -> tuple[np.ndarray, ...]:
        """uint8 (H, W, 3) RGB of each frame."""
        return tuple(frame.image for frame in self.frames)

    @cached_property
    def labels(self) -> tuple[np.ndarray, ...]:
        """uint8 (H, W) class ids of each frame, 255 where there is none."""
        return tuple(frame.label for frame in self.frames)

    @property
    def size(self) -> tuple[int, int]:
        """(H, W)."""
        height, width = self.frames[0].label.shape
        return height, width

    def starts_drive(self, index: int) -> bool:
        """Whether frame ``index`` is the first of its drive."""
        return index == 0 or self.drives[index] != self.drives[index - 1]

    def ranges(self) -> list[range]:
        """The indices of each drive."""
        starts = [index for index in range(len(self)) if self.starts_drive(index)]
        ends = [*starts[1:], len(self)]
        return [range(start, end) for start, end in zip(starts, ends, strict=True)]

    def frame(self, index: int) -> Frame:
        """Frame ``index`` as the engine takes it."""
        return Frame(self.frames[index].image, self.frames[index].stamp_ns)


def load(name: str, sequence: Sequence, frames: int, progress: Callable[[int], object]) -> Clip:
    """The first ``frames`` frames of the first drive of ``sequence``, fewer if it is shorter.

    ``progress`` is called with the number of frames loaded so far. Raises ``DataError`` if there
    are fewer than two.
    """
    loaded: list[LabelledFrame] = []
    for index in range(min(frames, len(sequence))):
        if sequence.drive(index) != sequence.drive(0):
            break
        loaded.append(sequence[index])
        progress(len(loaded))
    if len(loaded) < 2:
        raise DataError(f"{name} has {len(loaded)} frames in its first drive; a clip takes 2")
    drives = (sequence.drive(0),) * len(loaded)
    return Clip(name, sequence.table, sequence.rate_hz, tuple(loaded), drives)


def load_all(name: str, sequence: Sequence, frames: int, progress: Callable[[int], object]) -> Clip:
    """The first ``frames`` frames of ``sequence`` (0 for all), of as many drives as they span.

    ``progress`` is called with 1 for each. Raises ``DataError`` if there is none.
    """
    count = min(frames, len(sequence)) if frames else len(sequence)
    loaded = []
    for index in range(count):
        loaded.append(sequence[index])
        progress(1)
    if not loaded:
        raise DataError(f"{name} has no frames; there is nothing to evaluate")
    drives = tuple(sequence.drive(index) for index in range(count))
    return Clip(name, sequence.table, sequence.rate_hz, tuple(loaded), drives)


def camvid(
    root: Path, split: str, size: tuple[int, int] | None, drive: str | None = None
) -> tuple[str, Sequence]:
    """Name and frames of a split of CamVid, or of its ``drive`` alone.

    Raises ``DataError`` if it has no such drive.
    """
    frames = CamVid(root, split, size)
    if drive is None:
        return f"CamVid {split}", frames
    drives = [frames.drive(index) for index in range(len(frames))]
    indices = [index for index, name in enumerate(drives) if name == drive]
    if not indices:
        raise DataError(
            f"CamVid {split} has no drive {drive!r}; choose one of {', '.join(sorted(set(drives)))}"
        )
    return f"CamVid {split}, drive {drive}", Subset(frames, indices)


def rendered(
    seed: int, frames: int, rate_hz: float, size: tuple[int, int] | None
) -> tuple[str, Sequence]:
    """Name and frames of a drive that the project renders, as a camera of ``rate_hz`` sees it."""
    from lowlat_seg_ros.lab.data.synthetic import RenderedDrive

    drive = RenderedDrive(seed=seed, frames=frames, rate_hz=rate_hz, size=size or RENDERED_SIZE)
    return f"rendered drive {seed}", drive


def cityscapes(root: Path, split: str, size: tuple[int, int] | None) -> tuple[str, Sequence]:
    """Name and frames of Cityscapes' snippets, each from its first to its annotated frame."""
    return f"Cityscapes {split}", Cityscapes(root, split, size)
