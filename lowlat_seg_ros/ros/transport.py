"""How images come, by the names that image_transport gives the ways and their topics."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import numpy as np
from rclpy.node import Node
from sensor_msgs.msg import CompressedImage, Image

from lowlat_seg_ros.images import compressed, raw


@dataclass(frozen=True)
class Transport:
    """``message`` is what comes on the topic ``image`` with ``suffix``.

    ``to_rgb`` makes uint8 (H, W, 3) RGB of it, or raises ``ImageError``; ``encoding`` names what it
    is made of.
    """

    message: Any
    suffix: str
    to_rgb: Callable[[Any], np.ndarray]
    encoding: Callable[[Any], str]

    def topic(self, node: Node, image: str = "image") -> str:
        """The topic to subscribe to: below whatever ``image`` is remapped to."""
        return node.resolve_topic_name(image) + self.suffix if self.suffix else image


TRANSPORTS = {
    "raw": Transport(Image, "", raw.to_rgb, attrgetter("encoding")),
    "compressed": Transport(
        CompressedImage, "/compressed", compressed.to_rgb, attrgetter("format")
    ),
}
