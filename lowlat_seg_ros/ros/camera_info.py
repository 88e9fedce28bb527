"""The ``CameraInfo`` of masks that have another size than the camera's images."""

from __future__ import annotations

import posixpath
from typing import Any

from rclpy.node import Node
from sensor_msgs.msg import CameraInfo
from std_msgs.msg import Header

from lowlat_seg_ros.ros import qos
from lowlat_seg_ros.ros.connections import OutputConnection


class MaskCameraInfo:
    """Publishes the newest CameraInfo of a camera with each mask, fitted to the mask's size."""

    def __init__(self, node: Node, topic: str, output: OutputConnection) -> None:
        """``topic``: where the camera's own comes from."""
        self._node, self._output = node, output
        self._newest: CameraInfo | None = None
        self._subscription: Any = node.create_subscription(
            CameraInfo, topic, self._remember, qos.image(), qos_overriding_options=qos.overridable()
        )

    def publish(self, header: Header, image: tuple[int, int], mask: tuple[int, int]) -> None:
        """For a mask of size ``mask`` of an image of size ``image``, both (height, width) px.

        Nothing before the camera has sent one.
        """
        if self._newest is not None and self._output.wanted:
            self._output.publisher.publish(scaled(self._newest, header, image, mask))

    def destroy(self) -> None:
        """Listen no longer."""
        self._node.destroy_subscription(self._subscription)

    def _remember(self, message: CameraInfo) -> None:
        self._newest = message


def topic_beside(image_topic: str) -> str:
    """Where a camera with its images on ``image_topic`` has its CameraInfo (image_transport)."""
    return posixpath.join(posixpath.dirname(image_topic), "camera_info")


def scaled(
    info: CameraInfo, header: Header, image: tuple[int, int], mask: tuple[int, int]
) -> CameraInfo:
    """``info`` of images of size ``image`` for masks of size ``mask``, both (height, width) px.

    Pixel centres have whole coordinates (image_geometry), and those of mask and image lie as
    ``cv2.resize`` has it: u' = (u + 0.5) s - 0.5. So fx, fy and the baselines in P are multiplied
    and the principal points moved with their half pixels. Distortion and binning stay; the region
    of interest is rounded to pixels of the mask.
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
