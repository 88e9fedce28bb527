"""Where two ends of a topic do not fit, whatever the graph says for what was never set."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("rclpy", reason="needs ROS 2")

from rclpy.duration import Duration, Infinite
from rclpy.qos import (
    QoSDurabilityPolicy,
    QoSHistoryPolicy,
    QoSLivelinessPolicy,
    QoSProfile,
    QoSReliabilityPolicy,
)

from lowlat_seg_ros.ros.connections import misfit

#: What stands for no limit: not set, rmw's infinite, "best available", and Fast DDS' infinite. The
#: longest limit that DDS knows is shorter, and is one.
NO_LIMIT = {
    "unset": Duration(nanoseconds=0),
    "infinite": Infinite,
    "best_available": Duration(nanoseconds=2**63 - 2),
    "fast_dds": Duration(seconds=2**31 - 1, nanoseconds=2**32 - 1),
}
SHORT, LONG = Duration(seconds=1), Duration(seconds=2)
DURATIONS = {"deadline": "deadline", "liveliness_lease_duration": "liveliness"}


def profile(**policies: Any) -> QoSProfile:
    return QoSProfile(depth=1, **policies)


@pytest.mark.parametrize("asked", NO_LIMIT.values(), ids=list(NO_LIMIT))
@pytest.mark.parametrize("offered", NO_LIMIT.values(), ids=list(NO_LIMIT))
@pytest.mark.parametrize("policy", DURATIONS)
def test_no_limit_fits_no_limit(policy: str, offered: Duration, asked: Duration) -> None:
    assert misfit(profile(**{policy: offered}), profile(**{policy: asked})) == ""


@pytest.mark.parametrize("unlimited", NO_LIMIT.values(), ids=list(NO_LIMIT))
@pytest.mark.parametrize(("policy", "name"), DURATIONS.items())
def test_limit_must_be_offered_to_who_asks_for_it(
    policy: str, name: str, unlimited: Duration
) -> None:
    assert misfit(profile(**{policy: unlimited}), profile(**{policy: SHORT})) == name
    assert misfit(profile(**{policy: LONG}), profile(**{policy: SHORT})) == name
    assert misfit(profile(**{policy: SHORT}), profile(**{policy: SHORT})) == ""
    assert misfit(profile(**{policy: SHORT}), profile(**{policy: LONG})) == ""
    assert misfit(profile(**{policy: SHORT}), profile(**{policy: unlimited})) == ""
    longest = Duration(seconds=2**31 - 1, nanoseconds=999_999_999)
    assert misfit(profile(**{policy: unlimited}), profile(**{policy: longest})) == name
    assert misfit(profile(**{policy: longest}), profile(**{policy: unlimited})) == ""


@pytest.mark.parametrize(
    ("policy", "less", "more"),
    [
        ("reliability", QoSReliabilityPolicy.BEST_EFFORT, QoSReliabilityPolicy.RELIABLE),
        ("durability", QoSDurabilityPolicy.VOLATILE, QoSDurabilityPolicy.TRANSIENT_LOCAL),
        ("liveliness", QoSLivelinessPolicy.AUTOMATIC, QoSLivelinessPolicy.MANUAL_BY_TOPIC),
    ],
)
def test_only_more_than_is_offered_does_not_fit(policy: str, less: Any, more: Any) -> None:
    kinds = type(less)
    found = {
        (offered, asked): misfit(profile(**{policy: offered}), profile(**{policy: asked}))
        for offered in kinds
        for asked in kinds
    }
    assert found.pop((less, more)) == policy
    if policy == "liveliness":  # what is left to the middleware is automatic there
        assert found.pop((kinds.SYSTEM_DEFAULT, more)) == policy
    assert set(found.values()) == {""}  # with what is unset, unknown or up to the middleware, too


@pytest.mark.parametrize(
    "policies",
    [
        {"depth": 1000},
        {"history": QoSHistoryPolicy.KEEP_ALL},
        {"history": QoSHistoryPolicy.SYSTEM_DEFAULT},
        {"lifespan": Duration(nanoseconds=1)},
    ],
)
def test_what_dds_does_not_compare_never_counts(policies: dict[str, Any]) -> None:
    other = QoSProfile(**{"depth": 1, **policies})
    assert misfit(profile(), other) == misfit(other, profile()) == ""
