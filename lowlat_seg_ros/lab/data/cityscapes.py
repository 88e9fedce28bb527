"""Cityscapes (Cordts et al., CVPR 2016) as it is unpacked: leftImg8bit, gtFine and, for clips,
leftImg8bit_sequence.

Every annotated image is frame 20 of a 30-frame snippet at 17 Hz. Cities recorded in snippets count
their frames from 0, so that all annotated ones are ``_000019``; cities recorded at length, such as
Frankfurt, count on (``_000294``). In both the snippet starts 19 frames before the annotated one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lowlat_seg_ros.frames import IGNORE_LABEL
from lowlat_seg_ros.lab.data.sequence import (
    DataError,
    LabelledFrame,
    account,
    check_index,
    check_pair,
    read_image,
    read_label,
    require_folder,
    resized,
    visible,
)
from lowlat_seg_ros.labels import CITYSCAPES

SPLITS = ("train", "val", "test")
RATE_HZ = 17.0
SNIPPET_FRAMES = 30
#: Index of the annotated frame in its snippet.
ANNOTATED = 19

#: The labelIds of the classes that are evaluated, in the order of their trainIds.
_LABEL_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
_NAME = re.compile(r"(?P<city>.+)_(?P<sequence>\d{6})_(?P<frame>\d{6})_gtFine_label(Train)?Ids")


@dataclass(frozen=True)
class _Entry:
    label: Path
    city: str
    sequence: str
    frame: int

    @property
    def drive(self) -> str:
        return f"{self.city}_{self.sequence}"

    def image_name(self, frame: int) -> str:
        return f"{self.city}/{self.drive}_{frame:06d}_leftImg8bit.png"


class Cityscapes:
    """The annotated frames of a split; trainIds where they were made, else labelIds, mapped.

    ``size`` (H, W) resizes images (area) and labels (nearest). A drive is a city: its snippets
    follow one another, so that a held-out block is a part of the way. Stamps count a recording's
    frames at 17 Hz. Raises ``DataError`` if a label has no image or an image no label.
    """

    def __init__(
        self, root: str | Path, split: str = "train", size: tuple[int, int] | None = None
    ) -> None:
        if split not in SPLITS:
            raise DataError(f"Cityscapes has no split {split!r}; choose one of {', '.join(SPLITS)}")
        self.root, self.split, self.size = Path(root), split, size
        self.table, self.rate_hz = CITYSCAPES, RATE_HZ
        labels = require_folder(
            self.root / "gtFine" / split, "labels by city (gtFine_trainvaltest)"
        )
        self._images = self.root / "leftImg8bit" / split
        snippets = not self._images.is_dir()  # most of whose frames have no label
        if snippets:
            self._images = self.root / "leftImg8bit_sequence" / split
        require_folder(self._images, "images by city; leftImg8bit is missing as well")
        self._entries = _entries(labels)
        used = [self._images / entry.image_name(entry.frame) for entry in self._entries]
        for path, entry in zip(used, self._entries, strict=True):
            _require_file(path, entry.label)
        if not snippets:
            found = visible(self._images.glob("*/*_leftImg8bit.png"), self._images)
            account(self._images, found, used, f"has no *_gtFine_labelIds.png in {labels}")

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, index: int) -> LabelledFrame:
        entry = self._entries[check_index(index, len(self))]
        return _frame(self._images, entry, entry.frame, self.size)

    def drive(self, index: int) -> str:
        return self._entries[check_index(index, len(self))].city

    def clip(self, index: int) -> CityscapesClip:
        """The 30 frames around annotated frame ``index``, from leftImg8bit_sequence."""
        return CityscapesClip(self, self._entries[check_index(index, len(self))])


class CityscapesClip:
    """A snippet of 30 frames; all labels but that of frame :data:`ANNOTATED` are 255 throughout."""

    def __init__(self, parent: Cityscapes, entry: _Entry) -> None:
        self.table, self.rate_hz = parent.table, parent.rate_hz
        self._size, self._entry = parent.size, entry
        self._images = parent.root / "leftImg8bit_sequence" / parent.split
        require_folder(self._images, "the snippets by city (leftImg8bit_sequence_trainvaltest)")
        for frame in self._numbers():
            _require_file(self._images / entry.image_name(frame), entry.label)

    def _numbers(self) -> range:
        first = self._entry.frame - ANNOTATED
        return range(first, first + SNIPPET_FRAMES)

    def __len__(self) -> int:
        return SNIPPET_FRAMES

    def __getitem__(self, index: int) -> LabelledFrame:
        frame = self._numbers()[check_index(index, len(self))]
        return _frame(self._images, self._entry, frame, self._size)

    def drive(self, index: int) -> str:
        check_index(index, len(self))
        return f"{self._entry.drive}_{self._entry.frame:06d}"


def _frame(images: Path, entry: _Entry, number: int, size: tuple[int, int] | None) -> LabelledFrame:
    path = images / entry.image_name(number)
    image = read_image(path)
    if number == entry.frame:
        label = _train_ids(entry.label)
        check_pair(image, label, entry.label)
    else:
        label = np.full(image.shape[:2], IGNORE_LABEL, np.uint8)
    image, label = resized(image, label, size)
    stamp_ns = round(number * 1e9 / RATE_HZ)
    return LabelledFrame(image, label, stamp_ns, path.stem.removesuffix("_leftImg8bit"))


def _entries(labels: Path) -> list[_Entry]:
    """One for each annotated frame; its trainIds, as labelIds are mapped to the same."""
    entries: dict[tuple[str, str, int], _Entry] = {}
    for pattern in ("*/*_gtFine_labelIds.png", "*/*_gtFine_labelTrainIds.png"):
        for path in visible(labels.glob(pattern), labels):
            entry = _entry(path)
            entries[entry.city, entry.sequence, entry.frame] = entry
    if not entries:
        raise DataError(
            f"{labels} has no CITY/*_gtFine_labelTrainIds.png and no *_gtFine_labelIds.png"
        )
    return [entries[key] for key in sorted(entries)]


def _entry(path: Path) -> _Entry:
    match = _NAME.fullmatch(path.stem)
    if match is None:
        raise DataError(f"{path} is no Cityscapes name; expected CITY_SEQUENCE_FRAME_gtFine_...")
    return _Entry(path, match["city"], match["sequence"], int(match["frame"]))


def _require_file(path: Path, label: Path) -> None:
    if not path.is_file():
        raise DataError(f"file {path} is missing; the label {label.name} needs it")


def _train_ids(path: Path) -> np.ndarray:
    """The label as trainIds, 255 where it is not evaluated."""
    label = read_label(path)
    if path.stem.endswith("labelIds"):
        lookup = np.full(256, IGNORE_LABEL, np.uint8)
        lookup[list(_LABEL_IDS)] = np.arange(len(_LABEL_IDS))
        return lookup[label]
    wrong = (label >= len(CITYSCAPES)) & (label != IGNORE_LABEL)
    if wrong.any():
        raise DataError(
            f"label {path} has the trainId {label[wrong][0]}; "
            f"trainIds are 0 to {len(CITYSCAPES) - 1} and {IGNORE_LABEL}"
        )
    return label
