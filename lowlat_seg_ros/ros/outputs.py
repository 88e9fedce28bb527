"""What comes of a camera's masks: their topics, and what is made for those who subscribe."""

from __future__ import annotations

from typing import Any

import numpy as np
from rclpy.node import Node
from rclpy.qos import QoSProfile
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header

from lowlat_seg_ros.data.labels import ClassTable, colour_mask, overlay
from lowlat_seg_ros.data.legend import Legend
from lowlat_seg_ros.engine.deadline import LEVELS
from lowlat_seg_ros.frames import Segmentation
from lowlat_seg_ros.msg import FrameReport
from lowlat_seg_ros.ros import label_info, qos
from lowlat_seg_ros.ros.conversion import image_message, jpeg_message
from lowlat_seg_ros.ros.ledger import Ledger
from lowlat_seg_ros.ros.params import NodeConfig
from lowlat_seg_ros.ros.reports import NodeTiming, frame_report


class Outputs:
    """The publishers of one camera. Nothing is made for a topic that nobody subscribes to."""

    def __init__(self, node: Node, table: ClassTable) -> None:
        """Create the topics, and say on ``~/label_info`` which classes there are."""
        self._node, self._table = node, table
        self._legend = Legend(table)
        self._mask = self._publisher(Image, "~/mask")
        self._report = self._publisher(FrameReport, "~/frame_report")
        self._confidence = self._publisher(Image, "~/confidence")
        self._colours = self._publisher(Image, "~/color_mask")
        self._overlay = self._publisher(Image, "~/overlay")
        self._overlay_jpeg = self._publisher(CompressedImage, "~/overlay/compressed")
        self._publishers = [
            *(self._mask, self._report, self._confidence),
            *(self._colours, self._overlay, self._overlay_jpeg),
        ]
        if label_info.LabelInfo is None:
            node.get_logger().info("No topic ~/label_info: vision_msgs is not installed")
        else:
            labels = self._publisher(label_info.LabelInfo, "~/label_info", qos.latched())
            labels.publish(label_info.message(table, node.get_clock().now().nanoseconds))
            self._publishers.append(labels)

    @property
    def wants_confidence(self) -> bool:
        """Whether somebody subscribes to it."""
        return _wanted(self._confidence)

    def mask(self, header: Header, mask: np.ndarray) -> None:
        """Publish ``mask``, uint8 (H, W), as soon as it is there."""
        if _wanted(self._mask):
            self._mask.publish(image_message(header, mask, "mono8"))

    def report(
        self, header: Header, result: Segmentation, timing: NodeTiming, ledger: Ledger
    ) -> None:
        """Publish what is known of a mask, and its confidence."""
        if _wanted(self._report):
            self._report.publish(frame_report(header, result, timing, ledger))
        if result.confidence is not None:
            self._confidence.publish(image_message(header, result.confidence, "mono8"))

    def pictures(
        self, header: Header, image: np.ndarray, result: Segmentation, settings: NodeConfig
    ) -> None:
        """Publish pictures of a mask of ``image``, uint8 (H, W, 3) RGB, unless load is shed."""
        if not LEVELS[result.deadline.level].pictures:
            return
        if _wanted(self._colours):
            picture = colour_mask(result.mask, self._table)
            self._colours.publish(image_message(header, picture, "rgb8"))
        raw, jpeg = _wanted(self._overlay), _wanted(self._overlay_jpeg)
        if not raw and not jpeg:
            return
        mixed = overlay(image, result.mask, self._table, settings.overlay_alpha)
        if settings.overlay_legend:
            self._legend.draw(mixed)
        if raw:
            self._overlay.publish(image_message(header, mixed, "rgb8"))
        if jpeg:
            self._overlay_jpeg.publish(jpeg_message(header, mixed))

    def destroy(self) -> None:
        """Take back the topics."""
        for publisher in self._publishers:
            self._node.destroy_publisher(publisher)

    def _publisher(self, kind: Any, name: str, profile: QoSProfile | None = None) -> Any:
        topic = self._node.resolve_topic_name(name)
        return self._node.create_publisher(
            kind,
            name,
            profile or qos.output(),
            event_callbacks=qos.warn_of_subscribers(self._node, topic),
            qos_overriding_options=qos.overridable(),
        )


def _wanted(publisher: Any) -> bool:
    return publisher.get_subscription_count() > 0
