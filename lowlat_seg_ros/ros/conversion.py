"""Arrays to image messages, raw and as JPEG."""

from __future__ import annotations

from array import array

import cv2
import numpy as np
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header

#: For pictures to look at; never for masks, whose ids it would mix at the edges.
JPEG_QUALITY = 90


def image_message(header: Header, pixels: np.ndarray, encoding: str) -> Image:
    """``pixels``, uint8 (H, W) or (H, W, C), as a message with ``header`` verbatim."""
    height, width = pixels.shape[:2]
    msg = Image(header=header, height=height, width=width, encoding=encoding)
    msg.step = pixels.nbytes // height
    msg.data = _octets(pixels)
    return msg


def jpeg_message(header: Header, pixels: np.ndarray) -> CompressedImage:
    """``pixels``, uint8 (H, W, 3) RGB, as image_transport would send them, ``header`` verbatim."""
    quality = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]
    _, data = cv2.imencode(".jpg", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), quality)
    msg = CompressedImage(header=header, format="rgb8; jpeg compressed bgr8")
    msg.data = _octets(data)
    return msg


def _octets(values: np.ndarray) -> array[int]:
    """The bytes of ``values`` as a message's field wants them.

    Anything but an array.array would be checked byte by byte by the setter.
    """
    data = array("B")
    data.frombytes(np.ascontiguousarray(values).reshape(-1).view(np.uint8).data)
    return data
