"""A live node on compressed images: masks, remapped topics, and data that cannot be."""

from __future__ import annotations

from array import array
from pathlib import Path

import cv2
import numpy as np
import pytest
from harness import RELIABLE, Bench, NodeProcess, Start, mask_of, picture, values_of, wait_until
from lowlat_seg_ros.msg import FrameReport
from sensor_msgs.msg import CompressedImage

from lowlat_seg_ros.config import EngineConfig
from lowlat_seg_ros.engine.engine import Engine
from lowlat_seg_ros.frames import Frame
from lowlat_seg_ros.images import to_rgb
from lowlat_seg_ros.ros.outputs import MESSAGES

RGB = picture()


def message(kind: str, stamp_s: float, frame_id: str = "camera") -> CompressedImage:
    """``RGB`` as a file of ``kind``."""
    data = cv2.imencode(f".{kind}", RGB[..., ::-1])[1].tobytes()
    msg = CompressedImage(format=kind, data=array("B", data))
    msg.header.stamp = MESSAGES.time(round(stamp_s * 1e9))
    msg.header.frame_id = frame_id
    return msg


def connect(bench: Bench, topic: str) -> None:
    """Make ``bench`` a camera of compressed images, and wait until it is answered."""
    bench.camera = bench.node.create_publisher(CompressedImage, topic, RELIABLE)
    probe = message("png", 0.0, "probe")

    def answered() -> bool:
        bench.camera.publish(probe)
        return bool(bench.masks.all() and bench.reports.all())

    wait_until(answered, lambda: f"no node answers on {topic}", every_s=0.2)


@pytest.fixture(scope="module")
def compressed(start_once: Start) -> tuple[NodeProcess, Bench]:
    """A node that is sent compressed images, for the tests below."""
    node, bench = start_once(listen=False, image_transport="compressed", log_throttle_s=0.0)
    connect(bench, "image/compressed")
    return node, bench


@pytest.mark.parametrize("kind", ["jpg", "png"])
def test_mask_is_the_engines_for_the_decoded_image(
    compressed: tuple[NodeProcess, Bench], checkpoint: Path, kind: str
) -> None:
    _, bench = compressed
    image = message(kind, 1.0, f"test_{kind}")
    report = bench.send(image)
    assert report.kind == FrameReport.FULL  # a camera not seen before
    with Engine.from_checkpoint(checkpoint, EngineConfig(foreground_threads=1), "cpu") as engine:
        wanted = engine.process(Frame(to_rgb(image), 0)).mask
    assert len(np.unique(wanted)) > 2
    mask = bench.mask_on(image)
    assert mask.header == image.header
    np.testing.assert_array_equal(mask_of(mask), wanted)


def test_topic_lies_below_the_one_that_image_is_remapped_to(start: Start) -> None:
    node, bench = start(
        arguments=("-r", "image:=/front/image_raw"), listen=False, image_transport="compressed"
    )
    assert "Waiting for images on /front/image_raw/compressed" in node.log
    connect(bench, "/front/image_raw/compressed")
    assert not bench.node.get_subscriptions_info_by_topic("/front/image_raw")


def test_impossible_data_are_rejected_by_name_and_counted(
    compressed: tuple[NodeProcess, Bench],
) -> None:
    node, bench = compressed
    bench.send(message("png", 1.0))
    before = bench.counted().ledger
    whole = message("jpg", 1.1).data
    faults = {
        "of a JPEG that does not end": whole[: len(whole) // 2],
        "begins with nothing": array("B"),
        "begins with 00 01 02 03": array("B", range(100)),
        "of a damaged JPEG": whole[:200] + whole[-2:],
    }
    for number, (complaint, data) in enumerate(faults.items(), 1):
        image = message("jpg", 1.1)
        image.data = data
        bench.camera.publish(image)
        status = bench.status("ledger", lambda v, n=number: int(v["rejected"]) == n)
        node.wait_for_log(complaint)
    assert status.level > b"\0"
    assert values_of(status)["failed"] == "0"
    assert "Traceback" not in node.log
    bench.send(message("jpg", 1.2))
    after = bench.counted().ledger
    assert after.received == before.received + len(faults) + 1
    assert (after.published, after.rejected) == (before.published + 1, len(faults))
