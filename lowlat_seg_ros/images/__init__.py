"""Image messages as RGB arrays, and the ledger of what became of them; needs no ROS.

A message is anything with the fields of ``sensor_msgs/Image`` or ``sensor_msgs/CompressedImage``,
whatever library made it, or a :class:`~.video.Packet` of a video stream.
"""

from lowlat_seg_ros.images.ledger import Bookkeeper, Ledger
from lowlat_seg_ros.images.raw import ENCODINGS, Fault, ImageError, to_ids
from lowlat_seg_ros.images.reader import ImageReader, encoding_of, to_rgb

__all__ = [
    "ENCODINGS",
    "Bookkeeper",
    "Fault",
    "ImageError",
    "ImageReader",
    "Ledger",
    "encoding_of",
    "to_ids",
    "to_rgb",
]
