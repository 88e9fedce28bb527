"""What a live node publishes besides masks: confidence, pictures and the names of its classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from harness import RELIABLE, Bench, Inbox, Start, mask_of, message, picture
from rclpy.qos import DurabilityPolicy, QoSProfile
from sensor_msgs.msg import CompressedImage, Image

from lowlat_seg_ros.config import EngineConfig
from lowlat_seg_ros.engine.engine import Engine
from lowlat_seg_ros.frames import Frame
from lowlat_seg_ros.images import WATCHED_IMAGES
from lowlat_seg_ros.images.raw import narrowed
from lowlat_seg_ros.labels import CAMVID, Legend, colour_mask, overlay
from lowlat_seg_ros.ros.outputs import MESSAGES, LabelInfo

RGB = picture(240, 320)
LATCHED = QoSProfile(
    depth=1, reliability=RELIABLE.reliability, durability=DurabilityPolicy.TRANSIENT_LOCAL
)


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


def test_what_goes_out_has_the_ids_and_the_confidence_that_are_asked_for(
    start: Start, checkpoint: Path
) -> None:
    """Mask, colours and file alike; and 12 of 16 bits are named once, with what to set."""
    entries = ["Road:50", "Sky:255", "Car:50"]
    table = CAMVID.remapped(entries)
    node, bench = start(class_remap=entries)
    colours = bench.listen(Image, "color_mask")
    files = bench.listen(CompressedImage, "mask/compressed")
    first(bench, colours, "test_discovery")
    first(bench, files, "test_discovery")
    wide = RGB * np.uint16(16)
    for index in range(2 * WATCHED_IMAGES):
        bench.send(message(wide, "rgb16", 1.0 + index, "test_bits"))
    node.wait_for_log("set the parameter advanced.bits_per_sample to 12")
    bench.set_parameters(bits_per_sample=12)
    rgb = narrowed(wide, 12)
    with Engine.from_checkpoint(checkpoint, EngineConfig(foreground_threads=1), "cpu") as engine:
        whole = engine.process(Frame(rgb, 0), confidence=True)
    assert whole.confidence is not None
    for least in (0.0, float(np.median(whole.confidence)) / 255):
        bench.set_parameters(confidence_threshold=least)
        wanted = table.id_lut[whole.mask]
        wanted[whole.confidence < 255 * least] = 255
        image = message(wide, "rgb16", 1.0, f"test_ids/{least}")
        bench.send(image)
        found = bench.mask_on(image)
        np.testing.assert_array_equal(mask_of(found), wanted)
        picture = colours.first(lambda item, header=image.header: item.header == header)
        np.testing.assert_array_equal(pixels_of(picture), colour_mask(wanted, table))
        file = files.first(lambda item, header=image.header: item.header == header)
        assert file.format == "mono8; png compressed "
        pixels = cv2.imdecode(np.frombuffer(file.data, np.uint8), cv2.IMREAD_UNCHANGED)
        np.testing.assert_array_equal(pixels, wanted)
    assert node.log.count("advanced.bits_per_sample") == 1


@pytest.mark.skipif(LabelInfo is None, reason="needs vision_msgs")
def test_label_info_is_there_for_whoever_comes_late(live: Bench) -> None:
    info = live.listen(LabelInfo, "label_info", LATCHED).first(lambda _: True)
    classes = [(item.class_id, item.class_name) for item in info.class_map]
    assert classes == list(enumerate(CAMVID.names))


@pytest.mark.skipif(LabelInfo is None, reason="needs vision_msgs")
def test_label_info_has_the_ids_and_the_threshold_of_the_masks(start: Start) -> None:
    """Every id of a mask is there or unlabelled, by every name that it has, also when it changes"""
    _, bench = start(class_remap=["Road:50", "Sky:255", "Car:50"], confidence_threshold=0.25)
    infos = bench.listen(LabelInfo, "label_info", LATCHED)
    info = infos.first(lambda _: True)
    classes = {item.class_name: item.class_id for item in info.class_map}
    kept = {name: i for i, name in enumerate(CAMVID.names) if name not in ("Road", "Sky", "Car")}
    assert classes == kept | {"Road": 50, "Car": 50}
    assert (info.threshold, info.header.frame_id) == (0.25, "")
    image = message(RGB, "rgb8", 1.0, "test_labels")
    bench.send(image)
    assert {*np.unique(mask_of(bench.mask_on(image)))} <= {*classes.values(), 255}
    bench.set_parameters(confidence_threshold=0.5)
    bench.send(message(RGB, "rgb8", 2.0, "test_labels"))
    assert infos.first(lambda info: info.threshold == 0.5).class_map == info.class_map


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
        ("mask/compressed", "publisher"), ("camera_info", "publisher"),
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
