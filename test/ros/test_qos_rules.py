"""The doctor's rules of quality of service against what the middleware really does."""

from __future__ import annotations

import itertools
from typing import Any

from harness import wait_until
from rclpy.duration import Duration, Infinite
from rclpy.qos import (
    DurabilityPolicy,
    HistoryPolicy,
    LivelinessPolicy,
    QoSProfile,
    ReliabilityPolicy,
)
from std_msgs.msg import Empty

from lowlat_seg_ros.ros.connections import misfit

PROFILES: dict[str, dict[str, Any]] = {
    "unset": {},
    "infinite": {"deadline": Infinite, "liveliness_lease_duration": Infinite},
    "longest deadline": {"deadline": Duration(seconds=2**31 - 1)},
    "deadline": {"deadline": Duration(nanoseconds=33_333_333)},
    "lease": {"liveliness_lease_duration": Duration(nanoseconds=700_000_001)},
    "manual": {"liveliness": LivelinessPolicy.MANUAL_BY_TOPIC},
    "best effort": {"reliability": ReliabilityPolicy.BEST_EFFORT},
    "latched": {"durability": DurabilityPolicy.TRANSIENT_LOCAL},
    "lifespan": {"lifespan": Duration(nanoseconds=1_000_000), "depth": 100},
    "keep all": {"history": HistoryPolicy.KEEP_ALL},
}


def test_only_who_is_refused_is_accused(live: Any) -> None:
    pairs = {}
    for (offered, some), (asked, other) in itertools.product(PROFILES.items(), repeat=2):
        topic = f"qos_{len(pairs)}"
        publisher = live.node.create_publisher(Empty, topic, QoSProfile(**{"depth": 1, **some}))
        profile = QoSProfile(**{"depth": 1, **other})
        subscription = live.node.create_subscription(Empty, topic, print, profile)
        pairs[offered, asked] = publisher, subscription

    def accused(publisher: Any, subscription: Any) -> str:
        """By the profiles as the graph and the own ends give them, which must agree."""
        (info,) = live.node.get_subscriptions_info_by_topic(publisher.topic_name)
        found = misfit(publisher.qos_profile, info.qos_profile)
        (info,) = live.node.get_publishers_info_by_topic(publisher.topic_name)
        assert misfit(info.qos_profile, subscription.qos_profile) == found
        return found

    found = {pair: accused(*ends) for pair, ends in pairs.items()}
    fitting = {pair for pair, policy in found.items() if not policy}
    matched: set[tuple[str, str]] = set()

    def all_matched() -> bool:
        matched.update(p for p, ends in pairs.items() if ends[0].get_subscription_count())
        return fitting <= matched

    wait_until(all_matched, lambda: f"falsely well: {fitting - matched}")
    assert matched == fitting
    assert found["best effort", "unset"] == "reliability"
    assert found["unset", "deadline"] == "deadline"
    for publisher, subscription in pairs.values():
        live.node.destroy_publisher(publisher)
        live.node.destroy_subscription(subscription)
