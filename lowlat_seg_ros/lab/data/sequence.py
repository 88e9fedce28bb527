"""What every data set is to the rest of the project: an indexed sequence of labelled frames."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable
from collections.abc import Sequence as Indices
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import av
import cv2
import numpy as np

from lowlat_seg_ros.frames import IGNORE_LABEL
from lowlat_seg_ros.labels import ClassTable

_LOG = logging.getLogger(__name__)


class DataError(ValueError):
    """A data set cannot be read; the message names the file or folder, the rule and the fix."""


@dataclass(frozen=True)
class LabelledFrame:
    """One frame and its ground truth.

    ``image``: uint8 (H, W, 3) RGB. ``label``: uint8 (H, W) class ids, 255 where ignored.
    ``stamp_ns``: time within the drive. ``name``: unique within the data set.
    """

    image: np.ndarray
    label: np.ndarray
    stamp_ns: int
    name: str


@runtime_checkable
class Sequence(Protocol):
    """Labelled frames in order of drive and time; ``rate_hz`` is the rate within a drive."""

    @property
    def table(self) -> ClassTable: ...

    @property
    def rate_hz(self) -> float: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> LabelledFrame: ...

    def drive(self, index: int) -> str:
        """Name of the uninterrupted drive that frame ``index`` comes from."""
        ...


@dataclass(frozen=True)
class Entry:
    """The files of one frame; ``label`` is None where there is none, and all is ignored."""

    image: Path
    label: Path | None
    drive: str
    stamp_ns: int
    name: str


class Files(ABC):
    """Frames in files, read when they are asked for.

    ``size`` (H, W) resizes images (by area) and labels (nearest). DataError if a file is missing.
    """

    def __init__(
        self,
        entries: list[Entry],
        table: ClassTable,
        rate_hz: float,
        size: tuple[int, int] | None = None,
    ) -> None:
        self.entries, self.table, self.rate_hz, self.size = entries, table, rate_hz, size
        for entry in entries:
            for path in (entry.image, entry.label):
                if path is not None and not path.is_file():
                    raise DataError(f"file {path} is missing; frame {entry.name} needs it")

    @abstractmethod
    def read_label(self, path: Path) -> np.ndarray:
        """uint8 (H, W) class ids."""

    def __len__(self) -> int:
        return len(self.entries)

    def drive(self, index: int) -> str:
        return self.entries[check_index(index, len(self))].drive

    def __getitem__(self, index: int) -> LabelledFrame:
        entry = self.entries[check_index(index, len(self))]
        image = read_image(entry.image)
        if entry.label is None:
            label = np.full(image.shape[:2], IGNORE_LABEL, np.uint8)
        else:
            label = self.read_label(entry.label)
            self._check(image, label, entry.label)
        if self.size is not None:
            size = self.size[::-1]
            image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
            label = np.asarray(cv2.resize(label, size, interpolation=cv2.INTER_NEAREST_EXACT))
        return LabelledFrame(image, label, entry.stamp_ns, entry.name)

    def _check(self, image: np.ndarray, label: np.ndarray, path: Path) -> None:
        if image.shape[:2] != label.shape:
            raise DataError(
                f"label {path} is {label.shape}, its image {image.shape[:2]}; they must have one "
                "size"
            )
        wrong = (label >= len(self.table)) & (label != IGNORE_LABEL)
        if wrong.any():
            raise DataError(
                f"label {path} has the id {label[wrong][0]}; the class table "
                f"{self.table.name!r} has 0 to {len(self.table) - 1}, and {IGNORE_LABEL} is ignored"
            )


class Subset:
    """The frames ``indices`` of ``sequence``, in that order."""

    def __init__(self, sequence: Sequence, indices: Indices[int]) -> None:
        self._sequence, self._indices = sequence, tuple(indices)
        self.table, self.rate_hz = sequence.table, sequence.rate_hz

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> LabelledFrame:
        return self._sequence[self._indices[index]]

    def drive(self, index: int) -> str:
        return self._sequence.drive(self._indices[index])


def split_holdout(sequence: Sequence, share: float = 0.12) -> tuple[Subset, Subset]:
    """Split into (train, held out); of every drive the last frames, one block, are held out.

    A block rather than scattered frames, because a neighbour one frame away gives the answer
    away; of every drive, so that each light and street counts.
    """
    drives: dict[str, list[int]] = {}
    for index in range(len(sequence)):
        drives.setdefault(sequence.drive(index), []).append(index)
    train: list[int] = []
    held: list[int] = []
    for indices in drives.values():
        cut = len(indices) - max(1, round(share * len(indices)))
        train += indices[:cut]
        held += indices[cut:]
    return Subset(sequence, train), Subset(sequence, held)


def frames_of(sequence: Sequence) -> list[LabelledFrame]:
    """All frames in memory."""
    return [sequence[index] for index in range(len(sequence))]


def stack(frames: list[LabelledFrame]) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 (N, 3, H, W) RGB and labels uint8 (N, H, W).

    DataError if there are none, or if they differ in size.
    """
    if not frames:
        raise DataError("the sequence has no frames; there is nothing to load")
    for frame in frames:
        if frame.label.shape != frames[0].label.shape:
            raise DataError(
                f"{frame.name} is {frame.label.shape} and the first frame {frames[0].label.shape}; "
                "frames held in memory must have one size"
            )
    images = np.stack([frame.image.transpose(2, 0, 1) for frame in frames])
    return images, np.stack([frame.label for frame in frames])


