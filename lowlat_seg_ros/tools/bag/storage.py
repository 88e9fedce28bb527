"""rosbag2 bags, mcap or sqlite3, read and written with the library rosbags, without ROS."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import sys
from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lowlat_seg_ros import images
from lowlat_seg_ros.images import ImageError
from lowlat_seg_ros.lab.data.sequence import DataError
from lowlat_seg_ros.messages import PACKAGE, Messages
from lowlat_seg_ros.tools.bag.remedy import remedy

CLOCK = "rosgraph_msgs/msg/Clock"


#: Of the entry in a bag's metadata that says how it was made.
_FACTS = "lowlat_seg_ros"


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
    """Makes messages of the types in a rosbags typestore."""

    def __init__(self, typestore: Any) -> None:
        self.typestore = typestore

    def make(self, kind: str, /, **fields: Any) -> Any:
        """As the base class says; ValueError for unknown fields."""
        values = dict(self._blank(kind))
        unknown = sorted(fields.keys() - values.keys())
        if unknown:
            raise ValueError(f"{kind} has no field {unknown[0]}; it has {', '.join(values)}")
        return self.typestore.types[kind](**{**values, **fields})

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


@dataclass(frozen=True)
class Raw:
    """One message as it is stored; ``time_ns`` is when it was recorded.

    ``connection``: what rosbags knows of its topic. ``types``: the typestore of its bag.
    """

    topic: str
    kind: str
    time_ns: int
    data: bytes
    connection: Any
    types: Any = None


class BagReader(AbstractContextManager["BagReader"]):
    """A bag that is open for reading; a context manager. DataError if it cannot be read.

    ``path``: a bag's folder, or one .mcap or .db3 file. ``topics``: type of each topic's messages,
    ``counts``: how many there are. ``facts``: what :class:`BagWriter` wrote of how the bag was
    made; empty for others' bags. ``connections``: what rosbags knows of each topic.
    """

    def __init__(self, path: Path) -> None:
        self.path, types = path, known_types()
        if path.suffix == ".bag":
            new = path.with_suffix("")
            raise DataError(
                f"{path} is a ROS 1 bag; turn it into one of ROS 2 with 'rosbags-convert --src "
                f"{path} --dst {new}', and give {new}"
            )
        from rosbags.highlevel import AnyReader

        with self._data_errors():
            self._reader = AnyReader([path], default_typestore=types)
            self._reader.open()
            self.messages = BagMessages(self._reader.typestore)
            self.connections = tuple(self._reader.connections)
            self.topics = {c.topic: c.msgtype for c in self.connections}
            self.counts = {name: info.msgcount for name, info in self._reader.topics.items()}
            metadata = self._reader.readers[0].storage.metadata
            self.facts: dict[str, Any] = json.loads((metadata.custom or {}).get(_FACTS, "{}"))

    def __exit__(self, *_: object) -> None:
        self._reader.close()

    def require(self, topic: str, kinds: Collection[str], option: str) -> None:
        """DataError unless ``topic`` is there with messages of one of ``kinds``."""
        if self.topics.get(topic) in kinds:
            return
        there = ", ".join(f"{name} ({kind})" for name, kind in sorted(self.topics.items()))
        fitting = sorted(name for name, kind in self.topics.items() if kind in kinds)
        fix = f"choose one: {option} {fitting[0]}" if fitting else "record it"
        raise DataError(
            f"{self.path} has no topic {topic} of type {' or '.join(kinds)}; it has "
            f"{there or 'none'}; {fix}"
        )

    def defines(self, topic: str) -> bool:
        """Whether the bag, or this program, knows the definition of the type of ``topic``.

        ROS 2 Humble writes none into sqlite3 bags.
        """
        return self.topics[topic] in self.messages.typestore.fielddefs

    def raw(self, topics: Collection[str] | None = None) -> Iterator[Raw]:
        """Messages in the order in which they were recorded; of all topics unless some are named.

        DataError where the bag is damaged.
        """
        chosen = [c for c in self.connections if topics is None or c.topic in topics]
        if not chosen:
            return
        with self._data_errors():
            for connection, time_ns, data in self._reader.messages(chosen):
                yield Raw(
                    connection.topic, connection.msgtype, time_ns, data, connection,
                    self.messages.typestore,
                )  # fmt: skip

    def decode(self, raw: Raw) -> Any:
        """The message; DataError if its bytes are not what its type says."""
        with self._data_errors():
            return self._reader.deserialize(raw.data, raw.kind)

    @contextmanager
    def _data_errors(self) -> Iterator[None]:
        try:
            yield
        except DataError:
            raise
        # A damaged file shows as anything, a MemoryError too: the library does not check what it
        # reads.
        except Exception as error:
            raise DataError(
                f"{self.path} cannot be read as a rosbag2 bag "
                f"({type(error).__name__}: {' '.join(str(error).split())}); {remedy(self.path)}"
            ) from error


class BagWriter(AbstractContextManager["BagWriter"]):
    """A new bag in the folder ``path``; a context manager. DataError if it is there already.

    ``facts`` are written into the bag's metadata on leaving. What raises inside leaves no bag: one
    that was not ended could not be opened. DataError, too, where the disk is full.
    """

    def __init__(self, path: Path, storage: str) -> None:
        self.messages = BagMessages(known_types())
        from rosbags.rosbag2 import StoragePlugin, Writer, WriterError

        try:
            plugin = StoragePlugin[storage.upper()]
            self._writer = Writer(path, version=Writer.VERSION_LATEST, storage_plugin=plugin)
            self._writer.open()
        except WriterError as error:
            raise DataError(f"{path} is there already; remove it or choose another") from error
        except OSError as error:
            raise DataError(f"{path} cannot be written ({error}); choose another folder") from error
        self._connections: dict[tuple[str, str], Any] = {}
        self.facts: dict[str, Any] = {}

    def __exit__(self, kind: type[BaseException] | None, *rest: Any) -> None:
        try:
            with self._disk_errors():
                if kind is None and self.facts:
                    self._writer.set_custom_data(_FACTS, json.dumps(self.facts))
                self._writer.__exit__(kind, *rest)
        except DataError:
            shutil.rmtree(self._writer.path)
            if kind is None:  # else what was raised inside says more
                raise
        else:
            if kind is not None:
                shutil.rmtree(self._writer.path)

    @contextmanager
    def _disk_errors(self) -> Iterator[None]:
        try:
            yield
        except (OSError, sqlite3.Error) as error:
            raise DataError(
                f"{self._writer.path} cannot be written ({error}); free space on its disk, or "
                "choose another folder"
            ) from error

    def write(self, topic: str, message: Any, time_ns: int) -> None:
        """Add ``message``, recorded at ``time_ns``."""
        kind, types = message.__msgtype__, self.messages.typestore
        connection = self._connection(topic, kind, typestore=types)
        with self._disk_errors():
            self._writer.write(connection, time_ns, bytes(types.serialize_cdr(message, kind)))

    def copy(self, raw: Raw) -> None:
        """Add a message of another bag as it is, with its definition."""
        source = raw.connection
        given = {"msgdef": source.msgdef.data or None, "rihs01": source.digest or None}
        if not all(given.values()):  # ROS 2 before Jazzy does not write both
            given = {"typestore": raw.types or self.messages.typestore}
        qos = source.ext.offered_qos_profiles
        connection = self._connection(raw.topic, raw.kind, offered_qos_profiles=qos, **given)
        with self._disk_errors():
            self._writer.write(connection, raw.time_ns, raw.data)

    def _connection(self, topic: str, kind: str, **given: Any) -> Any:
        if (topic, kind) not in self._connections:
            self._connections[topic, kind] = self._writer.add_connection(topic, kind, **given)
        return self._connections[topic, kind]
