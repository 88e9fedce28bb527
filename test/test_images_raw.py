"""Image messages to RGB arrays: every encoding, padding, byte order and fault."""

from __future__ import annotations

import copy
import re
from array import array
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("sensor_msgs", reason="needs ROS 2")

from rclpy.serialization import serialize_message
from sensor_msgs.msg import Image
from std_msgs.msg import Header

from lowlat_seg_ros.images import ENCODINGS, SAMPLE_BITS, Fault, ImageError, to_ids, to_rgb
from lowlat_seg_ros.ros.outputs import MESSAGES


def message(pixels: np.ndarray, encoding: str, padding: int = 0) -> Image:
    height, width = pixels.shape[:2]
    rows = np.ascontiguousarray(pixels).view(np.uint8).reshape(height, -1)
    rows = np.pad(rows, ((0, 0), (0, padding)), constant_values=0xA5)
    data = array("B", rows.tobytes())
    return Image(height=height, width=width, encoding=encoding, step=rows.shape[1], data=data)


def noise(*shape: int, dtype: type = np.uint8) -> np.ndarray:
    return np.random.default_rng(0).integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)


sizes = st.integers(1, 9)

#: The channels of a pixel that are its red, green and blue.
COLOURS = {
    "mono": [0, 0, 0],
    "rgb": [0, 1, 2],
    "bgr": [2, 1, 0],
    "rgba": [0, 1, 2],
    "bgra": [2, 1, 0],
}


def channels_of(encoding: str) -> int:
    return {"mono": 1, "rgba": 4, "bgra": 4}.get(encoding, 3)


BAYER = [f"bayer_{order}" for order in ("rggb", "bggr", "gbrg", "grbg")]

#: The constants of sensor_msgs/image_encodings.hpp: pictures, then what is none or does not say.
PICTURES = {
    *(f"{name}{bits}" for name in (*COLOURS, *BAYER) for bits in (8, 16)),
    *("uyvy", "yuyv", "yuv422", "yuv422_yuy2", "nv21", "nv24", "8UC1", "8UC3", "8UC4"),
}
_KINDS = ("8U", "8S", "16U", "16S", "32S", "32F", "64F")
MATRICES = {f"{kind}C{n}" for kind in _KINDS for n in range(1, 5)} - PICTURES


def test_every_encoding_of_cameras_is_known() -> None:
    assert set(ENCODINGS) == PICTURES | {"nv12", "i420", "yuv420", "yv12"}


@pytest.mark.parametrize("encoding", sorted(MATRICES))
def test_matrix_that_is_no_picture_is_refused_with_what_to_do(encoding: str) -> None:
    fault, text = fault_of(encoding=encoding)
    assert fault is Fault.ENCODING
    assert f"encoding is {encoding!r}" in text
    is_depth = encoding in ("16UC1", "16SC1", "32FC1", "64FC1")
    assert ("depth (REP 118)" in text) is is_depth
    assert ("remap to the camera's colour images" if is_depth else "encoding='bgr8'") in text


@pytest.mark.parametrize(("name", "like"), [("8UC1", "mono8"), ("8UC3", "bgr8"), ("8UC4", "bgra8")])
def test_matrices_of_opencv_have_its_order_of_colours(name: str, like: str) -> None:
    pixels = noise(4, 6, int(name[-1]))
    np.testing.assert_array_equal(to_rgb(message(pixels, name)), to_rgb(message(pixels, like)))


@given(st.sampled_from(sorted(COLOURS)), sizes, sizes, st.integers(0, 5))
def test_eight_bit_colours_are_exact_whatever_the_padding(
    encoding: str, height: int, width: int, padding: int
) -> None:
    pixels = noise(height, width, channels_of(encoding))
    wanted = pixels[..., COLOURS[encoding]]
    np.testing.assert_array_equal(to_rgb(message(pixels, f"{encoding}8", padding)), wanted)


@pytest.mark.parametrize("padding", [0, 3])
def test_rgb8_is_not_copied(padding: int) -> None:
    msg = message(noise(4, 5, 3), "rgb8", padding)
    assert np.shares_memory(to_rgb(msg), np.frombuffer(msg.data, np.uint8))


