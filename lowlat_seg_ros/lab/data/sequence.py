"""What every data set is to the rest of the project: an indexed sequence of labelled frames."""

from __future__ import annotations

import logging
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
    if not 0.0 < share < 1.0:
        raise ValueError(f"share is {share}; it must lie between 0 and 1")
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


def stack(sequence: Sequence) -> tuple[np.ndarray, np.ndarray]:
    """All frames in memory: images uint8 (N, 3, H, W) RGB and labels uint8 (N, H, W).

    DataError if the frames differ in size.
    """
    if len(sequence) == 0:
        raise DataError("the sequence has no frames; there is nothing to load")
    height, width = sequence[0].label.shape
    images = np.empty((len(sequence), 3, height, width), np.uint8)
    labels = np.empty((len(sequence), height, width), np.uint8)
    for index in range(len(sequence)):
        frame = sequence[index]
        if frame.label.shape != (height, width):
            raise DataError(
                f"{frame.name} is {frame.label.shape} and the first frame {(height, width)}; "
                "frames held in memory must have one size"
            )
        images[index] = frame.image.transpose(2, 0, 1)
        labels[index] = frame.label
    return images, labels


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


def resized(
    image: np.ndarray, label: np.ndarray, size: tuple[int, int] | None
) -> tuple[np.ndarray, np.ndarray]:
    """Image (by area) and label (nearest) at ``size`` (H, W); as they are without one."""
    if size is None:
        return image, label
    image = cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA)
    return image, cv2.resize(label, size[::-1], interpolation=cv2.INTER_NEAREST_EXACT)


def check_pair(image: np.ndarray, label: np.ndarray, path: Path) -> None:
    """DataError if the label read from ``path`` differs in size from its image."""
    if image.shape[:2] != label.shape:
        raise DataError(
            f"label {path} is {label.shape}, its image {image.shape[:2]}; they must have one size"
        )


def _decode(path: Path, flags: int) -> np.ndarray:
    if not path.is_file():
        raise DataError(f"file {path} is missing")
    pixels = cv2.imread(str(path), flags)
    if pixels is None:
        raise DataError(f"file {path} cannot be decoded as an image; it may be cut short")
    return pixels
