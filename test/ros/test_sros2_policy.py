"""The SROS2 policy allows what the node does, and nothing else."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Callable

import pytest

pytest.importorskip("rclpy", reason="needs ROS 2")

from harness import NODE, ROOT, Bench, wait_until
from rclpy.node import NodeNameNonExistentError

#: Only with vision_msgs; with compressed images or video; in simulated time; where the client
#: library listens to them.
SOMETIMES = {
    *("label_info", "/clock", "/parameter_events"),
    *(f"/camera/image_raw/{transport}" for transport in ("compressed", "ffmpeg", "foxglove")),
}


def allowed(kind: str, right: str) -> set[str]:
    """Names of the ``kind``, topic or service, that the policy gives ``right`` to."""
    profile = ElementTree.parse(ROOT / "config" / "sros2_policy.xml").find(".//profile")
    assert profile is not None
    assert profile.get("node") == NODE
    lists = [part for part in profile.findall(f"{kind}s") if part.get(right) == "ALLOW"]
    return {str(item.text).removeprefix("~/") for part in lists for item in part}


def of_node(ask: Callable[[str, str], list[tuple[str, list[str]]]], namespace: str) -> set[str]:
    """Names in the node's graph, its own without its name, and the camera's as it is launched."""
    try:
        found = ask(NODE, namespace)
    except NodeNameNonExistentError:  # not yet discovered
        return set()
    launched = {"image": "/camera/image_raw", "camera_info": "/camera/camera_info"}
    cameras = {f"{namespace}/{name}": topic for name, topic in launched.items()}
    own = f"{namespace}/{NODE}/"
    return {cameras.get(name, name.removeprefix(own)) for name, _ in found}


def test_policy_is_what_the_node_has(live: Bench) -> None:
    namespace = live.node.get_namespace()
    for kind, right, ask in (
        ("topic", "publish", live.node.get_publisher_names_and_types_by_node),
        ("topic", "subscribe", live.node.get_subscriber_names_and_types_by_node),
        ("service", "reply", live.node.get_service_names_and_types_by_node),
    ):
        wanted = allowed(kind, right)
        wait_until(
            lambda ask=ask, wanted=wanted: wanted - SOMETIMES <= of_node(ask, namespace) <= wanted,
            lambda ask=ask, wanted=wanted, right=right: (
                f"{right}: policy and node differ in {wanted ^ of_node(ask, namespace)}"
            ),
        )
