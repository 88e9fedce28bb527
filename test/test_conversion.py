"""Image messages to RGB arrays: every encoding, padding, byte order and fault."""

from __future__ import annotations

from array import array

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("sensor_msgs", reason="needs ROS 2")

from sensor_msgs.msg import Image
from std_msgs.msg import Header

from lowlat_seg_ros.ros.conversion import DIRECT, OTHERS, Fault, ImageError, image_message, to_rgb


def message(pixels: np.ndarray, encoding: str, padding: int = 0) -> Image:
    height, width = pixels.shape[:2]
    rows = np.ascontiguousarray(pixels).view(np.uint8).reshape(height, -1)
    rows = np.pad(rows, ((0, 0), (0, padding)), constant_values=0xA5)
    data = array("B", rows.tobytes())
    return Image(height=height, width=width, encoding=encoding, step=rows.shape[1], data=data)


def noise(*shape: int, dtype: type = np.uint8) -> np.ndarray:
    return np.random.default_rng(0).integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)


sizes = st.integers(1, 9)


@given(st.sampled_from(sorted(DIRECT)), sizes, sizes, st.integers(0, 5))
def test_eight_bit_colours_are_exact_whatever_the_padding(
    encoding: str, height: int, width: int, padding: int
) -> None:
    channels = DIRECT[encoding][0]
    pixels = noise(height, width, channels)
    rgb = pixels[..., [0, 0, 0] if channels == 1 else [0, 1, 2]]
    if encoding.startswith("bgr"):
        rgb = pixels[..., 2::-1] if channels == 3 else pixels[..., [2, 1, 0]]
    np.testing.assert_array_equal(to_rgb(message(pixels, encoding, padding)), rgb)


@pytest.mark.parametrize("padding", [0, 3])
def test_rgb8_is_not_copied(padding: int) -> None:
    msg = message(noise(4, 5, 3), "rgb8", padding)
    assert np.shares_memory(to_rgb(msg), np.frombuffer(msg.data, np.uint8))


@given(st.sampled_from(["mono16", "rgb16", "bgr16", "rgba16", "bgra16"]), st.integers(0, 4))
def test_sixteen_bits_are_scaled_in_either_byte_order(encoding: str, padding: int) -> None:
    channels = OTHERS[encoding] // 2
    small = noise(4, 6, channels)
    wide = small * np.uint16(257)  # so that no rounding is left to the library
    rgb = small[..., [0, 0, 0] if channels == 1 else [0, 1, 2]]
    if encoding.startswith("bgr"):
        rgb = small[..., [2, 1, 0]]
    little, big = (
        message(wide.astype("<u2"), encoding, padding),
        message(wide.astype(">u2"), encoding),
    )
    big.is_bigendian = 1
    for msg in (little, big):
        np.testing.assert_array_equal(to_rgb(msg), rgb)


@pytest.mark.parametrize("padding", [0, 4])
@pytest.mark.parametrize("order", ["rggb", "bggr", "gbrg", "grbg"])
def test_bayer_shows_the_colour_of_its_filter(order: str, padding: int) -> None:
    # A red wall, as a sensor with this filter sees it: only the red sites are lit.
    sensor = np.zeros((8, 8), np.uint8)
    row, column = divmod(order.index("r"), 2)
    sensor[row::2, column::2] = 200
    inner = to_rgb(message(sensor, f"bayer_{order}8", padding))[2:-2, 2:-2]
    np.testing.assert_array_equal(inner, np.broadcast_to([200, 0, 0], inner.shape))


@pytest.mark.parametrize("encoding", ["yuv422", "uyvy", "yuv422_yuy2", "yuyv"])
def test_both_orders_of_yuv422(encoding: str) -> None:
    luma, chroma = np.full((4, 6), 180, np.uint8), np.full((4, 6), 128, np.uint8)
    planes = [chroma, luma] if encoding in ("yuv422", "uyvy") else [luma, chroma]
    rgb = to_rgb(message(np.dstack(planes), encoding))
    code = cv2.COLOR_YUV2RGB_UYVY if planes[0] is chroma else cv2.COLOR_YUV2RGB_YUY2
    np.testing.assert_array_equal(rgb, cv2.cvtColor(np.dstack(planes), code))
    assert np.ptp(rgb, axis=2).max() == 0  # grey
    assert rgb.min() > 150  # and bright


@pytest.mark.parametrize("encoding", [*DIRECT, *OTHERS])
def test_every_encoding_gives_an_image_the_engine_takes(encoding: str) -> None:
    channels_bytes = DIRECT[encoding][0] if encoding in DIRECT else OTHERS[encoding]
    rgb = to_rgb(message(noise(8, 10, channels_bytes), encoding))
    assert (rgb.shape, rgb.dtype) == ((8, 10, 3), np.uint8)


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
        ({"step": 0}, Fault.STEP, "step is 0"),
        ({"width": 2**32 - 1}, Fault.STEP, "step is 18"),
        ({"height": 2**32 - 1}, Fault.LENGTH, "data holds 72 bytes"),
        ({"height": 5}, Fault.LENGTH, "18 * 5 = 90"),
        ({"step": 19}, Fault.LENGTH, "19 * 4 = 76"),
        ({"data": array("B")}, Fault.LENGTH, "data holds 0 bytes"),
        ({"encoding": ""}, Fault.ENCODING, "have the camera publish one of rgb8"),
        ({"encoding": "RGB8"}, Fault.ENCODING, "'RGB8'"),
        ({"encoding": "32FC1"}, Fault.ENCODING, "'32FC1'"),
        ({"encoding": "rgba8"}, Fault.STEP, "take 24"),
    ],
)
def test_fault_names_value_rule_and_fix(fields: dict[str, object], fault: Fault, says: str) -> None:
    found, text = fault_of(**fields)
    assert found is fault
    assert says in text
    assert ": " in text or ";" in text  # the fix follows


def test_odd_width_of_yuv422_cannot_be_converted() -> None:
    with pytest.raises(ImageError, match="5x4 image of encoding yuv422") as caught:
        to_rgb(message(noise(4, 5, 2), "yuv422"))
    assert caught.value.fault is Fault.CONVERSION


@given(
    height=st.integers(0, 6),
    width=st.integers(0, 8),
    step=st.integers(0, 40),
    encoding=st.sampled_from(["rgb8", "mono16", "yuv422", "bayer_rggb8", "x"]),
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
    msg = image_message(header, pixels[::-1], encoding)  # strided
    assert (msg.height, msg.width, msg.encoding) == (3, 5, encoding)
    assert msg.step == pixels[0].size
    assert msg.header is header
    assert isinstance(msg.data, array)
    np.testing.assert_array_equal(np.frombuffer(msg.data, np.uint8).reshape(shape), pixels[::-1])
