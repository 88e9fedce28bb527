"""Labelled frames in memory, with the drives they belong to, to be played by every method."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from lowlat_seg_ros.frames import Frame
from lowlat_seg_ros.lab.data.sequence import DataError, LabelledFrame, Sequence
from lowlat_seg_ros.labels import ClassTable


@dataclass(frozen=True, eq=False)
class Footage:
    """``frames`` in order; ``drives`` names each one's drive, at whose change methods reset."""

    name: str
    table: ClassTable
    rate_hz: float
    frames: tuple[LabelledFrame, ...]
    drives: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.frames)

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


def load(name: str, sequence: Sequence, frames: int, progress: Callable[[int], object]) -> Footage:
    """The first ``frames`` frames of ``sequence`` (0 for all); ``progress`` is told each step.

    DataError if there is none.
    """
    count = min(frames, len(sequence)) if frames else len(sequence)
    loaded = []
    for index in range(count):
        loaded.append(sequence[index])
        progress(1)
    if not loaded:
        raise DataError(f"{name} has no frames; there is nothing to evaluate")
    drives = tuple(sequence.drive(index) for index in range(count))
    return Footage(name, sequence.table, sequence.rate_hz, tuple(loaded), drives)
