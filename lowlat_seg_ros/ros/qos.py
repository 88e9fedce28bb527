"""Quality of service of the node's topics, and what to do when two ends do not fit."""

from __future__ import annotations

from rclpy.qos import (
    QoSDurabilityPolicy,
    QoSHistoryPolicy,
    QoSPolicyKind,
    QoSProfile,
    QoSReliabilityPolicy,
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
