"""The topics of a camera's masks and the messages on them; none is made without a subscriber."""

from __future__ import annotations

import posixpath
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import cv2
import numpy as np
from rclpy.event_handler import PublisherEventCallbacks
from rclpy.node import Node
from rclpy.qos import QoSProfile
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from std_msgs.msg import Header

from lowlat_seg_ros.engine.schedule import LEVELS
from lowlat_seg_ros.frames import Counters, Ledger, NodeTiming, Refinement, Segmentation
from lowlat_seg_ros.labels import ClassTable, Legend, colour_mask, overlay
from lowlat_seg_ros.messages import COMPRESSED, Messages, serialized_image
from lowlat_seg_ros.msg import FrameReport, KeyFrameRefinement, Statistics
from lowlat_seg_ros.ros.connections import (
    full_name,
    image_qos,
    latched_qos,
    message_class,
    misfit,
    output_qos,
    overridable_qos,
    policy_of,
    type_name,
)
from lowlat_seg_ros.ros.doctor import End, Finding, Output, examine_makers, examine_output, fix
from lowlat_seg_ros.ros.params import NodeConfig

try:
    from vision_msgs.msg import LabelInfo, VisionClass
except ImportError:  # it is not on PyPI
    LabelInfo = None

#: For pictures to look at; never for masks, whose ids it would mix at the edges.
JPEG_QUALITY = 90

#: After so many masks without the camera's CameraInfo, to whoever asks for theirs, that is said.
PATIENCE = 10


class RosMessages(Messages):
    """Makes messages of the classes that rosidl has generated."""

    def make(self, kind: str, /, **fields: Any) -> Any:
        """As the base class says; arrays of uint8 become fields of bytes."""
        arrays = {name: v for name, v in fields.items() if isinstance(v, np.ndarray)}
        message = message_class(kind)(**{n: v for n, v in fields.items() if n not in arrays})
        for name, values in arrays.items():  # the constructor would copy them once more
            setattr(message, name, _octets(values))
        return message

    def jpeg(self, header: Header, pixels: np.ndarray) -> CompressedImage:
        """``pixels``, uint8 (H, W, 3) RGB, as image_transport would send them."""
        quality = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]
        _, data = cv2.imencode(".jpg", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), quality)
        return self.make(COMPRESSED, header=header, format="rgb8; jpeg compressed bgr8", data=data)

    def png(self, header: Header, mask: np.ndarray) -> CompressedImage:
        """``mask``, uint8 (H, W), without loss, as image_transport would send it."""
        _, data = cv2.imencode(".png", mask)  # OpenCV's own choice is the fastest
        return self.make(COMPRESSED, header=header, format="mono8; png compressed ", data=data)


MESSAGES = RosMessages()


class OutputConnection:
    """A publisher of the node, and whoever subscribes to it."""

    def __init__(self, node: Node, name: str, message: Any, profile: QoSProfile) -> None:
        self._node, self._topic = node, node.resolve_topic_name(name)
        self._kind = type_name(message)
        self._refused = False
        self.publisher = node.create_publisher(
            message,
            name,
            profile,
            event_callbacks=PublisherEventCallbacks(incompatible_qos=self._on_incompatible),
            qos_overriding_options=overridable_qos(),
        )

    @property
    def has_subscribers(self) -> bool:
        """Whether somebody subscribes who fits."""
        return bool(self.publisher.get_subscription_count() > 0)

    def look(self) -> Output:
        """Who subscribes; not looked up before somebody came who does not fit."""
        if not self._refused:
            return Output(self._topic, self._kind)
        infos = self._node.get_subscriptions_info_by_topic(self._topic)
        of_kind = sum(info.topic_type == self._kind for info in infos)
        if self.publisher.get_subscription_count() >= of_kind:  # nobody is refused any more
            return Output(self._topic, self._kind)
        offered = self.publisher.qos_profile
        ends = (End(full_name(i), i.topic_type, misfit(offered, i.qos_profile)) for i in infos)
        return Output(self._topic, self._kind, tuple(ends))

    def destroy(self) -> None:
        """Remove the topic."""
        self._node.destroy_publisher(self.publisher)

    def _on_incompatible(self, event: Any) -> None:
        self._refused, policy = True, policy_of(event)
        self._node.get_logger().warning(
            f"A subscriber on {self._topic} asks for more {policy} than this node offers: it will "
            f"receive nothing; {fix(self._topic, 'publisher', policy)}"
        )


