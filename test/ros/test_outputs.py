"""Outputs on a node in this process: nothing is made that nobody subscribes to."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
import pytest
import rclpy
from harness import Inbox, wait_until
from lowlat_seg_ros.msg import FrameReport, KeyFrameRefinement, Statistics
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header

from lowlat_seg_ros.frames import Counters, Deadline, MaskKind, NodeTiming, Provenance, Segmentation
from lowlat_seg_ros.images import Ledger
from lowlat_seg_ros.labels import CAMVID
from lowlat_seg_ros.ros.connections import latched_qos
from lowlat_seg_ros.ros.outputs import Outputs
from lowlat_seg_ros.ros.params import NodeConfig

TOPICS = {
    "mask": Image,
    "color_mask": Image,
    "overlay": Image,
    "overlay/compressed": CompressedImage,
    "frame_report": FrameReport,
    "key_frame_refinement": KeyFrameRefinement,
}


_numbers = itertools.count()


@pytest.fixture
def node() -> Iterator[Node]:
    """With a name of its own, as the last test's subscription may be there for a moment still."""
    context = Context()
    rclpy.init(context=context)
    node = rclpy.create_node(f"test_outputs_{next(_numbers)}", context=context)
    yield node
    node.destroy_node()
    context.try_shutdown()


nothing: Any = None


def unusable(level: int = 0) -> Segmentation:
    """A result of which nothing can be made, so that trying to is seen."""
    source = Provenance(MaskKind.FULL, 0, 0, 0.0, True, 0)
    return Segmentation(nothing, 0, "", source, nothing, deadline=Deadline(level))


def publish(outputs: Outputs, result: Segmentation) -> None:
    outputs.mask(Header(), result.mask, (4, 6))
    outputs.refinement(nothing)
    outputs.report(Header(), result, NodeTiming())
    outputs.pictures(Header(), np.zeros((4, 6, 3), np.uint8), result, NodeConfig())


def subscribe(node: Node, topic: str, kind: Any) -> None:
    name = f"{node.get_name()}/{topic}"
    node.create_subscription(kind, name, lambda _: None, 1)
    (publisher,) = (p for p in node.publishers if p.topic_name == f"/{name}")
    wait_until(publisher.get_subscription_count, lambda: f"{name} is not discovered")


@pytest.mark.parametrize("topic", TOPICS)
def test_what_nobody_subscribes_to_is_not_made(node: Node, topic: str) -> None:
    outputs = Outputs(node, CAMVID)
    publish(outputs, unusable())
    subscribe(node, topic, TOPICS[topic])
    with pytest.raises((AttributeError, TypeError, cv2.error)):
        publish(outputs, unusable())


def test_confidence_is_wanted_while_somebody_subscribes(node: Node) -> None:
    outputs = Outputs(node, CAMVID)
    assert not outputs.wants_confidence
    subscribe(node, "confidence", Image)
    assert outputs.wants_confidence


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
