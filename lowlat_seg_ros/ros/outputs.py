"""What comes of a camera's masks: their topics, and what is made for those who subscribe."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from rclpy.node import Node
from rclpy.qos import QoSProfile
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from std_msgs.msg import Header

from lowlat_seg_ros.engine.schedule import LEVELS
from lowlat_seg_ros.frames import NodeTiming, Refinement, Segmentation
from lowlat_seg_ros.images.ledger import Ledger
from lowlat_seg_ros.labels import ClassTable, colour_mask, overlay
from lowlat_seg_ros.legend import Legend
from lowlat_seg_ros.msg import FrameReport, KeyFrameRefinement
from lowlat_seg_ros.ros import label_info, qos
from lowlat_seg_ros.ros.camera_info import MaskCameraInfo
from lowlat_seg_ros.ros.connections import OutputConnection
from lowlat_seg_ros.ros.conversion import image_message, jpeg_message
from lowlat_seg_ros.ros.doctor import Finding, examine_output
from lowlat_seg_ros.ros.params import NodeConfig
from lowlat_seg_ros.ros.reports import frame_report, refinement_report


class Outputs:
    """The publishers of one camera. Nothing is made for a topic that nobody subscribes to."""

    def __init__(
        self, node: Node, table: ClassTable, camera: str = "", *, camera_info: str = ""
    ) -> None:
        """Create the topics, and say on ``~/label_info`` which classes there are.

        With the name of a ``camera`` the topics are below it: ``~/front/mask``. Of the topic
        ``camera_info``, if there is one, the masks' own is made.
        """
        self._node, self._table = node, table
        self._prefix = f"~/{camera}/" if camera else "~/"
        self._legend = Legend(table)
        self._connections: list[OutputConnection] = []
        self._mask = self._output(Image, "mask")
        self._report = self._output(FrameReport, "frame_report")
        self._refinement = self._output(KeyFrameRefinement, "key_frame_refinement")
        self._confidence = self._output(Image, "confidence")
        self._colours = self._output(Image, "color_mask")
        self._overlay = self._output(Image, "overlay")
        self._overlay_jpeg = self._output(CompressedImage, "overlay/compressed")
        self._info: MaskCameraInfo | None = None
        if camera_info:
            self._info = MaskCameraInfo(node, camera_info, self._output(CameraInfo, "camera_info"))
        if label_info.LabelInfo is None:
            node.get_logger().info("No topic ~/label_info: vision_msgs is not installed", once=True)
        else:
            labels = self._output(label_info.LabelInfo, "label_info", qos.latched())
            now_ns = node.get_clock().now().nanoseconds
            labels.publisher.publish(label_info.message(table, now_ns))

    @property
    def wants_confidence(self) -> bool:
        """Whether somebody subscribes to it."""
        return self._confidence.wanted

    def findings(self) -> list[Finding]:
        """Subscribers who receive nothing, and what mends it."""
        return [found for output in self._connections for found in examine_output(output.look())]

    def mask(self, header: Header, mask: np.ndarray, image: tuple[int, int]) -> None:
        """Publish ``mask``, uint8 (H, W), of an image of size (height, width), at once."""
        if self._mask.wanted:
            self._mask.publisher.publish(image_message(header, mask, "mono8"))
        if self._info is not None:
            self._info.publish(header, image, mask.shape)

    def report(
        self, header: Header, result: Segmentation, timing: NodeTiming, ledger: Ledger
    ) -> None:
        """Publish what is known of a mask, and its confidence."""
        if self._report.wanted:
            self._report.publisher.publish(frame_report(header, result, timing, ledger))
        if result.confidence is not None:
            message = image_message(header, result.confidence, "mono8")
            self._confidence.publisher.publish(message)

    def refinement(self, refinement: Refinement) -> None:
        """Publish what became of a key frame; any thread may call it."""
        try:
            if self._refinement.wanted:
                self._refinement.publisher.publish(refinement_report(refinement))
        except RuntimeError:  # as all of rclpy's are
            if self._node.context.ok():
                raise  # else it was shut down meanwhile, and what is left of Sh is dropped

    def pictures(
        self, header: Header, image: np.ndarray, result: Segmentation, settings: NodeConfig
    ) -> None:
        """Publish pictures of a mask of ``image``, uint8 (H, W, 3) RGB, unless load is shed.

        They have the mask's size.
        """
        if not LEVELS[result.deadline.level].pictures:
            return
        if self._colours.wanted:
            picture = colour_mask(result.mask, self._table)
            self._colours.publisher.publish(image_message(header, picture, "rgb8"))
        raw, jpeg = self._overlay.wanted, self._overlay_jpeg.wanted
        if not raw and not jpeg:
            return
        if image.shape[:2] != result.mask.shape:
            height, width = result.mask.shape
            image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
        mixed = overlay(image, result.mask, self._table, settings.overlay_alpha)
        if settings.overlay_legend:
            self._legend.draw(mixed)
        if raw:
            self._overlay.publisher.publish(image_message(header, mixed, "rgb8"))
        if jpeg:
            self._overlay_jpeg.publisher.publish(jpeg_message(header, mixed))

    def destroy(self) -> None:
        """Take back the topics."""
        if self._info is not None:
            self._info.destroy()
        for output in self._connections:
            output.destroy()

    def _output(self, kind: Any, name: str, profile: QoSProfile | None = None) -> OutputConnection:
        name = self._prefix + name
        self._connections.append(OutputConnection(self._node, name, kind, profile or qos.output()))
        return self._connections[-1]
