"""What the live node makes of images: masks, headers, encodings, and messages that cannot be."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from harness import Bench, mask_of, message, picture
from lowlat_seg_ros.msg import FrameReport
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import Image

from lowlat_seg_ros.config import EngineConfig
from lowlat_seg_ros.engine.engine import Engine
from lowlat_seg_ros.frames import Frame
from lowlat_seg_ros.labels import CAMVID, overlay
from lowlat_seg_ros.messages import stamp_ns

RGB = picture()
GREY = cv2.cvtColor(RGB, cv2.COLOR_RGB2GRAY)
NV12 = np.vstack([GREY, picture(24, 64, 1)[..., 0]])


@pytest.fixture(scope="module")
def expected(checkpoint: Path) -> Iterator[Callable[[np.ndarray], np.ndarray]]:
    """The mask that the engine itself gives for an RGB image that begins an epoch."""
    with Engine.from_checkpoint(checkpoint, EngineConfig(foreground_threads=1), "cpu") as engine:

        def mask(rgb: np.ndarray) -> np.ndarray:
            engine.reset()
            return engine.process(Frame(rgb, 0)).mask

        yield mask


def test_header_is_kept_and_the_mask_has_the_size_of_the_image(live: Bench) -> None:
    image = message(picture(50, 70), "rgb8", 1234.000000567, "test_header/left")
    live.send(image)
    mask = live.mask_on(image)
    assert mask.header == image.header
    assert (mask.height, mask.width, mask.step, mask.encoding) == (50, 70, 70, "mono8")
    assert set(np.unique(mask_of(mask))) <= {*range(len(CAMVID)), 255}


ENCODINGS = {
    "rgb8": (RGB, RGB),
    "bgr8": (RGB[..., ::-1], RGB),
    "rgba8": (np.dstack([RGB, np.full_like(GREY, 7)]), RGB),
    "bgra8": (np.dstack([RGB[..., ::-1], np.full_like(GREY, 7)]), RGB),
    "mono8": (GREY, np.dstack([GREY] * 3)),
    "mono16": (GREY * np.uint16(257), np.dstack([GREY] * 3)),
    "rgb16": (RGB * np.uint16(257), RGB),
    "bayer_rggb8": (GREY, cv2.cvtColor(GREY, cv2.COLOR_BayerRGGB2RGB)),
    "yuv422": (
        np.dstack([np.full_like(GREY, 128), GREY]),
        cv2.cvtColor(np.dstack([np.full_like(GREY, 128), GREY]), cv2.COLOR_YUV2RGB_UYVY),
    ),
    "nv12": (NV12, cv2.cvtColor(NV12, cv2.COLOR_YUV2RGB_NV12)),
}


@pytest.mark.parametrize("padding", [0, 6])
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_mask_is_the_engines_for_every_encoding_and_padded_rows(
    live: Bench, expected: Callable[[np.ndarray], np.ndarray], encoding: str, padding: int
) -> None:
    pixels, rgb = ENCODINGS[encoding]
    image = message(pixels, encoding, 1.0, f"test_encodings/{encoding}/{padding}", padding)
    image.height = len(rgb)  # the rows of nv12's colours do not count
    report = live.send(image)
    assert report.kind == FrameReport.FULL  # a camera not seen before
    wanted = expected(rgb)
    assert len(np.unique(wanted)) > 2  # the image is told from a grey wall
    np.testing.assert_array_equal(mask_of(live.mask_on(image)), wanted)


def test_reliable_and_best_effort_subscribers_both_get_masks(live: Bench) -> None:
    best_effort = live.listen(Image, "mask", qos_profile_sensor_data)
    image = message(RGB, "rgb8", 1.0, "test_qos")
    while not best_effort.all():  # until the two have found each other
        image.header.stamp.sec += 1
        live.send(image)
    newest = best_effort.all()[-1]
    assert newest == live.mask_on(newest)


def test_overlay_mixes_image_and_class_colours(live: Bench) -> None:
    overlays = live.listen(Image, "overlay")
    image = message(RGB, "rgb8", 1.0, "test_overlay")
    while not overlays.all():
        image.header.stamp.sec += 1
        live.send(image)
    mixed = overlays.all()[0]
    mask = mask_of(live.mask_on(mixed))
    pixels = np.frombuffer(mixed.data, np.uint8).reshape(mixed.height, mixed.width, 3)
    assert mixed.encoding == "rgb8"
    np.testing.assert_array_equal(pixels, overlay(RGB, mask, CAMVID, 0.5))


def test_new_resolution_begins_afresh(live: Bench) -> None:
    first = live.send(message(RGB, "rgb8", 1.0, "test_size"))
    image = message(picture(96, 80), "rgb8", 1.1, "test_size")
    report = live.send(image)
    assert (report.kind, report.reset_reason) == (FrameReport.FULL, "size_changed")
    assert report.epoch == first.epoch + 1
    assert mask_of(live.mask_on(image)).shape == (96, 80)


def test_stamps_that_go_back_begin_afresh(live: Bench) -> None:
    live.send(message(RGB, "rgb8", 5.0, "test_stamps"))
    carried = live.send(message(RGB, "rgb8", 5.1, "test_stamps"))
    looped = live.send(message(RGB, "rgb8", 4.0, "test_stamps"))
    assert (carried.kind, carried.reset_reason) == (FrameReport.PROPAGATED, "")
    assert stamp_ns(carried.key_stamp) == 5_000_000_000
    assert (looped.kind, looped.reset_reason) == (FrameReport.FULL, "time_jumped_back")


def spoilt(**fields: object) -> Image:
    image = message(RGB, "rgb8", 2.0, "test_bad")
    for name, value in fields.items():
        setattr(image, name, value)
    return image


BAD = {
    "data cut short": spoilt(data=message(RGB, "rgb8", 0.0).data[:-1]),
    "no data": spoilt(data=message(RGB, "rgb8", 0.0).data[:0]),
    "data too long": spoilt(height=47),
    "step too small": spoilt(step=191),
    "no width": spoilt(width=0),
    "no height": spoilt(height=0),
    "unknown encoding": spoilt(encoding="rgb9"),
    "no encoding": spoilt(encoding=""),
    "odd width in yuv422": message(np.zeros((4, 5, 2), np.uint8), "yuv422", 2.0),
    "nv12 without colours": message(GREY, "nv12", 2.0),
    "bytes that end in the header": b"\0\1\0\0" + bytes(8) + b"\xff\0\0\0",
    "bytes of no ROS message": b"\x7fELF" + bytes(40),
}


@pytest.mark.parametrize("fault", BAD)
def test_impossible_message_is_counted_and_the_next_image_segmented(
    live: Bench, fault: str
) -> None:
    live.send(message(RGB, "rgb8", 1.0, f"test_bad/{fault}"))
    before = live.counted().ledger
    live.camera.publish(BAD[fault])
    status = live.status("ledger", lambda v: int(v["rejected"]) == before.rejected + 1)
    live.send(message(RGB, "rgb8", 2.1, f"test_bad/{fault}"))
    after = live.counted().ledger
    assert after.rejected == before.rejected + 1
    assert after.received == before.received + 2
    assert after.published == before.published + 1
    assert status.level > b"\0"
