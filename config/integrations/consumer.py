"""A node that uses the masks: how much of the way straight ahead is road.

Run it beside the segmentation node: ``python3 consumer.py``.
"""

import numpy as np
import rclpy
from rclpy.node import Node
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import Image
from std_msgs.msg import Float32

ROAD = 3  # of CamVid's classes; ~/label_info has the ids of all


class RoadAhead(Node):
    def __init__(self) -> None:
        super().__init__("road_ahead")
        self.share = self.create_publisher(Float32, "~/share", 1)
        # Best effort and only the newest mask: an old one is worse than none.
        self.create_subscription(
            Image, "/segmentation_node/mask", self.on_mask, qos_profile_sensor_data
        )

    def on_mask(self, mask: Image) -> None:
        ids = np.frombuffer(mask.data, np.uint8).reshape(mask.height, mask.step)[:, : mask.width]
        ahead = ids[mask.height // 2 :, mask.width // 3 : 2 * mask.width // 3]
        known = ahead[ahead != 255]  # 255 is unlabelled
        self.share.publish(Float32(data=float((known == ROAD).mean()) if known.size else 0.0))


if __name__ == "__main__":
    rclpy.init()
    rclpy.spin(RoadAhead())