class Outputs:
    """The publishers of one camera."""

    def __init__(
        self, node: Node, table: ClassTable, camera: str = "", *, camera_info: str = "camera_info"
    ) -> None:
        """Create the topics.

        With the name of a ``camera`` the topics are below it: ``~/front/mask``. ``camera_info`` is
        the topic of the camera's CameraInfo, of which the masks' own is made.
        """
        self._node, self._table, self._camera = node, table, camera
        self._prefix = f"~/{camera}/" if camera else "~/"
        self._legend = Legend(table)
        self._connections: list[OutputConnection] = []
        self._mask = self._output(Image, "mask")
        self._mask_png = self._output(CompressedImage, "mask/compressed")
        self._mask_info = self._output(CameraInfo, "camera_info")
        self._report = self._output(FrameReport, "frame_report")
        self._statistics = self._output(Statistics, "statistics", latched_qos())
        self._refinement = self._output(KeyFrameRefinement, "key_frame_refinement")
        self._confidence = self._output(Image, "confidence")
        self._colours = self._output(Image, "color_mask")
        self._overlay = self._output(Image, "overlay")
        self._overlay_jpeg = self._output(CompressedImage, "overlay/compressed")
        self._camera_info: CameraInfo | None = None  # the newest
        self._without_info: int | None = 0  # masks before it; None once that is said
        self._info_subscription = node.create_subscription(
            CameraInfo, camera_info, self._on_camera_info, image_qos(),
            qos_overriding_options=overridable_qos(),
        )  # fmt: skip
        self._threshold = -1.0  # of the label info that is out
        if LabelInfo is None:
            node.get_logger().info("No topic ~/label_info: vision_msgs is not installed", once=True)
        else:
            self._labels = self._output(LabelInfo, "label_info", latched_qos())

    @property
    def wants_confidence(self) -> bool:
        """Whether somebody subscribes to the confidence of masks."""
        return self._confidence.has_subscribers

    def findings(self) -> list[Finding]:
        """What is wrong with those who subscribe, and whether others publish the masks as well."""
        topic = self._mask.publisher.topic_name
        makers = self._node.get_publishers_info_by_topic(topic)
        ends = [End(full_name(info), info.topic_type) for info in makers]
        refused = (found for output in self._connections for found in examine_output(output.look()))
        return [*examine_makers(topic, ends), *refused]

    def mask(self, header: Header, mask: np.ndarray, image_size: tuple[int, int]) -> None:
        """Publish ``mask``, uint8 (H, W), of an image of ``image_size`` (height, width), at once.

        With it goes its CameraInfo, once the camera has sent its own: none is made up.
        """
        if self._mask.has_subscribers:
            self._mask.publisher.publish(serialized_image(header, mask, "mono8"))
        if not self._mask_info.has_subscribers:
            return
        if self._camera_info is not None:
            info = scaled(self._camera_info, header, image_size, mask.shape)
            self._mask_info.publisher.publish(info)
        elif (masks := self._without_info) is not None:
            self._without_info = masks + 1
            if self._without_info == PATIENCE:
                self._without_info = None
                topic = self._info_subscription.topic_name
                self._node.get_logger().warning(
                    f"Nothing is published on {self._mask_info.publisher.topic_name}, as no "
                    f"CameraInfo has come on {topic} beside {PATIENCE} images; have the camera "
                    f"driver publish its calibration, or remap {topic} to where it does"
                )

    def label_info(self, threshold: float) -> None:
        """Publish which classes masks show, and the confidence ``threshold`` of their pixels.

        Nothing is published where vision_msgs is not installed, or that is out already.
        """
        if LabelInfo is not None and threshold != self._threshold:
            self._threshold = threshold
            self._labels.publisher.publish(self._label_info(threshold))

    def report(self, header: Header, result: Segmentation, timing: NodeTiming) -> None:
        """Publish what is known of a mask, its confidence, and itself as a file."""
        if self._mask_png.has_subscribers:
            self._mask_png.publisher.publish(MESSAGES.png(header, result.mask))
        if self._report.has_subscribers:
            self._report.publisher.publish(MESSAGES.frame_report(header, result, timing))
        if result.confidence is not None:
            self._confidence.publisher.publish(serialized_image(header, result.confidence, "mono8"))

    def statistics(self, now_ns: int, counters: Counters, ledger: Ledger) -> None:
        """Publish what was counted until ``now_ns``, also for those who subscribe later."""
        header = MESSAGES.header(now_ns, self._camera)
        with self._unless_shut_down():
            self._statistics.publisher.publish(MESSAGES.statistics(header, counters, ledger))

    def refinement(self, refinement: Refinement) -> None:
        """Publish what became of a key frame; any thread may call it."""
        with self._unless_shut_down():
            if self._refinement.has_subscribers:
                self._refinement.publisher.publish(MESSAGES.refinement_report(refinement))

    def pictures(
        self, header: Header, image: np.ndarray, result: Segmentation, config: NodeConfig
    ) -> None:
        """Publish pictures of a mask of ``image``, uint8 (H, W, 3) RGB, unless load is shed.

        They have the mask's size.
        """
        if not LEVELS[result.deadline.level].pictures:
            return
        if self._colours.has_subscribers:
            picture = colour_mask(result.mask, self._table)
            self._colours.publisher.publish(serialized_image(header, picture, "rgb8"))
        raw, jpeg = self._overlay.has_subscribers, self._overlay_jpeg.has_subscribers
        if not raw and not jpeg:
            return
        if image.shape[:2] != result.mask.shape:
            height, width = result.mask.shape
            image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
        mixed = overlay(image, result.mask, self._table, config.overlay_alpha)
        if config.overlay_legend:
            self._legend.draw(mixed)
        if raw:
            self._overlay.publisher.publish(serialized_image(header, mixed, "rgb8"))
        if jpeg:
            self._overlay_jpeg.publisher.publish(MESSAGES.jpeg(header, mixed))

    def destroy(self) -> None:
        """Remove the topics."""
        self._node.destroy_subscription(self._info_subscription)
        for output in self._connections:
            output.destroy()

    def _output(self, kind: Any, name: str, profile: QoSProfile | None = None) -> OutputConnection:
        name = self._prefix + name
        self._connections.append(OutputConnection(self._node, name, kind, profile or output_qos()))
        return self._connections[-1]

    @contextmanager
    def _unless_shut_down(self) -> Iterator[None]:
        """Drop what cannot be published any more, as the context was shut down meanwhile."""
        try:
            yield
        except RuntimeError:  # as all of rclpy's are
            if self._node.context.ok():
                raise

    def _on_camera_info(self, message: CameraInfo) -> None:
        self._camera_info = message

    def _label_info(self, threshold: float) -> Any:
        """Id and name of every class that masks show; classes of one id are there by each name."""
        info = LabelInfo(threshold=threshold)
        info.header.stamp = MESSAGES.time(self._node.get_clock().now().nanoseconds)
        shown = self._table.shown
        info.class_map = [VisionClass(class_id=i, class_name=name) for i, name, _ in shown]
        return info


