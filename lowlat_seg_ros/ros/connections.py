"""Quality of service of the node's topics, and where images come from: who sends, what is lost."""

from __future__ import annotations

import functools
import importlib
import math
import os
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from rclpy.callback_groups import CallbackGroup
from rclpy.duration import Duration
from rclpy.event_handler import (
    SubscriptionEventCallbacks,
    UnsupportedEventTypeError,
)
from rclpy.exceptions import InvalidHandle
from rclpy.node import Node
from rclpy.qos import (
    QoSDurabilityPolicy,
    QoSHistoryPolicy,
    QoSLivelinessPolicy,
    QoSPolicyKind,
    QoSProfile,
    QoSReliabilityPolicy,
    qos_policy_name_from_kind,
)
from rclpy.qos_overriding_options import QoSOverridingOptions
from rclpy.utilities import get_rmw_implementation_identifier

from lowlat_seg_ros.config import ConfigError
from lowlat_seg_ros.messages import TRANSPORTS
from lowlat_seg_ros.ros.doctor import (
    CAMERA_INFO,
    SUFFIXES,
    End,
    Input,
    Subscription,
    Topic,
    fix,
    transport_of,
)
from lowlat_seg_ros.ros.start import PROFILE_VARIABLES, RosError, profile, replaces_profile

#: Seconds from which on a duration stands for "infinite": rmw has 2^63 - 1 ns, Fast DDS 2^31 - 1 s
#: and 2^32 - 1 ns. What a DDS duration can say is shorter.
INFINITE_S = 2**31

#: What the middleware gives as sequence number if it has none (rmw/types.h).
NO_SEQUENCE_NUMBER = 2**64 - 1

_OVERRIDABLE = (
    QoSPolicyKind.HISTORY,
    QoSPolicyKind.DEPTH,
    QoSPolicyKind.RELIABILITY,
    QoSPolicyKind.DURABILITY,
)


def image_qos(depth: int = 1) -> QoSProfile:
    """Cameras: only the newest image counts, and no camera is held up (SensorData, REP-2003).

    A new profile each time, as rclpy writes overrides into the one that it is given.
    """
    return QoSProfile(
        history=QoSHistoryPolicy.KEEP_LAST,
        depth=depth,
        reliability=QoSReliabilityPolicy.BEST_EFFORT,
    )


def output_qos(depth: int = 10) -> QoSProfile:
    """Outputs are reliable, so that reliable and best-effort subscribers both match (REP-2003)."""
    return QoSProfile(
        history=QoSHistoryPolicy.KEEP_LAST, depth=depth, reliability=QoSReliabilityPolicy.RELIABLE
    )


def latched_qos() -> QoSProfile:
    """For what seldom changes: whoever subscribes later gets the newest message at once."""
    profile = output_qos(depth=1)
    profile.durability = QoSDurabilityPolicy.TRANSIENT_LOCAL
    return profile


def overridable_qos() -> QoSOverridingOptions:
    """Parameters ``qos_overrides.<topic>.<publisher|subscription>.<policy>`` change a topic."""
    return QoSOverridingOptions(_OVERRIDABLE)


