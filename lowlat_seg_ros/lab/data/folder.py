"""A user's own data: a folder of images, one of labels, and a file with the class table.

``classes.yaml`` (or ``.json``)::

    name: my_camera
    classes:
      - {name: road, colour: [128, 64, 128]}
      - {name: other, colour: [0, 0, 0]}

``color`` is understood as well.

Labels are single-channel or palette images of class ids, with 255 for ignored pixels, or pictures
in the classes' colours, where black is ignored unless it is a class. What would be lost is refused:
another colour or id, an image without label, a label without image. Hidden files are left out.
:class:`ImageFolder` reads such a folder and :class:`FolderWriter` makes one.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import yaml

from lowlat_seg_ros.lab.data.sequence import (
    DataError,
    Entry,
    Files,
    LabelledFrame,
    account,
    read_label,
    require_folder,
    visible,
)
from lowlat_seg_ros.labels import ClassTable

_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")


class ImageFolder(Files):
    """Images in ``root/images`` and labels of the same name (PNG) in ``root/labels``, sorted.

    Subfolders, alike in both, are drives. ``rate_hz`` is the rate within a drive. The class table
    is ``root/classes.yaml`` or ``root/classes.json``.
    """

    def __init__(self, root: str | Path, rate_hz: float = 15.0) -> None:
        if rate_hz <= 0:
            raise DataError(f"rate_hz is {rate_hz}; it must be above 0 frames a second")
        images = require_folder(Path(root) / "images", "the images")
        labels = require_folder(Path(root) / "labels", "the labels, named as their images")
        table = read_table(_table_file(Path(root)))
        files = [p for p in visible(images.rglob("*"), images) if p.is_file()]
        paths = [p for p in files if p.suffix.lower() in _SUFFIXES]
        if not paths:
            raise DataError(f"{images} holds no image; known are {', '.join(_SUFFIXES)}")
        entries, numbers = [], Counter[str]()  # frames are counted within their drive
        for path in paths:
            inner = path.relative_to(images)
            drive, name = inner.parent.as_posix(), inner.with_suffix("").as_posix()
            stamp_ns = round(numbers[drive] * 1e9 / rate_hz)
            numbers[drive] += 1
            label = labels / inner.with_suffix(".png")
            entries.append(Entry(path, label, drive, stamp_ns, name))
        super().__init__(entries, table, rate_hz)
        found = [p for p in visible(labels.rglob("*"), labels) if p.suffix.lower() in _SUFFIXES]
        why = "belongs to no image; a label is a PNG with the name and subfolder of its image"
        account(labels, found, [entry.label for entry in entries if entry.label], why)
        account(images, files, paths)

    def read_label(self, path: Path) -> np.ndarray:
        return read_label(path, self.table)


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
        for folder, pixels in (
            (self.images, np.ascontiguousarray(frame.image[..., ::-1])),
            (self.labels, frame.label),
        ):
            path = folder / f"{self._count:06d}.png"
            if not cv2.imwrite(str(path), pixels):
                raise DataError(
                    f"file {path} cannot be written; is there space left, and is it allowed?"
                )
        self._count += 1


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
