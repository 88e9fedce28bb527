"""The messages that images come in, for each ``image_transport``."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

from lowlat_seg_ros.config import ConfigError
from lowlat_seg_ros.messages import COMPRESSED, IMAGE
from lowlat_seg_ros.ros.messages import message_class


@dataclass(frozen=True)
class Transport:
    """``kind`` of messages, and where their topic is below the one of raw images.

    ``depth`` messages wait while a frame is segmented. Of images the newest is enough; each of a
    video builds on those before it.
    """

    kind: str
    below: str
    depth: int = 1

    @property
    def is_video(self) -> bool:
        """Whether a message is a :class:`~.images.video.Packet`."""
        return self.depth > 1


#: As image_transport and its plugins name them.
TRANSPORTS = {
    "raw": Transport(IMAGE, ""),
    "compressed": Transport(COMPRESSED, "/compressed"),
    "foxglove": Transport("foxglove_msgs/msg/CompressedVideo", "/foxglove", 60),
    "ffmpeg": Transport("ffmpeg_image_transport_msgs/msg/FFMPEGPacket", "/ffmpeg", 60),
}


def message_of(transport: str) -> Any:
    """Its class of messages; ConfigError where their package, or a video's decoder, is missing."""
    kind = TRANSPORTS[transport].kind
    if TRANSPORTS[transport].is_video:
        try:
            importlib.import_module("av")  # here, so that no image waits
        except ImportError as error:
            raise ConfigError(
                f"image_transport is {transport}, for which PyAV is needed ({error}); install it "
                "(pip install av), or set image_transport to raw or compressed"
            ) from error
    try:
        return message_class(kind)
    except ImportError as error:
        package = kind.partition("/")[0]
        raise ConfigError(
            f"image_transport is {transport}, whose messages are those of the package {package}, "
            f"which is not installed ({error}); install it (apt install ros-$ROS_DISTRO-"
            f"{package.replace('_', '-')}), or set image_transport to raw or compressed"
        ) from error
