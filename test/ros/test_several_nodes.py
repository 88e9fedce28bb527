"""Several segmentation nodes in one process, with one executor."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import rclpy
from harness import RELIABLE, Inbox, message, picture, wait_until
from rclpy.context import Context
from rclpy.executors import ExternalShutdownException
from rclpy.lifecycle import TransitionCallbackReturn
from rclpy.parameter import Parameter
from sensor_msgs.msg import Image

from lowlat_seg_ros.ros.node import SegmentationNode
from lowlat_seg_ros.ros.params import as_parameters
from lowlat_seg_ros.ros.runtime import OwnThreadExecutor

NAMES = ("coarse", "fine")


@pytest.fixture
def context() -> Iterator[Context]:
    context = Context()
    rclpy.init(context=context)
    yield context
    context.try_shutdown()


def test_several_nodes_segment_the_same_images(context: Context, checkpoint: Path) -> None:
    settings = {"checkpoint": str(checkpoint), "device": "cpu", "foreground_threads": 1}
    settings |= {
        "expected_width": 64,
        "expected_height": 48,
        "expected_rate_hz": 1e3,
        "output_size": "network",
    }
    nodes = []
    for name, height in zip(NAMES, (24, 48), strict=True):
        values = as_parameters(settings | {"inference_height": height})
        overrides = [Parameter(key, value=value) for key, value in values.items()]
        node = SegmentationNode(
            node_name=name, namespace="several", parameter_overrides=overrides, context=context
        )
        for step in (node.trigger_configure, node.trigger_activate):
            assert step() == TransitionCallbackReturn.SUCCESS
        nodes.append(node)
    observer = rclpy.create_node("observer", namespace="several", context=context)
    inboxes = {name: Inbox() for name in NAMES}
    for name, inbox in inboxes.items():
        observer.create_subscription(Image, f"{name}/mask", inbox.put, RELIABLE)
    camera = observer.create_publisher(Image, "image", RELIABLE)
    executor = OwnThreadExecutor(context=context)
    for node in (*nodes, observer):
        executor.add_node(node)

    def spin() -> None:
        with contextlib.suppress(ExternalShutdownException):
            executor.spin()

    spinner = threading.Thread(target=spin)
    spinner.start()
    image = message(picture(), "rgb8", 1.0)

    def answered() -> bool:
        camera.publish(image)
        return all(inbox.all() for inbox in inboxes.values())

    try:
        wait_until(answered, lambda: "no masks come from both", every_s=0.2)
    finally:
        for node in nodes:
            assert node.release()
        context.try_shutdown()
        spinner.join()
        assert executor.join(10.0)
    sizes = {name: (inbox.all()[0].height, inbox.all()[0].width) for name, inbox in inboxes.items()}
    assert sizes == {"coarse": (24, 32), "fine": (48, 64)}
