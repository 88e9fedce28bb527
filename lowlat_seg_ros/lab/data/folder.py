"""A user's own data: a folder of images, one of labels, and a file with the class table.

``classes.yaml`` (or ``.json``)::

    name: my_camera
    classes:
      - {name: road, colour: [128, 64, 128]}
      - {name: other, colour: [0, 0, 0]}

``color`` is understood as well. A class's id is its place in the list, from 0 on.

Labels are single-channel or palette images of class ids, with 255 for ignored pixels, or pictures
in the classes' colours, where black is ignored unless it is a class. What would be lost is refused:
another colour or id, an image without label, a label without image. Hidden files are left out.
:class:`ImageFolder` reads such a folder and :class:`FolderWriter` makes one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

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
        found = [p for p in visible(labels.rglob("*"), labels) if p.suffix.lower() in _SUFFIXES]
        labelled = {p.with_suffix(".png"): p for p in found if p.suffix.lower() == ".png"}
        entries, numbers = [], Counter[str]()  # frames are counted within their drive
        for path in paths:
            inner = path.relative_to(images)
            drive, name = inner.parent.as_posix(), inner.with_suffix("").as_posix()
            stamp_ns = round(numbers[drive] * 1e9 / rate_hz)
            numbers[drive] += 1
            wanted = labels / inner.with_suffix(".png")
            label = labelled.get(wanted) or _missing(wanted, found)
            entries.append(Entry(path, label, drive, stamp_ns, name))
        if twice := [name for name, n in Counter(entry.name for entry in entries).items() if n > 1]:
            raise DataError(
                f"{images} has several images {twice[0]} that differ in their ending alone, and "
                "one label cannot be that of all; remove or rename all but one"
            )
        super().__init__(entries, table, rate_hz)
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


def _missing(path: Path, found: Iterable[Path]) -> Path:
    """``path`` of a label that is not there.

    DataError, with what to do, where there is one with another ending or a longer name.
    """
    beside = [p for p in found if p.parent == path.parent]
    close = [p for p in beside if p.stem == path.stem or p.stem.startswith(f"{path.stem}_")]
    if not close:
        return path
    if close[0].suffix.lower() != ".png":
        fix = "save it as PNG, as JPEG and others would change ids at edges"
    else:
        fix = f"rename it to {path.name}"
    raise DataError(f"label {path} is missing, and there is {close[0].name}; {fix}")


def read_table(path: Path) -> ClassTable:
    """The class table in a YAML or JSON file; DataError naming what is wrong with it."""
    if not path.is_file():
        raise DataError(f"file {path} is missing; it must hold the class table")
    try:
        # YAML's grammar contains JSON's.
        content = yaml.safe_load(path.read_text())
        if not isinstance(content, dict) or not isinstance(content.get("classes"), list):
            raise ValueError("it has no list 'classes'")
        classes = [_class(number, entry) for number, entry in enumerate(content["classes"])]
        for number, part in ((0, "name"), (1, "colour")):
            values = Counter(entry[number] for entry in classes)
            if twice := [value for value, count in values.items() if count > 1]:
                raise ValueError(f"two classes have the {part} {twice[0]}, so one would be lost")
        names, colours = tuple(n for n, _ in classes), tuple(c for _, c in classes)
        return ClassTable(str(content.get("name", path.parent.name)), names, colours)
    except (yaml.YAMLError, ValueError) as error:
        raise DataError(
            f"class table {path} cannot be used ({' '.join(str(error).split())}); it must hold "
            "'classes', a list of {name: ..., colour: [R, G, B]} in the order of their ids"
        ) from error


def _class(number: int, entry: Any) -> tuple[str, tuple[int, int, int]]:
    """Name and colour of the class that stands in the ``number``-th place; or ValueError."""
    if not isinstance(entry, dict):
        raise ValueError(f"entry {number} is {entry!r}, not a name and a colour")
    name, colour = entry.get("name"), entry.get("colour", entry.get("color"))
    if not isinstance(name, str):
        raise ValueError(f"entry {number} has the name {name!r}, no text: put it in quotes")
    if not isinstance(colour, list) or not all(type(value) is int for value in colour):
        raise ValueError(f"{name} has the colour {colour!r}, which is no list of whole numbers")
    if len(colour) != 3:
        raise ValueError(f"{name} has the colour {colour}, which has not three numbers")
    if entry.get("id", number) != number:
        raise ValueError(
            f"{name} has the id {entry['id']}, but ids are places in the list, from 0 on: put it "
            "there, and change the labels where ids are left out"
        )
    return name, (colour[0], colour[1], colour[2])


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
