"""The example of a consumer, ``config/integrations/consumer.py``, on masks like the node's."""

from __future__ import annotations

import runpy

import numpy as np
import pytest
import rclpy
from harness import ROOT, message
from rclpy.executors import SingleThreadedExecutor
from sensor_msgs.msg import Image
from std_msgs.msg import Float32

from lowlat_seg_ros.labels import CAMVID
from lowlat_seg_ros.ros.connections import output_qos


def test_share_of_the_road_ahead() -> None:
    example = runpy.run_path(str(ROOT / "config" / "integrations" / "consumer.py"))
    assert CAMVID.names[example["ROAD"]] == "Road"
    mask = np.full((40, 60), CAMVID.names.index("Sky"), np.uint8)
    mask[20:, 20:30] = example["ROAD"]  # half of the way
    mask[30:, 20:40] = 255  # unlabelled, so it does not count
    rclpy.init()
    try:
        consumer, executor = example["RoadAhead"](), SingleThreadedExecutor()
        other = rclpy.create_node("other")
        shares: list[float] = []
        masks = other.create_publisher(Image, "/segmentation_node/mask", output_qos())
        other.create_subscription(
            Float32, "/road_ahead/share", lambda share: shares.append(share.data), 1
        )
        for node in (consumer, other):
            executor.add_node(node)
        while not shares:  # the test's own timeout bounds this
            masks.publish(message(mask, "mono8", 1.0, padding=4))
            executor.spin_once(timeout_sec=0.1)
    finally:
        rclpy.try_shutdown()
    assert shares[0] == pytest.approx(0.5)
