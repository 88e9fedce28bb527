"""Outputs on a node in this process: nothing is made that nobody subscribes to."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import cv2
import numpy as np
import pytest
import rclpy
from harness import TIMEOUT_S, Inbox, wait_until
from lowlat_seg_ros.msg import FrameReport, KeyFrameRefinement, Statistics
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from std_msgs.msg import Header

from lowlat_seg_ros.frames import (
    Counters,
    Deadline,
    Ledger,
    MaskKind,
    NodeTiming,
    Provenance,
    Segmentation,
    StageTiming,
)
from lowlat_seg_ros.labels import CAMVID
from lowlat_seg_ros.ros.connections import latched_qos
from lowlat_seg_ros.ros.outputs import PATIENCE, Outputs
from lowlat_seg_ros.ros.params import NodeConfig

TOPICS = {
    "mask": Image,
    "mask/compressed": CompressedImage,
    "color_mask": Image,
    "overlay": Image,
    "overlay/compressed": CompressedImage,
    "frame_report": FrameReport,
    "key_frame_refinement": KeyFrameRefinement,
}


_numbers = itertools.count()


@pytest.fixture(scope="module")
def context() -> Iterator[Context]:
    """One for all tests, with a node that keeps its participant between them.

    Where a process has several participants, Fast DDS (2.14) can wait for ever to end one: for a
    callback that waits for it.
    """
    context = Context()
    rclpy.init(context=context)
    node = rclpy.create_node("test_outputs", context=context)
    yield context
    node.destroy_node()
    context.try_shutdown()


@pytest.fixture
def node(context: Context) -> Iterator[Node]:
    """With a name of its own, as the last test's subscription may be there for a moment still."""
    node = rclpy.create_node(f"test_outputs_{next(_numbers)}", context=context)
    yield node
    node.destroy_node()


nothing: Any = None


def unusable(level: int = 0) -> Segmentation:
    """A result of which nothing can be made, so that trying to is seen."""
    source = Provenance(MaskKind.FULL, 0, 0, 0.0, True, 0)
    return Segmentation(nothing, 0, "", source, nothing, deadline=Deadline(level))


def segmentation() -> Segmentation:
    """A result whose report can be made."""
    return dataclasses.replace(unusable(), timing=StageTiming())


def publish(outputs: Outputs, result: Segmentation) -> None:
    outputs.mask(Header(), result.mask, (4, 6))
    outputs.refinement(nothing)
    outputs.report(Header(), result, NodeTiming())
    outputs.pictures(Header(), np.zeros((4, 6, 3), np.uint8), result, NodeConfig())


def subscribe(
    node: Node, topic: str, kind: Any, callback: Callable[[Any], None] = lambda _: None
) -> None:
    name = f"{node.get_name()}/{topic}"
    node.create_subscription(kind, name, callback, 1)
    (publisher,) = (p for p in node.publishers if p.topic_name == f"/{name}")
    wait_until(publisher.get_subscription_count, lambda: f"{name} is not discovered")


@pytest.mark.parametrize("topic", TOPICS)
def test_what_nobody_subscribes_to_is_not_made(node: Node, topic: str) -> None:
    outputs = Outputs(node, CAMVID)
    publish(outputs, unusable())
    subscribe(node, topic, TOPICS[topic])
    with pytest.raises((AttributeError, TypeError, cv2.error)):
        publish(outputs, unusable())


