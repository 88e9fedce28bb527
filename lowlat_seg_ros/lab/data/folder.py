"""A user's own data: a folder of images, one of labels, and a file with the class table.

``classes.yaml`` (or ``.json``)::

    name: my_camera
    classes:
      - {name: road, colour: [128, 64, 128]}
      - {name: other, colour: [0, 0, 0]}

``color`` is understood as well.

Labels are single-channel images of class ids, with 255 for ignored pixels, or pictures in the
classes' colours, where any other colour is ignored. :class:`ImageFolder` reads such a folder and
:class:`FolderWriter` makes one.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import yaml

from lowlat_seg_ros.frames import IGNORE_LABEL
from lowlat_seg_ros.lab.data.sequence import (
    DataError,
    LabelledFrame,
    check_index,
    check_pair,
    read_image,
    read_label,
    require_folder,
)
from lowlat_seg_ros.labels import ClassTable

_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")


class ImageFolder:
    """Images in ``root/images`` and labels of the same name (PNG) in ``root/labels``, sorted.

    Subfolders, alike in both, are drives. ``rate_hz`` is the rate within a drive. The class table
    is ``classes`` or, without it, ``root/classes.yaml`` or ``root/classes.json``.
    """

    def __init__(
        self, root: str | Path, classes: str | Path | None = None, rate_hz: float = 15.0
    ) -> None:
        self.root, self.rate_hz = Path(root), rate_hz
        if rate_hz <= 0:
            raise DataError(f"rate_hz is {rate_hz}; it must be above 0 frames a second")
        images = require_folder(self.root / "images", "the images")
        labels = require_folder(self.root / "labels", "the labels, named as their images")
        self.table = read_table(Path(classes) if classes else _table_file(self.root))
        paths = sorted(p for p in images.rglob("*") if p.suffix.lower() in _SUFFIXES)
        if not paths:
            raise DataError(f"{images} holds no image; known are {', '.join(_SUFFIXES)}")
        self._pairs = [(p, _label_of(p.relative_to(images), labels, p)) for p in paths]
        self._drives = [p.relative_to(images).parent.as_posix() for p in paths]
        # Frames are counted within their drive.
        self._numbers = [i - self._drives.index(drive) for i, drive in enumerate(self._drives)]

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, index: int) -> LabelledFrame:
        index = check_index(index, len(self))
        image_path, label_path = self._pairs[index]
        image, label = read_image(image_path), self._label(label_path)
        check_pair(image, label, label_path)
        name = (Path(self._drives[index]) / image_path.stem).as_posix()
        return LabelledFrame(image, label, round(self._numbers[index] * 1e9 / self.rate_hz), name)

    def drive(self, index: int) -> str:
        return self._drives[check_index(index, len(self))]

    def _label(self, path: Path) -> np.ndarray:
        pixels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        if pixels is not None and pixels.ndim == 3:
            return self._from_colours(read_image(path))
        label = read_label(path)
        wrong = (label >= len(self.table)) & (label != IGNORE_LABEL)
        if wrong.any():
            raise DataError(
                f"label {path} has the id {label[wrong][0]}; the class table "
                f"{self.table.name!r} has 0 to {len(self.table) - 1}, and {IGNORE_LABEL} is ignored"
            )
        return label

    def _from_colours(self, picture: np.ndarray) -> np.ndarray:
        label = np.full(picture.shape[:2], IGNORE_LABEL, np.uint8)
        for number, colour in enumerate(self.table.colours):
            label[(picture == colour).all(axis=-1)] = number
        return label


class FolderWriter:
    """Writes ``drive`` into the folder ``root`` in the layout that :class:`ImageFolder` reads.

    Further drives may go to the same folder, with the same class table. DataError if ``root`` has
    this drive already, or another class table.
    """

    def __init__(self, root: str | Path, table: ClassTable, drive: str) -> None:
        self.images, self.labels = (Path(root) / part / drive for part in ("images", "labels"))
        self._count = 0
        for folder in (self.images, self.labels):
            if folder.exists():
                raise DataError(f"folder {folder} is there already; remove it or choose another")
        existing = _table_file(Path(root))
        if existing.is_file() and read_table(existing) != table:
            raise DataError(
                f"{existing} is another class table than {table.name!r}; choose another folder"
            )
        for folder in (self.images, self.labels):
            folder.mkdir(parents=True)
        if not existing.is_file():
            write_table(existing, table)

    def write(self, frame: LabelledFrame) -> None:
        """Add the next frame of the drive, as PNG, which keeps every pixel."""
        name = f"{self._count:06d}.png"
        _write_png(self.images / name, np.ascontiguousarray(frame.image[..., ::-1]))
        _write_png(self.labels / name, frame.label)
        self._count += 1


def _write_png(path: Path, pixels: np.ndarray) -> None:
    if not cv2.imwrite(str(path), pixels):
        raise DataError(f"file {path} cannot be written; is there space left, and is it allowed?")


def read_table(path: Path) -> ClassTable:
    """The class table in a YAML or JSON file; DataError naming what is wrong with it."""
    if not path.is_file():
        raise DataError(f"file {path} is missing; it must hold the class table")
    try:
        # YAML's grammar contains JSON's.
        content = yaml.safe_load(path.read_text())
        classes = content["classes"]
        names = tuple(str(entry["name"]) for entry in classes)
        colours = [
            tuple(int(v) for v in entry["colour" if "colour" in entry else "color"])
            for entry in classes
        ]
        return ClassTable(str(content.get("name", path.parent.name)), names, tuple(colours))  # type: ignore[arg-type]
    except (yaml.YAMLError, KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"class table {path} cannot be used ({type(error).__name__}: {error}); it must hold "
            "'classes', a list of {name: ..., colour: [R, G, B]}"
        ) from error


def write_table(path: Path, table: ClassTable) -> None:
    """Write ``table`` as YAML, as :func:`read_table` reads it."""
    classes = [
        {"name": name, "colour": list(colour)}
        for name, colour in zip(table.names, table.colours, strict=True)
    ]
    content = {"name": table.name, "classes": classes}
    path.write_text(yaml.safe_dump(content, sort_keys=False, default_flow_style=None))


def _table_file(root: Path) -> Path:
    found = [p for p in (root / "classes.yaml", root / "classes.json") if p.is_file()]
    return found[0] if found else root / "classes.yaml"


def _label_of(relative: Path, labels: Path, image: Path) -> Path:
    label = labels / relative.with_suffix(".png")
    if not label.is_file():
        raise DataError(f"file {label} is missing; it is the label of {image}")
    return label