@given(st.sampled_from(sorted(COLOURS)), st.integers(0, 4), st.booleans())
def test_sixteen_bits_are_scaled_and_rounded_in_either_byte_order(
    encoding: str, padding: int, big: bool
) -> None:
    wide = noise(4, 6, channels_of(encoding), dtype=np.uint16)
    wide.flat[:2] = 0, 65535
    wanted = ((wide.astype(int) + 128) // 257)[..., COLOURS[encoding]]
    msg = message(wide.astype(">u2" if big else "<u2"), f"{encoding}16", padding)
    msg.is_bigendian = int(big)
    np.testing.assert_array_equal(to_rgb(msg), wanted)


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("padding", [0, 4])
@pytest.mark.parametrize("order", ["rggb", "bggr", "gbrg", "grbg"])
def test_bayer_shows_the_colour_of_its_filter(order: str, padding: int, bits: int) -> None:
    # A wall of one colour, as a sensor with this filter sees it.
    wall = np.array([200, 120, 40], np.uint8)
    sensor = np.zeros((8, 8), np.uint8)
    for site, letter in enumerate(order):
        row, column = divmod(site, 2)
        sensor[row::2, column::2] = wall["rgb".index(letter)]
    pixels = sensor if bits == 8 else sensor * np.uint16(257)
    rgb = to_rgb(message(pixels, f"bayer_{order}{bits}", padding))
    np.testing.assert_array_equal(rgb, np.broadcast_to(wall, rgb.shape))


def yuv_to_rgb(luma: np.ndarray, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """BT.601 of limited range, in exact arithmetic (ITU-R BT.601-7, 8 bits)."""
    y, u, v = 255 / 219 * (luma - 16.0), u - 128.0, v - 128.0
    kr, kb, chroma = 0.299, 0.114, 255 / 224
    red, blue = y + chroma * 2 * (1 - kr) * v, y + chroma * 2 * (1 - kb) * u
    green = (y - kr * red - kb * blue) / (1 - kr - kb)
    return np.clip(np.rint(np.stack([red, green, blue], -1)), 0, 255)


def assert_close(rgb: np.ndarray, wanted: np.ndarray) -> None:
    """But for the rounding of fixed-point factors, whose last place differs."""
    assert np.abs(rgb.astype(int) - wanted).max() <= 2
    assert np.ptp(wanted) > 200  # not a grey wall


@pytest.mark.parametrize("padding", [0, 3])
@pytest.mark.parametrize("encoding", ["yuv422", "uyvy", "yuv422_yuy2", "yuyv"])
def test_both_orders_of_yuv422(encoding: str, padding: int) -> None:
    luma = np.clip(noise(4, 6), 16, 235)
    u, v = noise(2, 4, 3)  # one for two pixels beside each other
    packed = np.empty((4, 6, 2), np.uint8)
    place = 1 if encoding in ("yuv422", "uyvy") else 0
    packed[..., place] = luma
    packed[:, ::2, 1 - place], packed[:, 1::2, 1 - place] = u, v
    rgb = to_rgb(message(packed, encoding, padding))
    assert_close(rgb, yuv_to_rgb(luma, u.repeat(2, 1), v.repeat(2, 1)))


def below(luma: np.ndarray, u: np.ndarray, v: np.ndarray, encoding: str, padding: int) -> Image:
    """A message with the colours after the rows of Y, which are padded."""
    first, second = (v, u) if encoding in ("nv21", "yv12") else (u, v)
    if encoding.startswith("nv"):  # in turn
        rows, gap = [np.dstack([first, second]).reshape(len(u), -1)], 2 if encoding == "nv24" else 1
    else:
        rows, gap = [first, second], 0.5
    msg = message(luma, encoding, padding)
    for plane in rows:
        padded = np.pad(plane, ((0, 0), (0, int(gap * padding))), constant_values=0xA5)
        msg.data.frombytes(padded.tobytes())
    return msg


SHARED = {"nv12": 2, "nv21": 2, "nv24": 1, "i420": 2, "yuv420": 2, "yv12": 2}


@pytest.mark.parametrize("padding", [0, 6])
@pytest.mark.parametrize("encoding", SHARED)
def test_colours_below_the_rows_of_y(encoding: str, padding: int) -> None:
    side = SHARED[encoding]
    luma = np.clip(noise(6, 8), 16, 235)
    u, v = noise(2, 6 // side, 8 // side)
    rgb = to_rgb(below(luma, u, v, encoding, padding))
    wide = (plane.repeat(side, 0).repeat(side, 1) for plane in (u, v))
    assert_close(rgb, yuv_to_rgb(luma, *wide))


def test_444_is_what_opencv_makes_of_422_where_each_colour_is_there_twice() -> None:
    luma, (u, v) = noise(16, 16), noise(2, 16, 8).repeat(2, -1)
    packed = np.dstack([luma, np.where(np.arange(16) % 2, v, u)])
    found = to_rgb(below(luma, u, v, "nv24", 0))
    assert np.abs(found.astype(int) - to_rgb(message(packed, "yuyv"))).max() <= 2


@pytest.mark.parametrize(
    ("encoding", "factor"), [("nv12", 1.5), ("i420", 1.5), ("nv21", 2), ("nv24", 3)]
)
def test_step_may_count_the_colours_of_rows_that_are_not_padded(
    encoding: str, factor: float
) -> None:
    side = SHARED[encoding]
    msg = below(noise(6, 8), *noise(2, 6 // side, 8 // side), encoding, 0)
    wanted = to_rgb(msg)
    msg.step = int(8 * factor)
    np.testing.assert_array_equal(to_rgb(msg), wanted)


@pytest.mark.parametrize("name", ENCODINGS)
def test_every_encoding_gives_an_image_the_engine_takes(name: str) -> None:
    encoding = ENCODINGS[name]
    rows = int(8 * encoding.chroma.rows) if encoding.chroma else 8
    msg = message(noise(rows, 10, encoding.channels * (1 + encoding.wide)), name)
    msg.height = 8
    rgb = to_rgb(msg)
    assert (rgb.shape, rgb.dtype) == ((8, 10, 3), np.uint8)


SIZES = {"rgb8": (12, 2), "bayer_rggb8": (12, 8), "mono16": (12, 4), "nv12": (8, 8), "nv24": (4, 8)}


@pytest.mark.parametrize("encoding", SIZES)
@pytest.mark.parametrize(
    "kind", [bytes, bytearray, list, memoryview, np.asarray, lambda d: np.repeat(d, 2)[::2]]
)
def test_data_may_be_any_buffer(encoding: str, kind: Callable[[Any], Any]) -> None:
    """Other libraries, and later releases of ROS, do not give an array.array."""
    own = message(noise(12, 8), encoding)
    own.height, own.width = SIZES[encoding]
    other = SimpleNamespace(
        height=own.height, width=own.width, step=own.step, encoding=encoding, is_bigendian=0,
        data=kind(own.data),
    )  # fmt: skip
    np.testing.assert_array_equal(to_rgb(other), to_rgb(own))


def fault_of(**fields: object) -> tuple[Fault, str]:
    msg = message(noise(4, 6, 3), "rgb8")
    for name, value in fields.items():
        setattr(msg, name, value)
    with pytest.raises(ImageError) as caught:
        to_rgb(msg)
    return caught.value.fault, str(caught.value)


@pytest.mark.parametrize(
    ("fields", "fault", "says"),
    [
        ({"height": 0}, Fault.SIZE, "6x0"),
        ({"width": 0}, Fault.SIZE, "0x4"),
        ({"step": 17}, Fault.STEP, "6 pixels of rgb8 take 18"),
        ({"step": 0, "data": array("B", bytes(71))}, Fault.STEP, "step is 0"),
        ({"width": 2**32 - 1}, Fault.STEP, "step is 18"),
        ({"width": 4, "height": 6}, Fault.LENGTH, "18 * 6 = 108"),  # turned, but for its step
        ({"height": 2**32 - 1}, Fault.LENGTH, "data holds 72 bytes"),
        ({"height": 5}, Fault.LENGTH, "18 * 5 = 90"),
        ({"step": 19}, Fault.LENGTH, "19 * 4 = 76"),
        ({"data": array("B")}, Fault.LENGTH, "data holds 0 bytes"),
        ({"encoding": ""}, Fault.ENCODING, "have the camera publish one of rgb8"),
        ({"encoding": "RGB8"}, Fault.ENCODING, "'RGB8'; did you mean rgb8?"),
        ({"encoding": "32FC1"}, Fault.ENCODING, "'32FC1'"),
        ({"encoding": "rgba8"}, Fault.STEP, "take 24"),
    ],
)
def test_fault_names_value_rule_and_fix(fields: dict[str, object], fault: Fault, says: str) -> None:
    found, text = fault_of(**fields)
    assert found is fault
    assert says in text
    assert ": " in text or ";" in text  # the fix follows


#: What drivers of V4L2, GenICam and FFmpeg call encodings, and what that is here.
ALIASES = {
    **{"rgb24": "rgb8", "BGR": "bgr8", " bgr8": "bgr8", "MONO_8": "mono8"},
    **{"GREY": "mono8", "gray": "mono8", "Y16": "mono16", "R8": "mono8"},
    **{"yuyv422": "yuyv", "YUY2": "yuyv", "UYVY422": "uyvy", "NV12": "nv12"},
    **{"yuv420p": "i420", "YU12": "i420", "YVU420": "yv12"},
    **{"BayerRG8": "bayer_rggb8", "BayerGB16": "bayer_gbrg16", "SGRBG8": "bayer_grbg8"},
}
#: Samples of fewer bits than their two bytes have.
NARROW = {"bayer_rggb12": "bayer_rggb16", "SBGGR10": "bayer_bggr16", "BayerGR12": "bayer_grbg16",
          "mono12": "mono16", "Y14": "mono16"}  # fmt: skip
#: Pixels lie otherwise than in any encoding, or in either of two.
UNKNOWN = ["yuv422p", "yuv444", "argb8", "xrgb8888", "RGB888", "bayer_rggb10p", "SBGGR10_CSI2P",
           "p010", "Z16", "mjpeg", "h264", "BGRA32"]  # fmt: skip


@pytest.mark.parametrize("name", [*ALIASES, *NARROW, *UNKNOWN])
def test_other_names_of_encodings_are_answered_with_the_right_one_or_none(name: str) -> None:
    """One that merely looks alike would give a mask of pixels in the wrong order."""
    _, text = fault_of(encoding=name)
    advised = re.findall(r"did you mean (\w+)(?:, with the parameter (\S+) (\d+).*)?\?", text)
    if name in UNKNOWN:
        assert advised == []
        return
    ((encoding, parameter, bits),) = advised
    assert encoding == (ALIASES | NARROW)[name]
    if name in NARROW:
        assert (parameter, f"{int(bits)}" in name) == ("advanced.bits_per_sample", True)
        assert int(bits) in SAMPLE_BITS


@pytest.mark.parametrize(
    "encoding", ["rgb8", "bgra8", "mono16", "yuyv", "bayer_rggb8", "nv12", "i420"]
)
@pytest.mark.parametrize("step", ["none", "width", "twice the width"])
def test_rows_that_are_not_padded_are_read_whatever_their_step(encoding: str, step: str) -> None:
    """Bridges of simulators write none, and drivers that of another encoding (usb_cam 316)."""
    channels = ENCODINGS[encoding].channels * (2 if ENCODINGS[encoding].wide else 1)
    right = message(noise(6, 8, channels), encoding)
    if ENCODINGS[encoding].chroma:
        right.height = 4
    wrong = copy.copy(right)
    wrong.step = {"none": 0, "width": 8, "twice the width": 16}[step]
    np.testing.assert_array_equal(to_rgb(wrong), to_rgb(right))


@pytest.mark.parametrize("encoding", ["rgb8", "mono8", "bayer_rggb8", "rgb16"])
def test_the_last_row_may_end_with_its_last_pixel(encoding: str) -> None:
    channels = ENCODINGS[encoding].channels * (2 if ENCODINGS[encoding].wide else 1)
    right = message(noise(4, 6, channels), encoding, padding=10)
    wrong = copy.copy(right)
    wrong.data = right.data[:-10]
    np.testing.assert_array_equal(to_rgb(wrong), to_rgb(right))


@pytest.mark.parametrize("encoding", ["rgb8", "unknown", "mono8"])
@pytest.mark.parametrize("kind", ["jpg", "png"])
def test_a_file_in_a_raw_image_is_refused(encoding: str, kind: str) -> None:
    """As usb_cam's raw_mjpeg sends it, padded to the size of the pixels (usb_cam 389)."""
    file = cv2.imencode(f".{kind}", noise(48, 64, 3))[1].tobytes()
    data = file + bytes(max(48 * 64 * 3 - len(file), 0))
    fault, text = fault_of(width=64, height=48, step=192, encoding=encoding, data=array("B", data))
    assert fault is Fault.ENCODING
    assert "sensor_msgs/CompressedImage and set the parameter image_transport to compressed" in text


def test_pixels_that_begin_as_a_jpeg_does_are_pixels() -> None:
    pixels = noise(4, 6, 3)
    pixels.reshape(-1)[:4] = 0xFF, 0xD8, 0xFF, 0xE0
    np.testing.assert_array_equal(to_rgb(message(pixels, "rgb8")), pixels)


@pytest.mark.parametrize(
    ("size", "encoding", "says"),
    [
        ((4, 5), "yuv422", "5x4 of encoding yuv422.*width must be even"),
        ((4, 5), "nv12", "5x4 of encoding nv12.*width and height must be even"),
        ((5, 4), "nv21", "4x5 of encoding nv21.*width and height must be even"),
        ((4, 5), "i420", "5x4 of encoding i420.*width and height must be even"),
        ((4, 5), "yuyv", "5x4 of encoding yuyv.*width must be even"),
        ((2, 4), "bayer_rggb8", "4x2; width and height of bayer_rggb8 must be at least 3"),
    ],
)
def test_size_that_an_encoding_cannot_have(size: tuple[int, int], encoding: str, says: str) -> None:
    with pytest.raises(ImageError, match=says) as caught:
        to_rgb(message(noise(*size, ENCODINGS[encoding].channels), encoding))
    assert caught.value.fault is Fault.SIZE


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        (
            {"encoding": "bayer_rggb8", "height": 2},
            "image is 6x2; width and height of bayer_rggb8 must be at least 3: check the camera "
            "driver",
        ),
        (
            {"encoding": "uyvy", "width": 5},
            "image is 5x4 of encoding uyvy, whose pixels share colours in twos; width must be "
            "even: crop it or have the camera publish rgb8",
        ),
        (
            {"encoding": "nv12", "width": 5},
            "image is 5x4 of encoding nv12, whose pixels share colours in twos; width and height "
            "must be even: crop it or have the camera publish rgb8",
        ),
        (
            {"encoding": "16UC1"},
            "encoding is '16UC1', which is depth (REP 118) or other numbers, not a picture; remap "
            "to the camera's colour images, or have it publish mono16 if these are grey values",
        ),
        (
            {"encoding": "8UC2"},
            "encoding is '8UC2', a matrix that does not say what its channels are; have it "
            "published as rgb8, bgr8 or mono8 (in cv_bridge: cv2_to_imgmsg(image, "
            "encoding='bgr8'))",
        ),
        (
            {"encoding": "RGB8"},
            "encoding is 'RGB8'; did you mean rgb8? have the camera publish one of "
            + ", ".join(ENCODINGS),
        ),
        (
            {"encoding": ""},
            f"encoding is ''; have the camera publish one of {', '.join(ENCODINGS)}",
        ),
        (
            {"step": 17},
            "step is 17 bytes; 6 pixels of rgb8 take 18: set step to the length of a row",
        ),
        (
            {"height": 5},
            "data holds 72 bytes; it must hold step * height = 18 * 5 = 90: the message was cut "
            "short or mislabelled",
        ),
        (
            {"encoding": "i420", "height": 2, "step": 9, "data": array("B", bytes(27))},
            "step is 9 bytes; a row of i420 has half as many for each colour, so it must be even: "
            "set step to the length of a row of Y",
        ),
    ],
)
def test_errors_say_value_rule_and_fix(fields: dict[str, object], text: str) -> None:
    assert fault_of(**fields)[1] == text


def test_odd_step_of_planes_is_named() -> None:
    msg = message(noise(6, 6), "i420", 1)
    msg.height = 4
    with pytest.raises(ImageError, match=r"step is 7 bytes.*it must be even") as caught:
        to_rgb(msg)
    assert caught.value.fault is Fault.STEP


@pytest.mark.parametrize("rows", [0, 4, 5, 7])
def test_planar_image_without_its_chroma_is_named(rows: int) -> None:
    msg = message(noise(rows or 1, 6), "nv12")
    msg.height, msg.data = 4, msg.data[: rows * 6]
    with pytest.raises(ImageError, match=r"step \* height \* 3/2 = 6 \* 6 = 36") as caught:
        to_rgb(msg)
    assert caught.value.fault is Fault.LENGTH


@given(
    height=st.integers(0, 6),
    width=st.integers(0, 8),
    step=st.integers(0, 40),
    encoding=st.sampled_from(
        ["rgb8", "mono16", "yuv422", "bayer_rggb8", "nv12", "nv24", "i420", "x"]
    ),
    data=st.binary(max_size=64),
)
def test_any_message_is_an_image_or_an_image_error(
    height: int, width: int, step: int, encoding: str, data: bytes
) -> None:
    msg = Image(height=height, width=width, step=step, encoding=encoding)
    msg.data = array("B", data)
    try:
        rgb = to_rgb(msg)
    except ImageError:
        return
    assert rgb.shape == (msg.height, msg.width, 3)


@pytest.mark.parametrize(("encoding", "shape"), [("mono8", (3, 5)), ("rgb8", (3, 5, 3))])
def test_message_and_back(encoding: str, shape: tuple[int, ...]) -> None:
    pixels = noise(*shape)
    header = Header(frame_id="camera")
    msg = MESSAGES.image(header, pixels[::-1], encoding)  # strided
    assert (msg.height, msg.width, msg.encoding) == (3, 5, encoding)
    assert msg.step == pixels[0].size
    assert msg.header is header
    assert isinstance(msg.data, array)
    np.testing.assert_array_equal(np.frombuffer(msg.data, np.uint8).reshape(shape), pixels[::-1])


def test_messages_of_bags_are_read_as_those_of_ros() -> None:
    """They hold arrays, and have a type of another library."""
    rosbags = pytest.importorskip("rosbags.typesys")
    types = rosbags.get_typestore(rosbags.Stores.ROS2_JAZZY)
    pixels = noise(4, 6)
    for encoding in ("mono8", "bayer_rggb8", "mono16"):
        own = message(pixels if encoding != "mono16" else pixels.view(np.uint16), encoding, 2)
        bags = types.deserialize_cdr(serialize_message(own), "sensor_msgs/msg/Image")
        assert type(bags) is not type(own)
        np.testing.assert_array_equal(to_rgb(bags), to_rgb(own))


def test_ids_come_as_mono8_alone() -> None:
    ids = noise(4, 5)
    np.testing.assert_array_equal(to_ids(message(ids, "mono8", 3)), ids)
    for encoding in ("8UC1", "rgb8"):
        with pytest.raises(ImageError, match="must come as mono8"):
            to_ids(message(ids, encoding))


def test_pixels_that_begin_like_a_jpeg_are_pixels() -> None:
    """The first of them is pink, and somewhere among them are bytes that mean a size in a JPEG."""
    for seed in range(20):
        image = np.random.default_rng(seed).integers(0, 256, (48, 64, 3), dtype=np.uint8)
        image[0, 0] = 255, 216, 255
        np.testing.assert_array_equal(to_rgb(message(image, "rgb8")), image)
