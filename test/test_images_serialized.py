"""Images viewed inside serialized messages, against rclpy's own deserialisation."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("rclpy", reason="needs ROS 2")

from builtin_interfaces.msg import Time
from rclpy.serialization import deserialize_message, serialize_message
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header

from lowlat_seg_ros.images import ImageError, to_rgb
from lowlat_seg_ros.images.raw import Fault
from lowlat_seg_ros.messages import COMPRESSED, IMAGE, serialized_image
from lowlat_seg_ros.ros.outputs import MESSAGES

U32 = st.integers(0, 2**32 - 1)
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=9)
HEADERS = st.builds(
    lambda sec, nanosec, frame: Header(stamp=Time(sec=sec, nanosec=nanosec), frame_id=frame),
    st.integers(-(2**31), 2**31 - 1),
    U32,
    TEXT,
)
IMAGES = st.builds(
    Image, header=HEADERS, height=U32, width=U32, encoding=TEXT,
    is_bigendian=st.integers(0, 255), step=U32, data=st.binary(max_size=40),
)  # fmt: skip
FILES = st.builds(CompressedImage, header=HEADERS, format=TEXT, data=st.binary(max_size=40))
GRID = MESSAGES.image(
    Header(frame_id="cam"), np.arange(48, dtype=np.uint8).reshape(4, 4, 3), "rgb8"
)


def kind_of(message: Any) -> str:
    return IMAGE if isinstance(message, Image) else COMPRESSED


@given(st.one_of(IMAGES, FILES))
def test_view_is_what_rclpy_deserialises(message: Any) -> None:
    data = serialize_message(message)
    seen, rclpys = MESSAGES.read(kind_of(message), data), deserialize_message(data, type(message))
    for name in rclpys.get_fields_and_field_types():
        if name != "data":
            assert getattr(seen, name) == getattr(rclpys, name)
    assert bytes(seen.data) == bytes(rclpys.data)
    assert not seen.data.size or np.shares_memory(seen.data, np.frombuffer(data, np.uint8))


def laid_out(message: Image, order: str, pad: bytes = b"\0") -> bytes:
    """``message`` in CDR, by hand, with ``order`` as in struct and ``pad`` between fields."""

    def text(value: str, more: bytes = b"") -> bytes:
        octets = value.encode() + b"\0"
        octets = struct.pack(f"{order}I", len(octets)) + octets + more
        return octets + pad * (-len(octets) % 4)

    stamp, data = message.header.stamp, bytes(message.data)
    return b"".join((
        b"\0\0\0\0" if order == ">" else b"\0\1\0\0",
        struct.pack(f"{order}iI", stamp.sec, stamp.nanosec), text(message.header.frame_id),
        struct.pack(f"{order}II", message.height, message.width),
        text(message.encoding, bytes([message.is_bigendian])),
        struct.pack(f"{order}II", message.step, len(data)), data,
    ))  # fmt: skip


@given(IMAGES)
def test_both_orders_of_bytes_are_read(message: Image) -> None:
    data = laid_out(message, ">")  # as from a machine of that kind, which nobody here has
    assert deserialize_message(data, Image) == message  # rclpy takes it for the same
    seen = MESSAGES.read(IMAGE, data)
    assert (seen.header, seen.height, seen.step) == (message.header, message.height, message.step)
    assert (seen.encoding, bytes(seen.data)) == (message.encoding, bytes(message.data))


def test_every_message_that_is_cut_short_is_an_error_or_the_whole() -> None:
    data = serialize_message(GRID)
    for length in range(len(data)):
        with pytest.raises(ImageError, match=r"the message (holds|begins with).*: ") as raised:
            MESSAGES.read(IMAGE, data[:length])
        assert raised.value.fault is Fault.MESSAGE


@given(st.binary(max_size=200), st.sampled_from([b"", b"\0\0\0\0", b"\0\1\0\0"]))
def test_garbage_is_an_image_or_an_error(garbage: bytes, begin: bytes) -> None:
    for kind in (IMAGE, COMPRESSED):
        try:
            seen = MESSAGES.read(kind, begin + garbage)
        except ImageError:
            continue
        assert seen.data.size <= len(garbage)


def test_pixels_are_seen_in_place() -> None:
    data = serialize_message(GRID)
    rgb = to_rgb(MESSAGES.read(IMAGE, data))
    assert np.shares_memory(rgb, np.frombuffer(data, np.uint8))
    np.testing.assert_array_equal(rgb, to_rgb(GRID))


@pytest.mark.parametrize("cut", [lambda p: p, lambda p: p[:, 1:-2], lambda p: p[::2].T])
@given(HEADERS)
def test_serialised_mask_is_byte_for_byte_rclpys(
    cut: Callable[[np.ndarray], np.ndarray], header: Header
) -> None:
    pixels = cut(np.random.default_rng(0).integers(0, 256, (7, 9), np.uint8))
    for picture, encoding in ((pixels, "mono8"), (np.stack([pixels] * 3, axis=-1), "rgb8")):
        message = MESSAGES.image(header, picture, encoding)
        ours = serialized_image(header, picture, encoding)
        # Between fields rclpy leaves whatever was in memory.
        zeros, ones = (laid_out(message, "<", pad) for pad in (b"\0", b"\xff"))
        count = [index for index in range(len(zeros)) if zeros[index] == ones[index]]
        rclpys = serialize_message(message)
        assert len(ours) == len(rclpys) == len(zeros)
        assert [ours[i] for i in count] == [rclpys[i] for i in count] == [zeros[i] for i in count]
