"""A bag's messages over DDS, with ``/clock``, as ``ros2 bag play --clock`` does it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any

from rclpy.node import Node
from rclpy.publisher import Publisher
from rclpy.qos import QoSDurabilityPolicy, QoSProfile, QoSReliabilityPolicy
from rosgraph_msgs.msg import Clock

from lowlat_seg_ros.lab.data.sequence import DataError
from lowlat_seg_ros.ros.messages import MESSAGES, message_class
from lowlat_seg_ros.tools.bag.messages import CLOCK
from lowlat_seg_ros.tools.bag.storage import BagReader, Raw

#: /clock comes at least so often, by the wall's clock, and before each message.
CLOCK_PERIOD_NS = 10_000_000


class BagPlayer:
    """Publishes the messages of ``bag``, ``rate`` times as fast as they were recorded.

    ``renamed``: other names for some topics. ``unknown``: topics that are left out, as the package
    of their type is not here. A ``/clock`` in the bag is left out too; this one tells the time at
    which messages were recorded, without steps between them.
    """

    def __init__(
        self, node: Node, bag: BagReader, rate: float, renamed: Mapping[str, str] | None = None
    ) -> None:
        self._bag, self._rate = bag, rate
        self._clock = node.create_publisher(Clock, "/clock", 10)
        self._publishers: dict[str, Publisher] = {}
        unknown = []
        for connection in bag.connections:
            if connection.topic in self._publishers or connection.msgtype == CLOCK:
                continue
            try:
                kind = message_class(connection.msgtype)
            except (ImportError, AttributeError):
                unknown.append(f"{connection.topic} ({connection.msgtype})")
                continue
            topic = (renamed or {}).get(connection.topic, connection.topic)
            self._publishers[connection.topic] = node.create_publisher(
                kind, topic, _qos(connection.ext.offered_qos_profiles)
            )
        self.unknown = tuple(unknown)

    def listeners(self, topic: str) -> int:
        """How many subscriptions there are to what the bag calls ``topic``."""
        return int(self._publishers[topic].get_subscription_count())

    def play(self) -> Iterator[Raw]:
        """Publish everything once, yielding each message after it is out.

        The schedule is absolute: time lost on one message is not passed on to the next ones.
        DataError where the bag is damaged, or holds nothing that can be played.
        """
        if not self._publishers:
            raise DataError(f"{self._bag.path} has no topic of a type that is known here")
        began_ns, first_ns = time.monotonic_ns(), None
        for raw in self._bag.raw(self._publishers.keys()):
            first_ns = raw.time_ns if first_ns is None else first_ns
            self._wait_until(raw.time_ns, first_ns, began_ns)
            self._publishers[raw.topic].publish(bytes(raw.data))
            yield raw

    def _wait_until(self, ns: int, first_ns: int, began_ns: int) -> None:
        """Until the bag's time is ``ns``; the clock goes on meanwhile."""
        while (now_ns := first_ns + self._elapsed_ns(began_ns)) < ns:
            self._tell(now_ns)
            time.sleep(min(CLOCK_PERIOD_NS, (ns - now_ns) / self._rate) / 1e9)
        # Not later than the message, if that is late: whoever gets it finds it of this moment.
        self._tell(ns)

    def _elapsed_ns(self, began_ns: int) -> int:
        return round((time.monotonic_ns() - began_ns) * self._rate)

    def _tell(self, ns: int) -> None:
        self._clock.publish(Clock(clock=MESSAGES.time(ns)))


def _qos(offered: Any) -> QoSProfile:
    """As the recorded publisher offered it, as far as it matters to who may subscribe."""
    profile = QoSProfile(depth=10)
    if offered and offered[0].reliability.name == "BEST_EFFORT":
        profile.reliability = QoSReliabilityPolicy.BEST_EFFORT
    if offered and offered[0].durability.name == "TRANSIENT_LOCAL":
        profile.durability = QoSDurabilityPolicy.TRANSIENT_LOCAL
    return profile
