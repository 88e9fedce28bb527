"""ROS messages without ROS: their definitions, made by name, to bytes and back."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from lowlat_seg_ros import images
from lowlat_seg_ros.images import ImageError
from lowlat_seg_ros.lab.data.sequence import DataError
from lowlat_seg_ros.messages import PACKAGE, Messages

CLOCK = "rosgraph_msgs/msg/Clock"


def known_types() -> Any:
    """A rosbags typestore of ROS 2 Jazzy's messages and this package's own.

    DataError if rosbags or the definitions are missing.
    """
    try:
        from rosbags.typesys import Stores, get_types_from_msg, get_typestore
    except ImportError as error:
        raise DataError(
            f"bags are read and written with the library rosbags, which is missing ({error}); "
            "install it with: pip install rosbags"
        ) from error
    store, own = get_typestore(Stores.ROS2_JAZZY), {}
    for path in sorted(definitions().glob("*.msg")):
        own.update(get_types_from_msg(path.read_text(), f"{PACKAGE}/msg/{path.stem}"))
    store.register(own)
    return store


def definitions() -> Path:
    """The folder of this package's .msg files: of the checkout, else as installed."""
    prefixes = [*os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep), sys.prefix]
    folders = [Path(__file__).resolve().parents[3] / "msg"]
    folders += [Path(prefix) / "share" / PACKAGE / "msg" for prefix in prefixes if prefix]
    for folder in folders:
        if (folder / "FrameReport.msg").is_file():
            return folder
    raise DataError(
        f"FrameReport.msg is in none of {', '.join(map(str, folders))}; install the package again"
    )


class BagMessages(Messages):
    """Makes messages of the types in a rosbags typestore, and turns them to bytes."""

    def __init__(self, typestore: Any) -> None:
        self.typestore = typestore

    def make(self, kind: str, /, **fields: Any) -> Any:
        """As the base class says; ValueError for unknown fields."""
        values = dict(self._blank(kind))
        unknown = sorted(fields.keys() - values.keys())
        if unknown:
            raise ValueError(f"{kind} has no field {unknown[0]}; it has {', '.join(values)}")
        return self.typestore.types[kind](**{**values, **fields})

    def serialize(self, message: Any) -> bytes:
        """As it stands in a bag: CDR."""
        return bytes(self.typestore.serialize_cdr(message, message.__msgtype__))

    def _blank(self, kind: str) -> Iterator[tuple[str, Any]]:
        """Names and first values of the fields of ``kind``."""
        from rosbags.interfaces import Nodetype

        for name, (node, detail) in self.typestore.fielddefs[kind][1]:
            if node is Nodetype.NAME:
                yield name, self.make(detail)
            elif node is Nodetype.BASE:
                yield name, _ZEROS.get(detail[0], 0)
            else:  # an array, of fixed length or not
                (inner, item), length = detail
                count = length if node is Nodetype.ARRAY else 0
                if inner is Nodetype.BASE and item[0] != "string":
                    yield name, np.zeros(count, _DTYPES.get(item[0], item[0]))
                else:
                    yield name, [self.make(item) if inner is Nodetype.NAME else ""] * count


_ZEROS: dict[str, Any] = {"string": "", "bool": False, "float32": 0.0, "float64": 0.0}
_DTYPES = {"byte": "uint8", "char": "uint8", "octet": "uint8"}


def to_ids(message: Any) -> np.ndarray:
    """A mono8 ``sensor_msgs/Image``, such as a mask, as uint8 (H, W); DataError for others."""
    try:
        return images.to_ids(message)
    except ImageError as error:
        raise DataError(f"a mask or label cannot be read: {error}") from error
