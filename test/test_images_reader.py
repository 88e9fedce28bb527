"""What one message does not say: the bits of a sample, and a video's earlier pictures."""

from __future__ import annotations

from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from video import scene, stream

from lowlat_seg_ros.images import (
    SAMPLE_BITS,
    WATCHED_IMAGES,
    Fault,
    ImageError,
    ImageReader,
    Packet,
    to_rgb,
)

RAMP = np.linspace(0, 1, 12 * 16).reshape(12, 16)


def image(values: np.ndarray, encoding: str = "mono16", big: bool = False) -> SimpleNamespace:
    """A message of no ROS library, of ``values`` (H, W) or (H, W, 3)."""
    data = values.astype(">u2" if big else "<u2").tobytes()
    return SimpleNamespace(
        height=12, width=16, step=len(data) // 12, encoding=encoding, is_bigendian=int(big),
        data=data,
    )  # fmt: skip


@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("encoding", ["mono16", "rgb16", "bgra16", "bayer_grbg16"])
@pytest.mark.parametrize("bits", SAMPLE_BITS)
def test_samples_of_few_bits_are_as_bright_as_those_of_eight(
    bits: int, encoding: str, big: bool
) -> None:
    channels = {"rgb16": 3, "bgra16": 4}.get(encoding, 1)
    bright = np.repeat(RAMP[..., None], channels, -1)
    warnings: list[str] = []
    read = ImageReader(lambda: bits, warnings.append)
    wide = image(np.rint(bright * (2**bits - 1)), encoding, big)
    eight = np.rint(bright * 255).astype(np.uint8)
    wanted = to_rgb(
        SimpleNamespace(
            height=12, width=16, step=16 * channels, encoding=encoding.replace("16", "8"),
            is_bigendian=0, data=eight.tobytes(),
        )
    )  # fmt: skip
    for _ in range(WATCHED_IMAGES + 1):
        found = read(wide)
        assert np.abs(found.astype(int) - wanted).max() <= 1
        assert found.max() - found.min() > 200
    assert not warnings


def test_a_wide_png_has_those_bits_too() -> None:
    data = cv2.imencode(".png", np.rint(RAMP * 1023).astype(np.uint16))[1]
    found = ImageReader(lambda: 10)(SimpleNamespace(format="mono16; png compressed ", data=data))
    assert np.abs(found[..., 0] - RAMP * 255).max() < 1


@pytest.mark.parametrize("bits", [8, 10, 12, 14])
def test_upper_bits_that_are_never_used_are_said_once_with_what_to_set(bits: int) -> None:
    asked, warnings = [0], []
    read = ImageReader(lambda: asked[0], warnings.append)
    message = image(np.rint(RAMP * (2**bits - 1)))
    for _ in range(2 * WATCHED_IMAGES):
        read(image(RAMP * 0))  # the lens has its cap on
    assert not warnings
    for _ in range(2 * WATCHED_IMAGES):
        assert read(message).max() <= 64
    (text,) = warnings
    assert f"reach {2**bits - 1} and no more, of 65535" in text
    assert text.endswith(f"set the parameter advanced.bits_per_sample to {bits}")
    asked[0] = bits  # as it says
    for _ in range(2 * WATCHED_IMAGES):
        assert read(message).max() == 255
    assert len(warnings) == 1


def test_bits_that_are_too_few_are_said_once_with_what_to_set() -> None:
    warnings: list[str] = []
    read = ImageReader(lambda: 10, warnings.append)
    for _ in range(2 * WATCHED_IMAGES):
        read(image(RAMP * 4095))
    (text,) = warnings
    assert "reach 4095, which is more than 1023" in text
    assert "set it to 12" in text


def test_eight_bits_are_never_looked_at() -> None:
    read = ImageReader(lambda: 10, lambda text: pytest.fail(text))
    dark = np.zeros((12, 16), np.uint8)
    message = SimpleNamespace(
        height=12, width=16, step=16, encoding="mono8", is_bigendian=0, data=dark.tobytes()
    )
    for _ in range(2 * WATCHED_IMAGES):
        assert not read(message).any()


ENCODERS = ["h264", "hevc"]


def packet(data: bytes, codec: str, after_gap: bool = False) -> Packet:
    return Packet(None, codec, data, after_gap)


