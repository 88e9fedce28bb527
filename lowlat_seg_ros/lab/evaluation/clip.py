"""A labelled clip in memory, ready to be played."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lowlat_seg_ros.lab.data.camvid import CamVid
from lowlat_seg_ros.lab.data.cityscapes import ANNOTATED, Cityscapes
from lowlat_seg_ros.lab.data.folder import ImageFolder
from lowlat_seg_ros.lab.data.sequence import DataError, LabelledFrame, Sequence, Subset, check_index
from lowlat_seg_ros.labels import ClassTable

#: Size of rendered drives, (H, W): that of CamVid's usual release.
RENDERED_SIZE = (360, 480)


@dataclass(frozen=True, eq=False)
class Clip:
    """``images`` uint8 (H, W, 3) RGB and ``labels`` uint8 (H, W), all of one size."""

    name: str
    table: ClassTable
    images: tuple[np.ndarray, ...]
    labels: tuple[np.ndarray, ...]

    @property
    def size(self) -> tuple[int, int]:
        """(H, W)."""
        height, width = self.labels[0].shape
        return height, width


def camvid(
    root: Path, split: str, size: tuple[int, int] | None, drive: str | None = None
) -> tuple[str, Sequence]:
    """Name and frames of a split of CamVid, of one ``drive`` alone if it is named.

    DataError if it has no such drive.
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
    return f"Cityscapes {split}", _Snippets(Cityscapes(root, split, size))


class _Snippets:
    """The first 20 frames of each snippet, one drive each; only the last one has labels."""

    def __init__(self, annotated: Cityscapes) -> None:
        self.table, self.rate_hz = annotated.table, annotated.rate_hz
        self._clips = [annotated.clip(index) for index in range(len(annotated))]

    def __len__(self) -> int:
        return len(self._clips) * (ANNOTATED + 1)

    def __getitem__(self, index: int) -> LabelledFrame:
        clip, frame = divmod(check_index(index, len(self)), ANNOTATED + 1)
        return self._clips[clip][frame]

    def drive(self, index: int) -> str:
        clip, frame = divmod(check_index(index, len(self)), ANNOTATED + 1)
        return self._clips[clip].drive(frame)


def folder(root: Path, rate_hz: float) -> tuple[str, Sequence]:
    """Name and frames of a user's own images, labels and class table."""
    return root.resolve().name, ImageFolder(root, rate_hz=rate_hz)


def load(name: str, sequence: Sequence, frames: int, progress: Callable[[int], None]) -> Clip:
    """The first ``frames`` frames of the first drive of ``sequence``, fewer if it is shorter.

    ``progress`` is told how many are loaded. DataError if there are fewer than two.
    """
    loaded = []
    for index in range(min(frames, len(sequence))):
        if sequence.drive(index) != sequence.drive(0):
            break
        loaded.append(sequence[index])
        progress(len(loaded))
    if len(loaded) < 2:
        raise DataError(f"{name} has {len(loaded)} frames in its first drive; a clip takes 2")
    images, labels = zip(*((frame.image, frame.label) for frame in loaded), strict=True)
    return Clip(name, sequence.table, images, labels)