class ImageConnection:
    """The subscription to a camera's images, opened and closed as the node is activated or not."""

    def __init__(
        self,
        node: Node,
        image: str,
        message: Any,
        *,
        depth: int = 1,
        raw: bool = True,
    ) -> None:
        """``image``: the raw images' topic, before it is resolved; ``message``: its type.

        ``depth``: how many may wait. ``raw``: messages come serialized, as bytes.
        """
        self._node, self._message = node, message
        self._listens = Subscription(image, node.resolve_topic_name(image), type_name(message))
        # Compressed images are below whatever the raw ones' topic is remapped to.
        suffix = SUFFIXES[self._listens.kind]
        self._relative = self._listens.base + suffix if suffix else image
        self.topic = node.resolve_topic_name(self._relative)
        self._depth, self._raw = depth, raw
        self._profile: dict[str, Any] = {
            "profile": _has_profile(),
            "profile_replaced": replaces_profile(),
        }
        with suppress(RosError):  # else the doctor names it by its name in the package
            self._profile["profile_file"] = str(profile())
        self._gaps = SequenceGaps()
        self._matched: int | None = None
        self._lost = self._lost_before = 0
        self._subscription: Any = None

    @property
    def publishers(self) -> int:
        """How many publishers of images fit; of any kind, where the middleware does not say."""
        if self._matched is not None:
            return self._matched
        # The node is asked, as another thread may destroy the subscription meanwhile.
        return self._node.count_publishers(self.topic)

    def open(self, callback: Callable[..., None], group: CallbackGroup) -> None:
        """Subscribe; ``callback`` takes a message and its info."""
        self._matched, self._gaps = None, SequenceGaps()
        events = {
            "incompatible_qos": self._on_incompatible,
            "message_lost": self._on_lost,
            "matched": self._on_matched,
        }
        try:
            self._subscription = self._subscribe(callback, group, events)
        except UnsupportedEventTypeError:
            only = {"incompatible_qos": self._on_incompatible}
            self._subscription = self._subscribe(callback, group, only)

    def close(self) -> None:
        """Unsubscribe, if it is subscribed."""
        subscription, self._subscription = self._subscription, None
        if subscription is not None:
            self._node.destroy_subscription(subscription)

    def take(self) -> tuple[Any, dict[str, Any]] | None:
        """The next message that waits, and its info; for the subscription's own callback."""
        try:
            handle = self._subscription.handle
            with handle:
                taken: tuple[Any, dict[str, Any]] | None = handle.take_message(
                    self._message, self._raw
                )
                return taken
        except (AttributeError, InvalidHandle):  # it was closed meanwhile
            return None

    def missing(self, info: dict[str, Any]) -> int:
        """How many messages are missing before the one with this ``info``."""
        return self._gaps.missing(info.get("publication_sequence_number"), self.publishers)

    def look(self) -> Input:
        """What the graph and the events say now; ``lost`` is since the last look."""
        subscription, total = self._subscription, self._lost
        lost, self._lost_before = total - self._lost_before, total
        asked = image_qos() if subscription is None else subscription.qos_profile
        infos = self._node.get_publishers_info_by_topic(self.topic)
        of_kind = sum(info.topic_type == self._listens.kind for info in infos)
        # Only who is refused is accused: where all of them are matched, nobody is.
        refused = self._matched is None or self._matched < of_kind
        clock = self._node.get_clock()
        return Input(
            self.topic,
            self._listens,
            tuple(
                End(full_name(i), i.topic_type, misfit(i.qos_profile, asked) if refused else "")
                for i in infos
            ),
            there=() if of_kind else self._there(),
            lost=lost,
            **self._profile,
            clock_waits=bool(clock.ros_time_is_active) and clock.now().nanoseconds == 0,
        )

    def _subscribe(
        self, callback: Callable[..., None], group: CallbackGroup, events: dict[str, Any]
    ) -> Any:
        return self._node.create_subscription(
            self._message,
            self._relative,
            callback,
            image_qos(self._depth),
            callback_group=group,
            event_callbacks=SubscriptionEventCallbacks(**events),
            qos_overriding_options=overridable_qos(),
            raw=self._raw,
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
            self._gaps.restart()  # other than the first one that comes

    def _there(self) -> tuple[Topic, ...]:
        """Topics that somebody else publishes, and this node does not listen to already."""
        me = self._node.get_fully_qualified_name()

        def elsewhere(name: str, kind: str) -> bool:
            if self._node.resolve_topic_name(name) != name:
                # Remapped away, so this node has nothing on it, and rclpy would ask for the other.
                return bool(self._node.count_publishers(name))
            makers = self._node.get_publishers_info_by_topic(name)
            users = self._node.get_subscriptions_info_by_topic(name)
            own = kind in SUFFIXES and any(full_name(user) == me for user in users)
            return not own and any(full_name(maker) != me for maker in makers)

        found = self._node.get_topic_names_and_types()
        topics = (Topic(name, kind) for name, kinds in found for kind in kinds)
        maybe = (t for t in topics if t.kind in (*SUFFIXES, CAMERA_INFO) or transport_of(t))
        return tuple(topic for topic in maybe if elsewhere(topic.name, topic.kind))


class SequenceGaps:
    """Counts messages that a publisher sent and that never arrived, from its sequence numbers.

    rclpy does not say which publisher sent a message, so gaps are counted only while there is one;
    where a number does not rise, the publisher has started again. So the count is a lower bound.
    """

    def __init__(self) -> None:
        self._last: int | None = None
        self._left_over = False

    def restart(self) -> None:
        """The publishers changed: the next message may be left over from one that is gone."""
        self._last, self._left_over = None, True

    def missing(self, number: int | None, publishers: int) -> int:
        """How many messages are missing before the one with this ``number``."""
        if number is None or number == NO_SEQUENCE_NUMBER or publishers != 1:
            self.restart()
            return 0
        if self._left_over:
            self._left_over = False
            return 0
        last, self._last = self._last, number
        return number - last - 1 if last is not None and number > last else 0


@functools.cache
def message_class(kind: str) -> Any:
    """The class of messages of type ``kind``, such as ``sensor_msgs/msg/Image``.

    ImportError or AttributeError if it is not installed.
    """
    package, _, name = kind.split("/")
    return getattr(importlib.import_module(f"{package}.msg"), name)


def message_of(transport: str) -> Any:
    """Its class of messages; ConfigError where their package, or a video's decoder, is missing."""
    kind = TRANSPORTS[transport].kind
    if TRANSPORTS[transport].is_video:
        try:
            importlib.import_module("av")  # here, so that no image waits
        except ImportError as error:
            raise ConfigError(
                f"image_transport is {transport}, for which PyAV is needed ({error}); install it "
                "(pip install av), or set image_transport to raw or compressed"
            ) from error
    try:
        return message_class(kind)
    except ImportError as error:
        package = kind.partition("/")[0]
        raise ConfigError(
            f"image_transport is {transport}, whose messages are those of the package {package}, "
            f"which is not installed ({error}); install it (apt install ros-$ROS_DISTRO-"
            f"{package.replace('_', '-')}), or set image_transport to raw or compressed"
        ) from error


def type_name(message: Any) -> str:
    """The name of a message class as the ROS graph gives it, such as sensor_msgs/msg/Image."""
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
    """The policy in which a publisher offers less than a subscriber asks for; empty if none.

    By the rules of DDS (requested against offered QoS, DDS 1.4, 2.2.3), in which history, depth and
    lifespan do not count; a policy that an endpoint leaves to the middleware fits, but for
    liveliness, which is automatic then. rclpy's own ``qos_check_compatible`` takes the graph's
    infinite durations for limits that a profile without any does not fulfil.
    """
    reliability, durability = QoSReliabilityPolicy, QoSDurabilityPolicy
    manual = QoSLivelinessPolicy.MANUAL_BY_TOPIC
    if (offered.reliability, asked.reliability) == (reliability.BEST_EFFORT, reliability.RELIABLE):
        return "reliability"
    if (offered.durability, asked.durability) == (durability.VOLATILE, durability.TRANSIENT_LOCAL):
        return "durability"
    if _limit_ns(offered.deadline) > _limit_ns(asked.deadline):
        return "deadline"
    left = (QoSLivelinessPolicy.AUTOMATIC, QoSLivelinessPolicy.SYSTEM_DEFAULT)
    automatic = asked.liveliness == manual and offered.liveliness in left
    lease = offered.liveliness_lease_duration, asked.liveliness_lease_duration
    return "liveliness" if automatic or _limit_ns(lease[0]) > _limit_ns(lease[1]) else ""


def _limit_ns(duration: Duration) -> float:
    """A duration in ns; infinite where it is not set, which is 0, or stands for infinite."""
    ns = duration.nanoseconds
    return float(ns) if 0 < ns < INFINITE_S * 1_000_000_000 else math.inf


def _has_profile() -> bool | None:
    """Whether there is a Fast DDS profile; None where the middleware is another."""
    if not get_rmw_implementation_identifier().startswith("rmw_fastrtps"):
        return None
    return any(os.environ.get(name) for name in PROFILE_VARIABLES)
