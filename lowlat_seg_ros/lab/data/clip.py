"""Labelled frames in memory, with the drives they belong to, and the data sets they come from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from lowlat_seg_ros.frames import Frame
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
        return index == 0 or self.drives[index] != self.drives[index - 1]

    def ranges(self) -> list[range]:
        starts = [index for index in range(len(self)) if self.starts_drive(index)]
        return [range(*ends) for ends in zip(starts, [*starts[1:], len(self)], strict=True)]

    def frame(self, index: int) -> Frame:
        """Frame ``index`` as the engine takes it."""
        return Frame(self.frames[index].image, self.frames[index].stamp_ns)


def load(name: str, sequence: Sequence, frames: int, progress: Callable[[int], object]) -> Clip:
    """The first ``frames`` frames of ``sequence``, 0 for all, of as many drives as they span.

    ``progress`` is called with 1 for each. Raises ``DataError`` if there is none.
    """
    indices = range(min(frames or len(sequence), len(sequence)))
    loaded = []
    for index in indices:
        loaded.append(sequence[index])
        progress(1)
    if not loaded:
        raise DataError(f"{name} has no frames; there is nothing to evaluate")
    drives = tuple(map(sequence.drive, indices))
    return Clip(name, sequence.table, sequence.rate_hz, tuple(loaded), drives)


def one_drive(name: str, sequence: Sequence, drive: str | None = None) -> tuple[str, Sequence]:
    """Name and frames of ``drive``, or of the first one; ``DataError`` if there is none."""
    drives: dict[str, list[int]] = {}
    for index in range(len(sequence)):
        drives.setdefault(sequence.drive(index), []).append(index)
    chosen = next(iter(drives), "") if drive is None else drive
    if chosen not in drives:
        raise DataError(
            f"{name} has no drive {chosen!r}; it has {', '.join(map(repr, drives)) or 'none'}"
        )
    if len(drives) == 1 and drive is None:
        return name, sequence
    return f"{name}, drive {chosen}", Subset(sequence, drives[chosen])


def rendered(
    seed: int, frames: int, rate_hz: float, size: tuple[int, int] | None
) -> tuple[str, Sequence]:
    """Name and frames of a drive that the project renders, as a camera of ``rate_hz`` sees it."""
    from lowlat_seg_ros.lab.data.synthetic import RenderedDrive

    drive = RenderedDrive(seed=seed, frames=frames, rate_hz=rate_hz, size=size or RENDERED_SIZE)
    return f"rendered drive {seed}", drive
