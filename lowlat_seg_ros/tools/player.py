"""A camera that plays a clip: images at a steady rate, stamped when they are published."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

import numpy as np
from rclpy.node import Node
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import Image
from std_msgs.msg import Header

from lowlat_seg_ros.ros.messages import MESSAGES


class Player:
    """Publishes on ``topic`` as camera drivers do (SensorData, REP-2003), in ``frame_id``."""

    def __init__(self, node: Node, topic: str = "image", frame_id: str = "camera") -> None:
        self._node, self._frame_id = node, frame_id
        self._publisher = node.create_publisher(Image, topic, qos_profile_sensor_data)

    @property
    def listeners(self) -> int:
        """How many subscriptions there are."""
        return int(self._publisher.get_subscription_count())

    def publish(self, image: np.ndarray) -> int:
        """Publish ``image``, uint8 (H, W, 3) RGB, stamped now; returns the stamp in ns."""
        message = MESSAGES.image(Header(frame_id=self._frame_id), image, "rgb8")
        now_ns = int(self._node.get_clock().now().nanoseconds)
        message.header.stamp = MESSAGES.time(now_ns)
        self._publisher.publish(message)
        return now_ns

    def play(self, images: Sequence[np.ndarray], rate_hz: float) -> Iterator[int]:
        """Publish ``images`` at ``rate_hz``, yielding each one's stamp in ns.

        The schedule is absolute: time lost on one image is not passed on to the next ones.
        """
        began = time.monotonic()
        for index, image in enumerate(images):
            time.sleep(max(0.0, began + index / rate_hz - time.monotonic()))
            yield self.publish(image)
