"""Messages of the ROS installation."""

from __future__ import annotations

import functools
import importlib
from array import array
from typing import Any

import cv2
import numpy as np
from rclpy.serialization import serialize_message
from sensor_msgs.msg import CompressedImage
from std_msgs.msg import Header

from lowlat_seg_ros.messages import (
    COMPRESSED,
    IMAGE,
    Messages,
    SerializedCompressedImage,
    SerializedImage,
    compressed_image,
    raw_image,
)

#: For pictures to look at; never for masks, whose ids it would mix at the edges.
JPEG_QUALITY = 90


class RosMessages(Messages):
    """Makes messages of the classes that rosidl has generated."""

    def make(self, kind: str, /, **fields: Any) -> Any:
        """As the base class says; arrays of uint8 become fields of bytes."""
        arrays = {name: v for name, v in fields.items() if isinstance(v, np.ndarray)}
        message = message_class(kind)(**{n: v for n, v in fields.items() if n not in arrays})
        for name, values in arrays.items():  # the constructor would copy them once more
            setattr(message, name, _octets(values))
        return message

    def read(self, kind: str, message: bytes) -> SerializedImage | SerializedCompressedImage:
        """The image of type ``kind`` in a serialized ``message``; raises ``ImageError``."""

        def header(sec: int, nanosec: int, frame_id: str) -> Any:
            time = self.make("builtin_interfaces/msg/Time", sec=sec, nanosec=nanosec)
            return self.make("std_msgs/msg/Header", stamp=time, frame_id=frame_id)

        parse = raw_image if kind == IMAGE else compressed_image
        return parse(message, header)

    def serialized_image(self, header: Header, pixels: np.ndarray, encoding: str) -> bytes:
        """The bytes of :meth:`image`, into which ``pixels`` are copied once, not three times."""
        height, width = pixels.shape[:2]
        empty = self.make(
            IMAGE, header=header, height=height, width=width, encoding=encoding,
            step=pixels.nbytes // height,
        )  # fmt: skip
        # Only the length of the data, and they themselves, are missing at its end.
        length = np.uint32(pixels.nbytes).tobytes()
        return b"".join((serialize_message(empty)[:-4], length, np.ascontiguousarray(pixels)))

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


@functools.cache
def message_class(kind: str) -> Any:
    """The class of messages of type ``kind``, such as ``sensor_msgs/msg/Image``.

    ImportError or AttributeError if it is not installed.
    """
    package, _, name = kind.split("/")
    return getattr(importlib.import_module(f"{package}.msg"), name)


def _octets(values: np.ndarray) -> array[int]:
    """The bytes of ``values``; the field's setter would check all but an array.array one by one."""
    data = array("B")
    data.frombytes(np.ascontiguousarray(values).reshape(-1).view(np.uint8).data)
    return data
