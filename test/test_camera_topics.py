"""Advice on where a camera's images are: followed, it ends at the topic that has them."""

from __future__ import annotations

import re

import pytest

pytest.importorskip("sensor_msgs", reason="needs ROS 2")

from lowlat_seg_ros.messages import COMPRESSED
from lowlat_seg_ros.messages import IMAGE as RAW
from lowlat_seg_ros.ros.doctor import (
    CAMERA_INFO,
    NAMES,
    SUFFIXES,
    Subscription,
    Topic,
    advice,
    way_to,
)


def follow(text: str, now: Subscription) -> Topic:
    """The topic that the node listens to once the first advice in ``text`` was taken."""
    image, kind, base = now.image, now.kind, now.base
    rules = dict(re.findall(r"remap (\S+) to ([^\s,;]+)", text))
    if transport := re.search(r"image_transport to (raw|compressed)", text):
        kind = {value: key for key, value in NAMES.items()}[transport[1]]
    base = rules.get(image, base)
    name = base + SUFFIXES[kind]
    return Topic(rules.get(name, name), kind)


@pytest.mark.parametrize("kind", [RAW, COMPRESSED])
@pytest.mark.parametrize("base", ["/camera/image_raw", "/camera/image_raw/compressed", "/nowhere"])
@pytest.mark.parametrize("image", ["image", "front/image"])
@pytest.mark.parametrize(
    "there",
    [
        Topic("/camera/image_raw", RAW),
        Topic("/camera/image_raw/compressed", COMPRESSED),
        Topic("/robot/camera/image_raw", RAW),
        Topic("/usb_cam/image_jpeg", COMPRESSED),  # as image_transport would not name it
        Topic("/nowhere", COMPRESSED),
    ],
)
def test_who_follows_the_advice_gets_the_images(
    kind: str, base: str, image: str, there: Topic
) -> None:
    now = Subscription(image, base, kind)
    if there == Topic(base + SUFFIXES[kind], kind):
        return  # it has them already
    for text in (way_to(there, now), advice([there], now)):
        assert follow(text, now) == there, text


def test_a_remapping_that_leads_astray_is_left_out() -> None:
    """Where image/compressed is remapped, and its own topic is the one with images."""
    now = Subscription("image", "/camera/image_raw", COMPRESSED)
    text = way_to(Topic("/camera/image_raw/compressed", COMPRESSED), now)
    assert text == "leave out the remapping of /camera/image_raw/compressed"


@pytest.mark.parametrize(
    ("base", "meant"),
    [
        ("/camera/image_raw", "/robot/camera/image_raw"),  # another namespace
        ("/front/image_rawe", "/front/image_raw"),
        ("/camera/color/image_raw", "/camera/camera/color/image_raw"),  # realsense
        ("/camera/image_raw/compressed", "/robot/camera/image_raw"),
    ],
)
def test_the_closest_topic_is_named_first(base: str, meant: str) -> None:
    names = ["/depth/image_rect", "/rear/image", "/a/b/c", "/front/image_raw"]
    topics = [Topic(name, RAW) for name in dict.fromkeys([*names, meant])]
    if meant == "/robot/camera/image_raw":
        topics = [topic for topic in topics if topic.name != "/front/image_raw"]
    if meant == "/camera/camera/color/image_raw":
        topics.append(Topic("/camera/camera/depth/image_rect_raw", RAW))
    text = advice(topics, Subscription("image", base))
    assert text.startswith(f"remap image to {meant}, as "), text
    assert "there are also" in text


def test_the_own_topic_in_the_other_transport_comes_before_all() -> None:
    own = Topic("/camera/image_raw/compressed", COMPRESSED)
    there = [Topic("/camera/image_rect", RAW), own, Topic("/cameras/image_raw", RAW)]
    text = advice(there, Subscription("image", "/camera/image_raw"))
    assert text.startswith("set the parameter image_transport to compressed, as ")


@pytest.mark.parametrize(
    ("there", "texts"),
    [
        ([], ["start the camera", "ROS_DOMAIN_ID"]),
        ([Topic("/camera/camera_info", CAMERA_INFO)], ["/camera/camera_info alone", "driver"]),
        ([Topic("/c/depth/compressedDepth", COMPRESSED)], ["which is depth"]),
        ([Topic("/c/image/theora", "theora_image_transport/msg/Packet")], ["republish", "theora"]),
        ([Topic("/c/image/zstd", COMPRESSED)], ["does not read zstd"]),
    ],
)
def test_what_cannot_be_segmented_is_not_advised(there: list[Topic], texts: list[str]) -> None:
    text = advice(there, Subscription("image", "/camera/image_raw"))
    assert "remap" not in text
    assert all(part in text for part in texts), text
