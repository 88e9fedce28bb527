"""Cityscapes' video (Cordts et al., CVPR 2016) as it is unpacked: leftImg8bit_sequence and gtFine.

Every annotated image is frame 20 of a 30-frame snippet at 17 Hz. Cities recorded in snippets count
their frames from 0, so that all annotated ones are ``_000019``; cities recorded at length, such as
Frankfurt, count on (``_000294``). In both the snippet starts 19 frames before the annotated one.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from lowlat_seg_ros.frames import IGNORE_LABEL
from lowlat_seg_ros.lab.data.sequence import (
    DataError,
    Entry,
    Files,
    read_label,
    require_folder,
    visible,
)
from lowlat_seg_ros.labels import CITYSCAPES

SPLITS = ("train", "val", "test")
RATE_HZ = 17.0
#: Index of the annotated frame in its snippet.
ANNOTATED = 19

#: The labelIds of the classes that are evaluated, in the order of their trainIds.
_LABEL_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
_NAME = re.compile(r"(?P<city>.+)_(?P<sequence>\d{6})_(?P<frame>\d{6})_gtFine_label(Train)?Ids")


class Cityscapes(Files):
    """Every snippet from its first frame to its annotated one, which alone has a label.

    Each snippet is a drive. Labels are trainIds where they were made, else labelIds, mapped.
    """

    def __init__(
        self, root: str | Path, split: str = "train", size: tuple[int, int] | None = None
    ) -> None:
        if split not in SPLITS:
            raise DataError(f"Cityscapes has no split {split!r}; choose one of {', '.join(SPLITS)}")
        where = "labels by city (gtFine_trainvaltest)"
        labels = require_folder(Path(root) / "gtFine" / split, where)
        where = "the snippets by city (leftImg8bit_sequence_trainvaltest)"
        images = require_folder(Path(root) / "leftImg8bit_sequence" / split, where)
        entries = [e for label in _annotated(labels) for e in _snippet(images, label)]
        super().__init__(entries, CITYSCAPES, RATE_HZ, size)

    def read_label(self, path: Path) -> np.ndarray:
        label = read_label(path)
        if not path.stem.endswith("labelIds"):
            return label
        if (wrong := (label > _LABEL_IDS[-1]) & (label != IGNORE_LABEL)).any():
            raise DataError(
                f"label {path} has the id {label[wrong][0]}; Cityscapes' labelIds are 0 to "
                f"{_LABEL_IDS[-1]}, and {IGNORE_LABEL} for a license plate (-1): write it with "
                "cityscapesScripts"
            )
        lookup = np.full(256, IGNORE_LABEL, np.uint8)
        lookup[list(_LABEL_IDS)] = np.arange(len(_LABEL_IDS))
        return lookup[label]


def _annotated(labels: Path) -> list[Path]:
    """One label for each annotated frame: its trainIds if they are there, or its labelIds."""
    found: dict[str, Path] = {}
    for kind in ("_gtFine_labelIds.png", "_gtFine_labelTrainIds.png"):
        for path in visible(labels.glob(f"*/*{kind}"), labels):
            found[path.name.removesuffix(kind)] = path
    if not found:
        raise DataError(
            f"{labels} has no CITY/*_gtFine_labelTrainIds.png and no *_gtFine_labelIds.png"
        )
    return [found[name] for name in sorted(found)]


def _snippet(images: Path, label: Path) -> list[Entry]:
    """The frames up to the annotated one."""
    match = _NAME.fullmatch(label.stem)
    if match is None:
        raise DataError(f"{label} is no Cityscapes name; expected CITY_SEQUENCE_FRAME_gtFine_...")
    city, last = match["city"], int(match["frame"])
    entries = []
    for number in range(last - ANNOTATED, last + 1):
        name = f"{city}_{match['sequence']}_{number:06d}"
        image = images / city / f"{name}_leftImg8bit.png"
        drive = f"{city}_{match['sequence']}_{last:06d}"
        stamp_ns = round(number * 1e9 / RATE_HZ)
        entries.append(Entry(image, label if number == last else None, drive, stamp_ns, name))
    return entries
