"""Quality of service of the node's topics, and what to do when two ends do not fit."""

from __future__ import annotations

from typing import Any

from rclpy.event_handler import PublisherEventCallbacks, SubscriptionEventCallbacks
from rclpy.node import Node
from rclpy.qos import (
    QoSDurabilityPolicy,
    QoSHistoryPolicy,
    QoSPolicyKind,
    QoSProfile,
    QoSReliabilityPolicy,
    qos_policy_name_from_kind,
)
from rclpy.qos_overriding_options import QoSOverridingOptions

_POLICIES = (
    QoSPolicyKind.HISTORY,
    QoSPolicyKind.DEPTH,
    QoSPolicyKind.RELIABILITY,
    QoSPolicyKind.DURABILITY,
)


def image() -> QoSProfile:
    """Cameras: only the newest image counts, and no camera is held up (SensorData, REP-2003).

    A new profile each time, as rclpy writes overrides into the one that it is given.
    """
    return QoSProfile(
        history=QoSHistoryPolicy.KEEP_LAST, depth=1, reliability=QoSReliabilityPolicy.BEST_EFFORT
    )


def output() -> QoSProfile:
    """Outputs are reliable, so that reliable and best-effort subscribers both match (REP-2003)."""
    return QoSProfile(
        history=QoSHistoryPolicy.KEEP_LAST, depth=10, reliability=QoSReliabilityPolicy.RELIABLE
    )


def latched() -> QoSProfile:
    """What changes never: whoever subscribes later gets the newest message at once."""
    return QoSProfile(
        history=QoSHistoryPolicy.KEEP_LAST, depth=1, reliability=QoSReliabilityPolicy.RELIABLE,
        durability=QoSDurabilityPolicy.TRANSIENT_LOCAL,
    )  # fmt: skip


def overridable() -> QoSOverridingOptions:
    """Parameters ``qos_overrides.<topic>.<publisher|subscription>.<policy>`` change a topic."""
    return QoSOverridingOptions(_POLICIES)


def warn_of_publishers(node: Node, topic: str) -> SubscriptionEventCallbacks:
    """Callbacks of a subscription: a publisher that does not fit is logged with the fix."""
    return SubscriptionEventCallbacks(
        incompatible_qos=lambda event: node.get_logger().warning(
            f"A publisher on {topic} offers less {_policy(event)} than this node asks for: no "
            f"image will arrive from it. {_fix(topic, 'subscription', event)}"
        )
    )


def warn_of_subscribers(node: Node, topic: str) -> PublisherEventCallbacks:
    """Callbacks of a publisher: a subscriber that does not fit is logged with the fix."""
    return PublisherEventCallbacks(
        incompatible_qos=lambda event: node.get_logger().warning(
            f"A subscriber on {topic} asks for more {_policy(event)} than this node offers: it "
            f"will receive nothing. {_fix(topic, 'publisher', event)}"
        )
    )


def _policy(event: Any) -> str:
    return qos_policy_name_from_kind(event.last_policy_kind).lower()


def _fix(topic: str, side: str, event: Any) -> str:
    wanted = {
        ("subscription", "reliability"): "best_effort",
        ("subscription", "durability"): "volatile",
        ("publisher", "reliability"): "reliable",
        ("publisher", "durability"): "transient_local",
    }.get((side, _policy(event)))
    if wanted is None:
        return f"Give both ends the same {_policy(event)}."
    return f"Set the parameter qos_overrides.{topic}.{side}.{_policy(event)} to {wanted}."
