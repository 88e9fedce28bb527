"""Compressed images to RGB arrays and back: JPEG, PNG, and what is neither or cut short."""

from __future__ import annotations

import struct
import zlib
from array import array

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("sensor_msgs", reason="needs ROS 2")

from sensor_msgs.msg import CompressedImage
from std_msgs.msg import Header

from lowlat_seg_ros.images import Fault, ImageError, to_rgb
from lowlat_seg_ros.ros.outputs import MESSAGES


def picture(height: int = 30, width: int = 42) -> np.ndarray:
    """Smooth, so that JPEG keeps it, and of another colour in each channel."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack([rows * 8, columns * 6, np.full_like(rows, 30)], -1).astype(np.uint8)


def message(data: bytes, format_: str = "") -> CompressedImage:
    return CompressedImage(format=format_, data=array("B", data))


def encoded(pixels: np.ndarray, kind: str) -> bytes:
    """``pixels`` RGB, or grey, as a file."""
    order = pixels if pixels.ndim == 2 else pixels[..., [2, 1, 0, 3][: pixels.shape[2]]]
    return bytes(cv2.imencode(f".{kind}", np.ascontiguousarray(order))[1])


def without_huffman_tables(jpeg: bytes) -> bytes:
    """As UVC cameras send MJPEG, whose tables are always the same (ITU-T T.81, Annex K.3)."""
    result, place = jpeg[:2], 2
    while (marker := jpeg[place + 1]) != 0xDA:  # up to the pixels
        end = place + 2 + int.from_bytes(jpeg[place + 2 : place + 4], "big")
        result += jpeg[place:end] if marker != 0xC4 else b""
        place = end
    return result + jpeg[place:]


JPEG, PNG = encoded(picture(), "jpg"), encoded(picture(), "png")
THUMBNAIL = b"\xff\xe1" + (len(JPEG) + 2).to_bytes(2, "big") + JPEG  # it has an end of its own
FILES = {
    "baseline": JPEG,
    "progressive": bytes(
        cv2.imencode(".jpg", picture()[..., ::-1], [cv2.IMWRITE_JPEG_PROGRESSIVE, 1])[1]
    ),
    "with a thumbnail": JPEG[:2] + THUMBNAIL + JPEG[2:],
    "PNG": PNG,
}


@pytest.mark.parametrize(
    "format_",
    [
        "png",
        "",
        "rgb8; png compressed bgr8",
        "jpeg",
        "; png",
        "PNG; 90",
        "rgb8; png; x",
        "camera; png",
        "8-bit png",
    ],
)
def test_png_is_exact_whatever_its_format_says(format_: str) -> None:
    np.testing.assert_array_equal(to_rgb(message(PNG, format_)), picture())


def test_channels_that_image_transport_did_not_swap_are_taken_as_they_lie() -> None:
    unswapped = encoded(picture()[..., ::-1], "png")
    msg = message(unswapped, "rgb8; png compressed rgb8")
    np.testing.assert_array_equal(to_rgb(msg), picture())


def test_jpeg_keeps_colours() -> None:
    rgb = to_rgb(message(JPEG, "jpeg"))
    assert (rgb.dtype, rgb.shape) == (np.uint8, (30, 42, 3))
    assert np.abs(rgb.astype(int) - picture()).mean() < 4


def test_jpeg_may_leave_out_the_usual_tables() -> None:
    bare = without_huffman_tables(JPEG)
    assert len(bare) < len(JPEG) - 400
    np.testing.assert_array_equal(to_rgb(message(bare, "jpeg")), to_rgb(message(JPEG)))


def test_grey_alpha_and_sixteen_bits_become_rgb8() -> None:
    grey = picture()[..., 0]
    np.testing.assert_array_equal(to_rgb(message(encoded(grey, "png"))), np.dstack([grey] * 3))
    alpha = np.dstack([picture(), np.full_like(grey, 9)])
    np.testing.assert_array_equal(to_rgb(message(encoded(alpha, "png"))), picture())
    wide = encoded(picture() * np.uint16(257), "png")
    np.testing.assert_array_equal(to_rgb(message(wide)), picture())
    grey_jpeg = to_rgb(message(encoded(grey, "jpg")))
    assert np.ptp(grey_jpeg, axis=2).max() == 0


@pytest.mark.parametrize("order", ["rggb", "bggr", "gbrg", "grbg"])
@pytest.mark.parametrize(
    ("kind", "bits", "format_"),
    [
        ("jpg", 8, "bayer_{}8; jpeg compressed bayer_{}8"),
        ("jpg", 8, "bayer_{}8; jpeg compressed "),
        ("png", 8, "bayer_{}8; png compressed "),
        ("png", 16, "bayer_{}16; png compressed "),
    ],
)
def test_mosaic_is_demosaiced(order: str, kind: str, bits: int, format_: str) -> None:
    wall = {"r": 200, "g": 120, "b": 40}  # one colour, as a sensor with this filter sees it
    mosaic = np.array([wall[letter] for letter in order], np.uint8).reshape(2, 2)
    mosaic = np.tile(mosaic, (16, 16)).astype(f"u{bits // 8}") * (1 if bits == 8 else 257)
    quality = [cv2.IMWRITE_JPEG_QUALITY, 100] if kind == "jpg" else []
    data = bytes(cv2.imencode(f".{kind}", mosaic, quality)[1])
    rgb = to_rgb(message(data, format_.format(order, order)))
    assert np.abs(rgb.astype(int) - [*wall.values()]).max() <= (4 if kind == "jpg" else 0)


def test_mosaic_that_the_camera_made_colours_of_is_taken_as_it_is() -> None:
    found = to_rgb(message(PNG, "bayer_rggb8; png compressed bgr8"))
    np.testing.assert_array_equal(found, picture())


@pytest.mark.parametrize(
    ("format_", "says"),
    [
        ("16UC1; png compressed ", "'16UC1', which is depth (REP 118)"),
        ("32FC1; png compressed ", "'32FC1', which is depth (REP 118)"),
        ("16UC1; compressedDepth png", "'16UC1; compressedDepth png', which is depth"),
        ("32FC1; compressedDepth rvl", "which is depth"),
        ("16UC1; compressedDepth", "remap to the camera's colour images"),
        ("16UC1", "'16UC1', which is depth (REP 118)"),
        ("8UC2; png compressed ", "'8UC2', a matrix that does not say"),
        ("16SC3; png compressed ", "'16SC3', a matrix that does not say"),
    ],
)
def test_depth_is_refused_with_what_to_do(format_: str, says: str) -> None:
    depth = encoded(picture()[..., 0].astype(np.uint16) * 10, "png")
    data = bytes(12) + depth if "Depth" in format_ else depth
    with pytest.raises(ImageError) as caught:
        to_rgb(message(data, format_))
    assert caught.value.fault is Fault.ENCODING
    assert says in str(caught.value)
    assert "remap" in str(caught.value) or "published as" in str(caught.value)


def test_orientation_of_exif_does_not_turn_the_image() -> None:
    # TIFF header, one entry: orientation (0x0112) is 6, a quarter turn.
    tiff = b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
    app1 = b"Exif\0\0" + tiff
    turned = JPEG[:2] + b"\xff\xe1" + (len(app1) + 2).to_bytes(2, "big") + app1 + JPEG[2:]
    assert cv2.imdecode(np.frombuffer(turned, np.uint8), cv2.IMREAD_COLOR).shape == (42, 30, 3)
    np.testing.assert_array_equal(to_rgb(message(turned)), to_rgb(message(JPEG)))


#: What drivers leave behind an image in their buffers.
STALE = {
    "zeros": bytes(100),
    "a line's end": b"\r\n",
    "ones": b"\xff" * 7,
    "the end of an older image": JPEG[len(JPEG) // 2 :],
    "the begin of another": JPEG[:300],
    "noise": np.random.default_rng(0).bytes(999),
}


@pytest.mark.parametrize("stale", STALE)
@pytest.mark.parametrize("kind", ["baseline", "progressive", "with a thumbnail", "PNG"])
def test_bytes_after_the_end_do_no_harm(kind: str, stale: str) -> None:
    whole = FILES[kind]
    found = to_rgb(message(whole + STALE[stale]))
    np.testing.assert_array_equal(found, to_rgb(message(whole)))


@pytest.mark.parametrize("stale", [b"\r\n", bytes(100), b"\xff" * 7, JPEG, JPEG[:300]])
@pytest.mark.parametrize("kind", ["baseline", "progressive", "with a thumbnail", "PNG"])
def test_file_cut_short_is_named_whatever_follows(kind: str, stale: bytes) -> None:
    whole = FILES[kind]
    data = 30 if kind == "PNG" else whole.rindex(b"\xff\xda") + 14  # after the headers
    for length in range(data, len(whole) - 1, 7):
        with pytest.raises(ImageError, match="that does not end") as caught:
            to_rgb(message(whole[:length] + stale))
        assert caught.value.fault is Fault.LENGTH


@pytest.mark.parametrize("file", [JPEG, PNG], ids=["JPEG", "PNG"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 1.0])
def test_file_cut_short_is_named(file: bytes, share: float) -> None:
    cut = file[: min(int(share * len(file)), len(file) - 1)]
    name = "JPEG" if file is JPEG else "PNG"
    says = f"{len(cut)} bytes of a {name} that does not end"
    with pytest.raises(ImageError, match=says) as caught:
        to_rgb(message(cut, "jpeg"))
    assert caught.value.fault is Fault.LENGTH


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "begins with nothing"),
        (b"None", "begins with 4e 6f 6e 65"),
        (b"RIFF\x10\0\0\0WEBP", "data is WebP"),
        (b"II*\0\x08\0\0\0", "data is TIFF"),
        (b"/9j/4AAQSkZJRg", "data is text in base64"),
        (b"\0\0\0\x01\x67\x42", "foxglove_msgs/CompressedVideo, with image_transport foxglove"),
        (b"\0\0\x01\x40\x01", "data is H.264 or H.265"),
        (bytes(1000), "format is 'x'"),
        (b"\0\0\0\0" + PNG, "set image_transport to raw"),  # as compressedDepth begins
    ],
)
def test_what_is_neither_is_named(data: bytes, says: str) -> None:
    with pytest.raises(ImageError, match=says) as caught:
        to_rgb(message(data, "x"))
    assert caught.value.fault is Fault.ENCODING


@pytest.mark.parametrize(
    "data", [JPEG[:200] + JPEG[-2:], PNG[:16] + bytes(40) + PNG[56:]], ids=["JPEG", "PNG"]
)
def test_damaged_file_is_named(data: bytes) -> None:
    with pytest.raises(ImageError, match="damaged") as caught:
        to_rgb(message(data))
    assert caught.value.fault is Fault.CONVERSION


def of_size(file: bytes, width: int, height: int) -> bytes:
    """``file`` with a header that says so, whatever its data are."""
    if file is PNG:
        header = file[12:16] + struct.pack(">II", width, height) + file[24:29]
        return file[:12] + header + struct.pack(">I", zlib.crc32(header)) + file[33:]
    place = file.index(b"\xff\xc0") + 5
    return file[:place] + struct.pack(">HH", height, width) + file[place + 4 :]


@pytest.mark.parametrize(
    ("file", "size", "says"),
    [
        (JPEG, (30_000, 30_000), f"{len(JPEG)} bytes can hold {1000 * len(JPEG)} at most"),
        (JPEG + bytes(200_000), (65_500, 65_500), f"can hold {2**27} at most"),
        (PNG, (30_000, 30_000), f"can hold {8300 * len(PNG)} at most"),
        (PNG, (2**31 - 1, 2**31 - 1), f"can hold {8300 * len(PNG)} at most"),
    ],
    ids=["JPEG", "long JPEG", "PNG", "endless PNG"],
)
def test_small_message_of_a_huge_image_is_refused(
    file: bytes, size: tuple[int, int], says: str
) -> None:
    """OpenCV would take gigabytes and minutes to fill in what is missing."""
    kind = PNG if file is PNG else JPEG
    bomb = of_size(kind, *size) + file[len(kind) :]
    with pytest.raises(ImageError, match=f"says {size[0]}x{size[1]} pixels.*{says}") as caught:
        to_rgb(message(bomb))
    assert caught.value.fault is Fault.SIZE


def test_chunk_that_claims_a_gigabyte_is_refused() -> None:
    """OpenCV would allocate it before it looks for the data."""
    place = PNG.index(b"IDAT") - 4
    bomb = PNG[:place] + struct.pack(">I", 2**30) + PNG[place + 4 :]
    with pytest.raises(ImageError, match="a chunk claims more bytes than there are") as caught:
        to_rgb(message(bomb))
    assert caught.value.fault is Fault.CONVERSION


@pytest.mark.parametrize(
    ("data", "format_", "text"),
    [
        (
            PNG[:40],
            "png",
            "data holds 40 bytes of a PNG that does not end: the message was cut short; check the "
            "camera driver and the network to it",
        ),
        (
            JPEG[:200] + JPEG[-2:],
            "",
            "data holds 202 bytes of a damaged JPEG (the decoder gives up); check the camera "
            "driver",
        ),
        (
            of_size(PNG, 30_000, 20_000),
            "",
            f"the PNG's header says 30000x20000 pixels, and {len(PNG)} bytes can hold "
            f"{8300 * len(PNG)} at most: it is damaged; check the camera driver",
        ),
        (
            b"\0\1\2",
            "x",
            "data begins with 00 01 02 (format is 'x'), which is neither JPEG nor PNG; "
            "have the camera publish one of them, or set image_transport to raw",
        ),
        (
            PNG,
            "16UC1; compressedDepth png",
            "format is '16UC1; compressedDepth png', which is depth (image_transport's "
            "compressedDepth), not a picture; remap to the camera's colour images",
        ),
    ],
)
def test_errors_say_value_rule_and_fix(data: bytes, format_: str, text: str) -> None:
    with pytest.raises(ImageError) as caught:
        to_rgb(message(data, format_))
    assert str(caught.value) == text


def test_large_image_without_contents_is_no_bomb() -> None:
    """A black 4K frame, as of a covered lens, is as small as a JPEG gets."""
    options = [cv2.IMWRITE_JPEG_QUALITY, 1, cv2.IMWRITE_JPEG_OPTIMIZE, 1]
    options += [cv2.IMWRITE_JPEG_PROGRESSIVE, 1]
    grey = np.zeros((2160, 3840), np.uint8)
    assert to_rgb(message(bytes(cv2.imencode(".jpg", grey, options)[1]))).shape == (2160, 3840, 3)


@given(st.sampled_from([JPEG, PNG]), st.integers(3, 2000), st.binary(max_size=60), st.booleans())
def test_any_data_is_an_image_or_an_image_error(
    file: bytes, place: int, damage: bytes, whole: bool
) -> None:
    data = file[:place] + damage + (file[place:] if whole else b"")
    try:
        rgb = to_rgb(message(data))
    except ImageError:
        return
    assert (rgb.dtype, rgb.ndim, rgb.shape[2]) == (np.uint8, 3, 3)


def test_jpeg_message_and_back() -> None:
    header = Header(frame_id="camera")
    msg = MESSAGES.jpeg(header, picture())
    assert msg.header is header
    assert msg.format == "rgb8; jpeg compressed bgr8"
    assert isinstance(msg.data, array)
    rgb = to_rgb(msg)
    assert rgb.shape == picture().shape
    assert np.abs(rgb.astype(int) - picture()).mean() < 4
