"""What a live node publishes besides masks: confidence, pictures and the names of its classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Start
from harness import RELIABLE, Bench, Inbox, mask_of, message, picture
from rclpy.qos import DurabilityPolicy, QoSProfile
from sensor_msgs.msg import CompressedImage, Image

from lowlat_seg_ros.config import EngineConfig
from lowlat_seg_ros.engine.engine import Engine
from lowlat_seg_ros.frames import Frame
from lowlat_seg_ros.labels import CAMVID, Legend, colour_mask, overlay
from lowlat_seg_ros.ros.messages import MESSAGES
from lowlat_seg_ros.ros.outputs import LabelInfo

RGB = picture(240, 320)


def first(bench: Bench, inbox: Inbox, frame_id: str) -> Any:
    """The first message on an image of ``frame_id``, which are sent until it is there."""
    image = message(RGB, "rgb8", 1.0, frame_id)
    while not any(item.header.frame_id == frame_id for item in inbox.all()):
        image.header.stamp.sec += 1
        bench.send(image)
    return inbox.first(lambda item: item.header.frame_id == frame_id)


def pixels_of(image: Image) -> np.ndarray:
    assert image.encoding == "rgb8"
    return np.frombuffer(image.data, np.uint8).reshape(image.height, image.width, 3)


def mixed(mask: np.ndarray, *, legend: bool) -> np.ndarray:
    wanted = overlay(RGB, mask, CAMVID, 0.5)
    if legend:
        Legend(CAMVID).draw(wanted)
    return wanted


def test_confidence_is_the_engines(start: Start, checkpoint: Path) -> None:
    _, bench = start()
    inbox = bench.listen(Image, "confidence")
    first(bench, inbox, "test_discovery")
    image = message(RGB, "rgb8", 1.0, "fresh")
    bench.send(image)
    found = inbox.first(lambda item: item.header == image.header)
    with Engine.from_checkpoint(checkpoint, EngineConfig(foreground_threads=1), "cpu") as engine:
        wanted = engine.process(Frame(RGB, 0), confidence=True).confidence
    assert wanted is not None
    assert np.ptp(wanted) > 10
    np.testing.assert_array_equal(mask_of(found), wanted)


def test_colour_mask_shows_the_mask(live: Bench) -> None:
    found = first(live, live.listen(Image, "color_mask"), "test_colours")
    mask = mask_of(live.mask_on(found))
    np.testing.assert_array_equal(pixels_of(found), colour_mask(mask, CAMVID))


def test_overlay_has_a_legend_unless_it_is_switched_off(start: Start) -> None:
    _, bench = start()
    found = first(bench, bench.listen(Image, "overlay"), "test_with")
    mask = mask_of(bench.mask_on(found))
    np.testing.assert_array_equal(pixels_of(found), mixed(mask, legend=True))
    assert (mixed(mask, legend=True) != mixed(mask, legend=False)).any()
    (result,) = bench.set_parameters(overlay_legend=False)
    assert result.successful
    found = first(bench, bench.listen(Image, "overlay"), "test_without")
    mask = mask_of(bench.mask_on(found))
    np.testing.assert_array_equal(pixels_of(found), mixed(mask, legend=False))


def test_overlay_as_jpeg(live: Bench) -> None:
    found = first(live, live.listen(CompressedImage, "overlay/compressed"), "test_jpeg")
    assert found.format == "rgb8; jpeg compressed bgr8"
    wanted = mixed(mask_of(live.mask_on(found)), legend=True)
    assert found.data == MESSAGES.jpeg(found.header, wanted).data


@pytest.mark.skipif(LabelInfo is None, reason="needs vision_msgs")
def test_label_info_is_there_for_whoever_comes_late(live: Bench) -> None:
    latched = QoSProfile(
        depth=1, reliability=RELIABLE.reliability, durability=DurabilityPolicy.TRANSIENT_LOCAL
    )
    info = live.listen(LabelInfo, "label_info", latched).first(lambda _: True)
    classes = [(item.class_id, item.class_name) for item in info.class_map]
    assert classes == list(enumerate(CAMVID.names))


@pytest.mark.skipif(LabelInfo is not None, reason="vision_msgs is installed")
def test_absence_of_label_info_is_said_once(start: Start) -> None:
    node, bench = start()
    bench.send(message(RGB, "rgb8", 1.0))
    assert node.log.count("No topic ~/label_info: vision_msgs is not installed") == 1


@pytest.mark.parametrize(
    ("topic", "side"),
    [
        ("confidence", "publisher"), ("color_mask", "publisher"), ("overlay", "publisher"),
        ("overlay/compressed", "publisher"), ("mask", "publisher"), ("frame_report", "publisher"),
        ("/diagnostics", "publisher"), ("image", "subscription"),
    ],
)  # fmt: skip
def test_quality_of_service_of_every_topic_can_be_overridden(
    live: Bench, topic: str, side: str
) -> None:
    namespace = live.node.get_namespace()
    own = f"{namespace}/segmentation_node/{topic}" if side == "publisher" else f"{namespace}/image"
    name = topic if topic.startswith("/") else own
    assert f"qos_overrides.{name}.{side}.reliability" in live.list_parameters()