def test_mask_as_a_file_is_the_mask(node: Node) -> None:
    outputs, found = Outputs(node, CAMVID), []
    subscribe(node, "mask/compressed", CompressedImage, found.append)
    mask = np.random.default_rng(0).integers(0, 256, (30, 40), np.uint8)
    header = Header(frame_id="camera")
    result = dataclasses.replace(segmentation(), mask=mask)
    outputs.mask(header, mask, (30, 40))
    outputs.report(header, result, NodeTiming())
    executor = SingleThreadedExecutor(context=node.context)
    executor.add_node(node)
    while not found:
        executor.spin_once(TIMEOUT_S)
    (message,) = found
    assert (message.header, message.format) == (header, "mono8; png compressed ")
    pixels = cv2.imdecode(np.frombuffer(message.data, np.uint8), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(pixels, mask)


def test_camera_info_is_the_cameras_or_none_which_is_said_once(
    node: Node, capfd: pytest.CaptureFixture[str]
) -> None:
    outputs, found = Outputs(node, CAMVID), []
    mask = np.zeros((48, 64), np.uint8)
    for _ in range(2 * PATIENCE):
        outputs.mask(Header(), mask, mask.shape)
    assert "CameraInfo" not in capfd.readouterr().err  # nobody wants any
    subscribe(node, "camera_info", CameraInfo, found.append)
    for _ in range(2 * PATIENCE):
        outputs.mask(Header(), mask, mask.shape)
    says = capfd.readouterr().err
    assert says.count("no CameraInfo has come on /camera_info beside 10 images") == 1
    camera = node.create_publisher(CameraInfo, "/camera_info", 1)
    info = CameraInfo(height=48, width=64, k=[50.0, 0.0, 31.5, 0.0, 50.0, 23.5, 0.0, 0.0, 1.0])
    executor = SingleThreadedExecutor(context=node.context)
    executor.add_node(node)
    while not found:
        camera.publish(info)
        executor.spin_once(0.1)
        outputs.mask(Header(frame_id="mine"), mask, mask.shape)
    assert found[0].header.frame_id == "mine"
    found[0].header.frame_id = ""
    assert found[0] == info  # nothing came before


def test_confidence_is_wanted_while_somebody_subscribes(node: Node) -> None:
    outputs = Outputs(node, CAMVID)
    assert not outputs.wants_confidence
    subscribe(node, "confidence", Image)
    assert outputs.wants_confidence


def test_a_second_node_of_the_same_name_is_named(node: Node) -> None:
    """As where a unit of systemd runs and somebody starts the launch file by hand."""
    outputs = Outputs(node, CAMVID)
    assert outputs.findings() == []
    context = Context()
    rclpy.init(context=context)
    twin = rclpy.create_node(node.get_name(), context=context)
    Outputs(twin, CAMVID)
    topic = f"/{node.get_name()}/mask"
    said = f"2 publishers send masks on {topic}, /{node.get_name()} (2), so that"
    # A publisher may be known before the name of its node is.
    wait_until(
        lambda: any(said in found.text for found in outputs.findings()),
        lambda: f"the other node's masks: {outputs.findings()}",
    )
    (found,) = outputs.findings()
    assert "give each a namespace or name of its own" in found.text
    twin.destroy_node()
    context.try_shutdown()
    wait_until(lambda: not outputs.findings(), lambda: "it is said after the other has gone")


def test_statistics_are_there_for_whoever_subscribes_later(node: Node) -> None:
    outputs, inbox = Outputs(node, CAMVID, "front"), Inbox()
    executor = SingleThreadedExecutor(context=node.context)
    executor.add_node(node)
    for published in (1, 2):
        outputs.statistics(published, Counters(frames=published), Ledger(published, published))
    topic = f"{node.get_name()}/front/statistics"
    node.create_subscription(Statistics, topic, inbox.put, latched_qos())

    def come() -> bool:
        executor.spin_once(timeout_sec=0.1)
        return bool(inbox.all())

    wait_until(come, lambda: "the newest statistics do not come")
    (found,) = inbox.all()
    assert (found.header.frame_id, found.ledger.published, found.counters.frames) == ("front", 2, 2)


@pytest.mark.parametrize("topic", ["color_mask", "overlay", "overlay/compressed"])
def test_pictures_are_shed_under_load(node: Node, topic: str) -> None:
    outputs = Outputs(node, CAMVID)
    subscribe(node, topic, TOPICS[topic])
    publish(outputs, unusable(level=2))
    with pytest.raises((AttributeError, TypeError, cv2.error)):
        publish(outputs, unusable(level=1))
