"""The QoS doctor on a live node: what it says of cameras and subscribers, and when it is well."""

from __future__ import annotations

import re
from array import array
from typing import Any

import cv2
from harness import NODE, RELIABLE, Bench, Start, message, picture, wait_until
from rclpy.qos import DurabilityPolicy, QoSProfile, qos_profile_sensor_data
from sensor_msgs.msg import CompressedImage, Image

RGB = picture()
ERROR, WARN, OK = b"\2", b"\1", b"\0"


def told(
    bench: Bench,
    *texts: str,
    of: str = "connections",
    level: bytes | None = ERROR,
    after: int = 0,
) -> Any:
    """The first status ``of`` the node of this level, None for any, with these in its message."""
    name = f"{bench.node.get_namespace()[1:]}/{NODE}: {of}"
    return bench.diagnostics.first(
        lambda s: (
            s.name == name and level in (None, s.level) and all(t in s.message for t in texts)
        ),
        after,
    )


def test_camera_that_offers_too_little_is_told_until_it_is_gone(start: Start) -> None:
    reliable = {"/strict_camera": {"subscription": {"reliability": "reliable"}}}
    node, bench = start(
        arguments=("-r", "image:=/strict_camera"), listen=False, qos_overrides=reliable,
        camera_timeout_ms=0.0,
    )  # fmt: skip
    weak = bench.node.create_publisher(Image, "/strict_camera", qos_profile_sensor_data)
    fix = "-p qos_overrides./strict_camera.subscription.reliability:=best_effort"
    told(
        bench, "no image yet on /strict_camera: ", "/bench offers less reliability on", fix,
        of="camera",
    )  # fmt: skip
    node.wait_for_log(fix)
    bench.camera = bench.node.create_publisher(Image, "/strict_camera", RELIABLE)
    bench.wait_for_node()
    told(bench, fix, level=WARN)  # of the two one fits
    seen = len(bench.diagnostics.all())
    bench.node.destroy_publisher(weak)
    told(bench, "every topic's ends fit", level=OK, after=seen)


def test_missing_camera_is_told_with_the_topics_there_are(start: Start) -> None:
    """The closest name comes first, for there may be many."""
    _, bench = start(arguments=("-r", "image:=imagee"), listen=False, camera_timeout_ms=100.0)
    there = f"{bench.node.get_namespace()}/image"
    text = f"nobody publishes {there}e; remap image to {there}, as sensor_msgs/msg/Image"
    status = told(bench, text, of="camera")
    told(bench, "no image comes, see the status camera", level=OK)  # one cause is one error
    assert status.message.startswith(f"no image yet on {there}e: nobody")


def test_who_follows_the_advice_gets_masks(start: Start) -> None:
    """The commonest layout of a bag, and the commonest mistake with it."""
    topic = "/bag/image_raw/compressed"
    wrong = {"image_transport": "compressed", "listen": False, "camera_timeout_ms": 100.0}
    _, bench = start(arguments=("-r", f"image:={topic}"), **wrong)
    camera = bench.node.create_publisher(CompressedImage, topic, RELIABLE)
    text = f"nobody publishes {topic}/compressed; remap image to /bag/"
    status = told(bench, text, of="camera")
    (advised,) = re.findall(r"remap image to (\S+), as", status.message)
    _, bench = start(arguments=("-r", f"image:={advised}"), **wrong)
    data = cv2.imencode(".png", RGB)[1].tobytes()
    image = CompressedImage(format="png", data=array("B", data))

    def answered() -> bool:
        camera.publish(image)
        return bool(bench.masks.all())

    wait_until(answered, lambda: "no mask comes", every_s=0.2)


def test_silent_camera_is_told_with_what_to_look_at(start: Start) -> None:
    _, bench = start(camera_timeout_ms=300.0)
    topic = f"{bench.node.get_namespace()}/image"
    seen = len(bench.diagnostics.all())
    status = told(bench, "no image for", f"ros2 topic hz {topic}", of="camera", after=seen)
    assert "fastdds_large_images.xml" not in status.message  # its images are small
    bench.send(message(picture(240, 320), "rgb8", 1.0))
    told(bench, "no image came for", "fastdds_large_images.xml", of="camera", after=seen)


def test_subscriber_that_asks_for_too_much_is_told(start: Start) -> None:
    _, bench = start()
    wants = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
    topic = f"{bench.node.get_namespace()}/{NODE}/confidence"
    strict = bench.node.create_subscription(Image, topic, print, wants)
    fix = f"start this node with -p qos_overrides.{topic}.publisher.durability:=transient_local"
    bench.listen(Image, "confidence", RELIABLE)  # and one that fits, whose durations are not set
    wait_until(
        lambda: len(bench.node.get_subscriptions_info_by_topic(topic)) == 2,
        lambda: "the second subscriber is not there",
    )
    seen = len(bench.diagnostics.all())
    wait_until(lambda: len(bench.diagnostics.all()) > seen + 20, lambda: "no diagnostics")
    # A warning, unless it has become an error meanwhile that no image comes.
    status = told(bench, f"/bench asks for more durability on {topic}", fix, level=None)
    name = status.name
    newest = [s for s in bench.diagnostics.all() if s.name == name][-1]
    assert fix in newest.message
    assert newest.message.count("asks for more") == 1  # of the other one nothing is said
    seen = len(bench.diagnostics.all())
    bench.node.destroy_subscription(strict)
    bench.diagnostics.first(lambda s: s.name == name and s.level == OK, after=seen)


def test_time_that_does_not_begin_is_told(start: Start) -> None:
    _, bench = start(use_sim_time=True, listen=False)
    told(bench, "no time on /clock", "set use_sim_time to false", level=WARN, of="camera")
    bench.wait_for_node()
    for number in range(1, 5):
        bench.send(message(RGB, "rgb8", 1.0 + number / 10))
    told(bench, "images come, but no time on /clock", "--clock", level=WARN, of="images")
