"""A live node on H.264, where the messages of image_transport's plugins are installed."""

from __future__ import annotations

from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from harness import RELIABLE, Start, mask_of, wait_until
from lowlat_seg_ros.msg import FrameReport
from video import stream

from lowlat_seg_ros.config import EngineConfig
from lowlat_seg_ros.engine.engine import Engine
from lowlat_seg_ros.frames import Frame
from lowlat_seg_ros.images import ImageReader, Packet
from lowlat_seg_ros.ros.outputs import MESSAGES


def foxglove(data: bytes, stamp_s: int, frame_id: str) -> Any:
    from foxglove_msgs.msg import CompressedVideo

    stamp = MESSAGES.time(stamp_s * 10**9)
    return CompressedVideo(timestamp=stamp, frame_id=frame_id, format="h264", data=array("B", data))


def ffmpeg(data: bytes, stamp_s: int, frame_id: str) -> Any:
    from ffmpeg_image_transport_msgs.msg import FFMPEGPacket

    header = MESSAGES.header(stamp_s * 10**9, frame_id)
    return FFMPEGPacket(header=header, encoding="libx264", data=array("B", data))


@pytest.mark.parametrize(
    ("make", "package"),
    [(foxglove, "foxglove_msgs"), (ffmpeg, "ffmpeg_image_transport_msgs")],
    ids=["foxglove", "ffmpeg"],
)
def test_masks_of_a_video_are_those_of_its_pictures(
    start: Start, checkpoint: Path, make: Callable[[bytes, int, str], Any], package: str
) -> None:
    """From its first key frame on, also of a picture that came behind others."""
    pytest.importorskip(package)
    node, bench = start(listen=False, image_transport=make.__name__)
    packets = stream("h264", 20, gop=20)
    camera = bench.node.create_publisher(type(make(b"", 0, "")), f"image/{make.__name__}", RELIABLE)

    def refused() -> bool:
        camera.publish(make(packets[1], 0, "before"))
        return "no key frame of the stream has come yet" in node.log

    wait_until(refused, lambda: f"nothing is said:\n{node.log}", every_s=0.1)
    camera.publish(make(packets[0], 1, "first"))
    first = bench.reports.first(lambda report: report.header.frame_id == "first")
    for index, data in enumerate(packets[1:]):  # without waiting for masks
        camera.publish(make(data, 2 + index, "last" if index == 18 else "first"))
    last = bench.reports.first(lambda report: report.header.frame_id == "last")
    before, after = first.ledger, last.ledger
    assert after.rejected == before.rejected
    assert after.received + after.superseded == before.received + before.superseded + 19
    read = ImageReader()
    pictures = [read(Packet(None, "h264", data)) for data in packets]
    with Engine.from_checkpoint(checkpoint, EngineConfig(foreground_threads=1), "cpu") as engine:
        for report, rgb in ((first, pictures[0]), (last, pictures[-1])):
            assert report.kind == FrameReport.FULL  # of a camera not seen before
            mask = bench.mask_on(report)
            engine.reset()
            np.testing.assert_array_equal(mask_of(mask), engine.process(Frame(rgb, 0)).mask)