def assert_shows(found: np.ndarray, index: int) -> None:
    assert (found.dtype, found.shape) == (np.uint8, (96, 128, 3))
    assert np.abs(found.astype(int) - scene(index)).mean() < 4


WORDS = {"h264": ["h264", "libx264", "h264_nvenc;yuv420p"], "hevc": ["h265", "hevc", "libx265"]}


@pytest.mark.parametrize(("codec", "word"), [(c, word) for c in WORDS for word in WORDS[c]])
def test_each_packet_gives_its_picture_at_once(codec: str, word: str) -> None:
    read = ImageReader()
    for index, data in enumerate(stream(codec, 8)):
        assert_shows(read(packet(data, word)), index)


def refused(read: ImageReader, message: Packet) -> tuple[Fault, str]:
    with pytest.raises(ImageError) as caught:
        read(message)
    return caught.value.fault, str(caught.value)


@pytest.mark.parametrize("codec", ENCODERS)
def test_nothing_is_shown_before_a_key_frame(codec: str) -> None:
    read, packets = ImageReader(), stream(codec, 8)
    for data in packets[2:5]:
        fault, text = refused(read, packet(data, codec))
        assert fault is Fault.KEY_FRAME
        assert text == (
            f"no key frame of the stream has come yet, and the {codec} stream cannot be shown "
            "before its next key frame; if it does not come soon, have the encoder make one at "
            "least every second (a GOP of the frame rate)"
        )
    assert_shows(read(packet(packets[5], codec)), 5)
    assert_shows(read(packet(packets[6], codec)), 6)


@pytest.mark.parametrize("codec", ENCODERS)
def test_nothing_is_shown_from_a_loss_to_the_next_key_frame(codec: str) -> None:
    read, packets = ImageReader(), stream(codec, 12)
    assert_shows(read(packet(packets[0], codec)), 0)
    for data, after_gap in ((packets[2], True), (packets[3], False)):
        fault, text = refused(read, packet(data, codec, after_gap))
        assert fault is Fault.KEY_FRAME
        assert "packets were lost on their way" in text
    assert_shows(read(packet(packets[5], codec)), 5)
    assert_shows(read(packet(packets[10], codec, after_gap=True)), 10)  # the loss does not matter


@pytest.mark.parametrize("codec", ENCODERS)
def test_what_is_skipped_is_built_on(codec: str) -> None:
    read, packets = ImageReader(), stream(codec, 4)
    for data in packets[:3]:
        read.skip(packet(data, codec))
    assert_shows(read(packet(packets[3], codec)), 3)


@pytest.mark.parametrize("codec", ENCODERS)
def test_damage_is_named_and_the_next_key_frame_shown(codec: str) -> None:
    read, packets = ImageReader(), stream(codec, 8)
    assert_shows(read(packet(packets[0], codec)), 0)
    fault, text = refused(read, packet(b"\0\0\0\1" + bytes(range(1, 90)), codec))
    assert fault is Fault.CONVERSION
    assert "check the encoder" in text or "set the encoder" in text
    fault, text = refused(read, packet(packets[1], codec))
    assert fault is Fault.KEY_FRAME
    assert text.startswith(("a packet was damaged, and", "a packet gave no whole picture, and"))
    assert_shows(read(packet(packets[5], codec)), 5)


def test_pictures_out_of_order_are_named() -> None:
    read = ImageReader()
    packets = stream("h264", 12, tune="film", bf="2", preset="medium", gop=30)
    texts = []
    for data in packets:
        try:
            read(packet(data, "h264"))
        except ImageError as error:
            texts.append(str(error))
    assert any("without B-frames" in text for text in texts)


@pytest.mark.parametrize("data", [b"\0\0\1\x09\xf0", b"\0\0\1\x46\x01", b"", b"no unit at all"])
def test_a_packet_without_a_picture_is_no_key_frame(data: bytes) -> None:
    """A delimiter alone, of H.264 or H.265, or nothing."""
    for codec in ENCODERS:
        assert refused(ImageReader(), packet(data, codec))[0] is Fault.KEY_FRAME


def test_another_codec_is_refused() -> None:
    fault, text = refused(ImageReader(), packet(b"x", "vp9"))
    assert fault is Fault.ENCODING
    assert text == (
        "the video's format is 'vp9'; it must be H.264 or H.265: set the camera's encoder to h264 "
        "or h265, or image_transport to raw or compressed"
    )