def check_index(index: int, length: int) -> int:
    """``index`` counted from the front; IndexError past the ends, as for a list."""
    if not -length <= index < length:
        raise IndexError(f"frame {index} of a sequence of {length}")
    return index % length


def visible(paths: Iterable[Path], root: Path) -> list[Path]:
    """``paths`` below ``root``, sorted, without hidden ones such as macOS' ``._NAME`` files."""
    return sorted(p for p in paths if not any(q.startswith(".") for q in p.relative_to(root).parts))


def account(root: Path, found: Collection[Path], used: Collection[Path], why: str = "") -> None:
    """Log how many files of a data set were found, used and left out.

    With ``why``, which says what is wrong with those left out, DataError if there are any.
    """
    left = sorted(set(found) - set(used))
    counts = f"{len(found)} files found, {len(found) - len(left)} used, {len(left)} left out"
    if left and why:
        raise DataError(f"{left[0]} {why}; in {root} {counts}: add what is missing, or remove them")
    _LOG.log(logging.WARNING if left else logging.INFO, "%s: %s", root, counts)


def require_folder(path: Path, what: str) -> Path:
    """``path`` if it is a folder, else DataError naming it and ``what`` was expected there."""
    if not path.is_dir():
        raise DataError(f"folder {path} is missing; expected {what}")
    return path


def read_image(path: Path) -> np.ndarray:
    """RGB image uint8 (H, W, 3); DataError if the file is missing or no image."""
    return np.ascontiguousarray(_decode(path, cv2.IMREAD_COLOR)[..., ::-1])


def read_label(path: Path, table: ClassTable | None = None) -> np.ndarray:
    """Class ids uint8 (H, W) of a single-channel image, or the indices of a palette PNG.

    With ``table`` also of a picture in its classes' colours, where black is ignored unless it is a
    class. DataError if the file is missing, or holds anything else.
    """
    pixels = _decode(path, cv2.IMREAD_UNCHANGED)
    with path.open("rb") as file:
        header = file.read(26)
    if header.startswith(b"\x89PNG") and header[25] == 3:  # colour type: palette
        return _palette_indices(path)
    if header.startswith(b"\x89PNG") and header[24] < 8:  # bits of a sample
        raise DataError(
            f"label {path} is grey of {header[24]} bits, which readers stretch over 0 to 255, so "
            "that its ids are lost; save it with 8 bits a pixel"
        )
    if pixels.ndim == 3 and pixels.dtype == np.uint8 and table is not None:
        return _ids_of_colours(pixels[..., 2::-1], table, path)
    if pixels.ndim != 2 or pixels.dtype != np.uint8:
        raise DataError(
            f"label {path} is {pixels.dtype} {pixels.shape}; it must be a single-channel 8-bit "
            "image of class ids, or a palette image"
        )
    return pixels


def _palette_indices(path: Path) -> np.ndarray:
    # OpenCV would look the indices up in the palette; FFmpeg gives them as they are.
    try:
        with av.open(str(path)) as container:
            indices, _palette = next(container.decode(video=0)).to_ndarray()
    except av.FFmpegError as error:
        raise DataError(f"file {path} cannot be decoded as an image ({error})") from error
    return np.ascontiguousarray(indices)


def _ids_of_colours(picture: np.ndarray, table: ClassTable, path: Path) -> np.ndarray:
    """Class ids of an RGB picture; DataError for a colour that would be lost."""
    label = np.full(picture.shape[:2], IGNORE_LABEL, np.uint8)
    codes = rgb_code(picture)
    for number, colour in enumerate(table.colours):
        label[codes == rgb_code(np.array(colour))] = number
    unknown = label == IGNORE_LABEL
    lost = unknown & (codes != 0)
    if lost.any() or unknown.all():
        strange = tuple(int(v) for v in picture[lost if lost.any() else unknown][0])
        raise DataError(
            f"label {path} has the colour {strange}, which no class of {table.name!r} has; use the "
            "class table's colours, with black for ignored pixels, or single-channel class ids"
        )
    return label


def rgb_code(colours: np.ndarray) -> np.ndarray:
    """One integer for each RGB colour (..., 3); black is 0."""
    return colours.astype(np.int32) @ np.array([65536, 256, 1], np.int32)


def _decode(path: Path, flags: int) -> np.ndarray:
    pixels = cv2.imread(str(path), flags) if path.is_file() else None
    if pixels is None:
        raise DataError(f"file {path} cannot be decoded as an image; it is missing or cut short")
    return pixels
