"""Who is at the other end of the node's topics, and what the middleware says of them."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from rclpy.callback_groups import CallbackGroup
from rclpy.event_handler import (
    PublisherEventCallbacks,
    SubscriptionEventCallbacks,
    UnsupportedEventTypeError,
)
from rclpy.node import Node
from rclpy.qos import (
    DurabilityPolicy,
    QoSCompatibility,
    QoSProfile,
    ReliabilityPolicy,
    qos_check_compatible,
    qos_policy_name_from_kind,
)
from rclpy.utilities import get_rmw_implementation_identifier

from lowlat_seg_ros.ros import qos
from lowlat_seg_ros.ros.doctor import End, Input, Output, fix
from lowlat_seg_ros.ros.environment import PROFILE_VARIABLES


class ImageConnection:
    """The subscription of a camera's images, made and destroyed as often as wanted.

    ``changed`` is called, in the subscription's group, when a publisher that fits came or went,
    other than the first one that comes.
    """

    def __init__(self, node: Node, topic: str, message: Any, changed: Callable[[], None]) -> None:
        """``topic``: as it is subscribed to, before it is resolved."""
        self._node, self._relative, self._message = node, topic, message
        self.topic = node.resolve_topic_name(topic)
        self._kind = type_name(message)
        self._changed = changed
        self._matched: int | None = None
        self._lost = self._lost_before = 0
        self._subscription: Any = None

    @property
    def publishers(self) -> int:
        """How many publishers of images fit; of any kind, where the middleware does not say."""
        if self._matched is not None:
            return self._matched
        # Asked of the node: the subscription may be destroyed by another thread meanwhile.
        return self._node.count_publishers(self.topic)

    def open(self, callback: Callable[..., None], group: CallbackGroup) -> None:
        """Subscribe; ``callback`` takes a message and its info."""
        self._matched = None
        try:
            self._subscription = self._subscribe(callback, group, self._all_events())
        except UnsupportedEventTypeError:
            only = SubscriptionEventCallbacks(incompatible_qos=self._on_incompatible)
            self._subscription = self._subscribe(callback, group, only)

    def close(self) -> None:
        """Unsubscribe, if it is subscribed."""
        subscription, self._subscription = self._subscription, None
        if subscription is not None:
            self._node.destroy_subscription(subscription)

    def look(self) -> Input:
        """What the graph and the events say now; ``lost`` is since the last look."""
        subscription, total = self._subscription, self._lost
        lost, self._lost_before = total - self._lost_before, total
        asked = qos.image() if subscription is None else subscription.qos_profile
        infos = self._node.get_publishers_info_by_topic(self.topic)
        ends = tuple(End(full_name(i), i.topic_type, misfit(i.qos_profile, asked)) for i in infos)
        return Input(
            self.topic,
            self._kind,
            ends,
            others=() if ends else self._others(),
            lost=lost,
            profile=_has_profile(),
            clock_waits=self._clock_waits(),
        )

    def _subscribe(self, callback: Callable[..., None], group: CallbackGroup, events: Any) -> Any:
        return self._node.create_subscription(
            self._message,
            self._relative,
            callback,
            qos.image(),
            callback_group=group,
            event_callbacks=events,
            qos_overriding_options=qos.overridable(),
        )

    def _all_events(self) -> SubscriptionEventCallbacks:
        return SubscriptionEventCallbacks(
            incompatible_qos=self._on_incompatible,
            message_lost=self._on_lost,
            matched=self._on_matched,
        )

    def _on_incompatible(self, event: Any) -> None:
        policy = policy_of(event)
        self._node.get_logger().warning(
            f"A publisher on {self.topic} offers less {policy} than this node asks for: no image "
            f"will arrive from it; {fix(self.topic, 'subscription', policy)}"
        )

    def _on_lost(self, event: Any) -> None:
        self._lost += event.total_count_change

    def _on_matched(self, event: Any) -> None:
        self._matched = event.current_count
        if event.total_count > 1:
            self._changed()

    def _others(self) -> tuple[str, ...]:
        """Topics that somebody publishes images on, of the type that is asked for."""
        found = self._node.get_topic_names_and_types()
        own = self._node.get_fully_qualified_name() + "/"
        names = (name for name, kinds in found if self._kind in kinds and not name.startswith(own))
        return tuple(sorted(name for name in names if self._node.count_publishers(name)))

    def _clock_waits(self) -> bool:
        clock = self._node.get_clock()
        return bool(clock.ros_time_is_active) and clock.now().nanoseconds == 0


class OutputConnection:
    """A publisher of the node, and whoever subscribes to it."""

    def __init__(self, node: Node, name: str, message: Any, profile: QoSProfile) -> None:
        self._node, self._topic = node, node.resolve_topic_name(name)
        self._kind = type_name(message)
        self._refused = False
        self.publisher = node.create_publisher(
            message,
            name,
            profile,
            event_callbacks=PublisherEventCallbacks(incompatible_qos=self._on_incompatible),
            qos_overriding_options=qos.overridable(),
        )

    @property
    def wanted(self) -> bool:
        """Whether somebody subscribes who fits."""
        return bool(self.publisher.get_subscription_count() > 0)

    def look(self) -> Output:
        """Who subscribes; not looked up before somebody came who does not fit."""
        if not self._refused:
            return Output(self._topic, self._kind)
        infos = self._node.get_subscriptions_info_by_topic(self._topic)
        offered = self.publisher.qos_profile
        ends = (End(full_name(i), i.topic_type, misfit(offered, i.qos_profile)) for i in infos)
        return Output(self._topic, self._kind, tuple(ends))

    def destroy(self) -> None:
        """Take back the topic."""
        self._node.destroy_publisher(self.publisher)

    def _on_incompatible(self, event: Any) -> None:
        self._refused, policy = True, policy_of(event)
        self._node.get_logger().warning(
            f"A subscriber on {self._topic} asks for more {policy} than this node offers: it will "
            f"receive nothing; {fix(self._topic, 'publisher', policy)}"
        )


def type_name(message: Any) -> str:
    """The name of a message class as the graph has it, such as sensor_msgs/msg/Image."""
    return f"{message.__module__.split('.')[0]}/msg/{message.__name__}"


def policy_of(event: Any) -> str:
    """The policy that an event of incompatibility is about, such as ``reliability``."""
    return str(qos_policy_name_from_kind(event.last_policy_kind)).lower()


def full_name(info: Any) -> str:
    """The node that an endpoint belongs to; "a node" until that is known."""
    if "UNKNOWN" in info.node_name:
        return "a node"
    return f"{info.node_namespace.rstrip('/')}/{info.node_name}"


def misfit(offered: QoSProfile, asked: QoSProfile) -> str:
    """The policy in which a publisher offers less than is asked for; empty if none."""
    best_effort = offered.reliability == ReliabilityPolicy.BEST_EFFORT
    if best_effort and asked.reliability == ReliabilityPolicy.RELIABLE:
        return "reliability"
    volatile = offered.durability == DurabilityPolicy.VOLATILE
    if volatile and asked.durability == DurabilityPolicy.TRANSIENT_LOCAL:
        return "durability"
    compatible, reason = qos_check_compatible(offered, asked)
    if compatible != QoSCompatibility.ERROR:
        return ""
    return "deadline" if "deadline" in reason.lower() else "liveliness"


def _has_profile() -> bool | None:
    if not get_rmw_implementation_identifier().startswith("rmw_fastrtps"):
        return None
    return any(os.environ.get(name) for name in PROFILE_VARIABLES)