def topic_beside(image_topic: str) -> str:
    """Where a camera with its images on ``image_topic`` has its CameraInfo (image_transport)."""
    return posixpath.join(posixpath.dirname(image_topic), "camera_info")


def scaled(
    info: CameraInfo, header: Header, image: tuple[int, int], mask: tuple[int, ...]
) -> CameraInfo:
    """``info`` of images of size ``image`` for masks of size ``mask``, both (height, width) px.

    Pixel centres have whole coordinates (image_geometry), and those of mask and image lie as in
    ``cv2.resize``: u' = (u + 0.5) s - 0.5. So fx, fy and the baselines in P are multiplied and the
    principal points moved with their half pixels. Distortion and binning stay; the region of
    interest is rounded to pixels of the mask.
    """
    down, right = mask[0] / image[0], mask[1] / image[1]
    result = CameraInfo(
        header=header,
        height=round(info.height * down),
        width=round(info.width * right),
        distortion_model=info.distortion_model,
        d=info.d,
        k=_resized(info.k, 3, right, down),
        r=info.r,
        p=_resized(info.p, 4, right, down),
        binning_x=info.binning_x,
        binning_y=info.binning_y,
    )
    result.roi.x_offset = round(info.roi.x_offset * right)
    result.roi.y_offset = round(info.roi.y_offset * down)
    result.roi.width = round(info.roi.width * right)
    result.roi.height = round(info.roi.height * down)
    result.roi.do_rectify = info.roi.do_rectify
    return result


def _resized(matrix: list[float], columns: int, right: float, down: float) -> list[float]:
    """The camera matrix, row by row, of the resized image; all zeros (uncalibrated) stay so."""
    result = [float(value) for value in matrix]
    for row, scale in enumerate((right, down)):
        cells = range(row * columns, (row + 1) * columns)
        # Its third row is that of Z, by which pixels are divided.
        offset = (scale - 1) / 2
        for cell, depth in zip(cells, result[2 * columns :], strict=True):
            result[cell] = result[cell] * scale + offset * depth
    return result


def _octets(values: np.ndarray) -> array[int]:
    """The bytes of ``values``; the field's setter would check all but an array.array one by one."""
    data = array("B")
    data.frombytes(np.ascontiguousarray(values).reshape(-1).view(np.uint8).data)
    return data
