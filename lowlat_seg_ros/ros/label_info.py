"""The classes of the masks as ``vision_msgs/LabelInfo``, where vision_msgs is installed."""

from __future__ import annotations

from typing import Any

from lowlat_seg_ros.labels import ClassTable
from lowlat_seg_ros.ros.reports import time_message

try:
    from vision_msgs.msg import LabelInfo, VisionClass
except ImportError:  # it is not on PyPI
    LabelInfo = None


def message(table: ClassTable, now_ns: int) -> Any:
    """Id and name of every class, stamped ``now_ns``. Raises TypeError without vision_msgs."""
    info = LabelInfo()
    info.header.stamp = time_message(now_ns)
    info.class_map = [VisionClass(class_id=i, class_name=n) for i, n in enumerate(table.names)]
    return info
