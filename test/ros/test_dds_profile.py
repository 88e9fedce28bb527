"""The shipped Fast DDS profile: large images between processes, none lost."""

from __future__ import annotations

import array
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("rclpy", reason="needs ROS 2")

import rclpy
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import Image

PROFILE = Path(__file__).parents[2] / "config" / "fastdds_large_images.xml"
COUNT, RATE_HZ, WIDTH, HEIGHT = 30, 15.0, 1280, 720
LOST_S = 20.0  # an image that has not come so long after the last one was lost
TOPIC = "test_dds_profile"


def publish(reliability: str) -> None:
    """Publish ``COUNT`` images at the rate of a camera once somebody listens, and says so.

    Each side finds the other by itself, and what comes in between is lost without RELIABLE.
    """
    node = rclpy.create_node("camera")
    publisher = node.create_publisher(Image, TOPIC, quality(reliability, depth=5))
    image = Image(height=HEIGHT, width=WIDTH, step=3 * WIDTH, encoding="rgb8")
    image.data = array.array("B", bytes(3 * WIDTH * HEIGHT))
    while not publisher.get_subscription_count():
        time.sleep(0.01)
    sys.stdin.readline()
    for number in range(COUNT):
        image.header.stamp.sec = number
        publisher.publish(image)
        time.sleep(1 / RATE_HZ)
    sys.stdin.read()  # the last images are on their way until the subscriber closes this pipe


def subscribe(reliability: str) -> None:
    """Print the numbers of the images that arrive, until all have or no more come."""
    numbers: list[int] = []
    node = rclpy.create_node("listener")
    # As deep as there are images: a busy machine delays callbacks, and what such a delay
    # overwrites at depth 1 is no loss of the transport.
    subscription = node.create_subscription(
        Image,
        TOPIC,
        lambda image: numbers.append(image.header.stamp.sec),
        quality(reliability, depth=COUNT),
    )
    camera = subprocess.Popen(
        [sys.executable, __file__, "publish", reliability], stdin=subprocess.PIPE
    )
    assert camera.stdin is not None
    while not subscription.get_publisher_count():
        time.sleep(0.01)
    camera.stdin.write(b"go\n")
    camera.stdin.flush()
    waiting_since, seen = time.monotonic(), 0
    while len(numbers) < COUNT and time.monotonic() - waiting_since < LOST_S:
        rclpy.spin_once(node, timeout_sec=0.1)
        if len(numbers) != seen or not numbers:
            waiting_since, seen = time.monotonic(), len(numbers)
    camera.communicate()
    print(*numbers)


def quality(reliability: str, depth: int) -> QoSProfile:
    return QoSProfile(depth=depth, reliability=ReliabilityPolicy[reliability])


@pytest.mark.parametrize("reliability", ["BEST_EFFORT", "RELIABLE"])
def test_no_large_image_is_lost_between_processes(reliability: str) -> None:
    # In processes of their own, for Fast DDS reads its profile once.
    done = subprocess.run(
        [sys.executable, __file__, "subscribe", reliability],
        env=os.environ | {"FASTRTPS_DEFAULT_PROFILES_FILE": str(PROFILE)},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert [int(number) for number in done.stdout.split()] == list(range(COUNT))


if __name__ == "__main__":
    rclpy.init()
    {"publish": publish, "subscribe": subscribe}[sys.argv[1]](sys.argv[2])
    rclpy.shutdown()
