"""Bags over DDS: to anybody, as ``ros2 bag play --clock`` does it, and into a live node."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from itertools import chain, count
from pathlib import Path
from typing import Any

from rclpy.node import Node
from rclpy.publisher import Publisher
from rclpy.qos import QoSDurabilityPolicy, QoSProfile, QoSReliabilityPolicy
from rosgraph_msgs.msg import Clock
from tqdm import tqdm

from lowlat_seg_ros.config import ConfigError, EngineConfig
from lowlat_seg_ros.frames import Ledger
from lowlat_seg_ros.images import ImageError, to_rgb
from lowlat_seg_ros.lab.arguments import settings_from
from lowlat_seg_ros.lab.data.sequence import DataError
from lowlat_seg_ros.lab.metrics import Latency
from lowlat_seg_ros.lab.report import write_json
from lowlat_seg_ros.messages import COMPRESSED, IMAGE
from lowlat_seg_ros.msg import FrameReport
from lowlat_seg_ros.ros.connections import message_class
from lowlat_seg_ros.ros.outputs import MESSAGES
from lowlat_seg_ros.ros.params import as_parameters
from lowlat_seg_ros.tools.account import Account
from lowlat_seg_ros.tools.bag.storage import CLOCK, BagReader, Raw
from lowlat_seg_ros.tools.live import NodeProcess, Recorder, spun_node, wait_until_connected

#: Longest time between two messages on /clock, by the wall clock; one precedes each message, too.
CLOCK_PERIOD_NS = 10_000_000


class BagPlayer:
    """Publishes the messages of ``bag``, ``rate`` times as fast as they were recorded.

    ``renamed``: other names for some topics. ``unknown``: topics that are left out, as the package
    of their type is not here. A ``/clock`` in the bag is left out too: this one publishes the time
    at which messages were recorded, without steps between them.
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
        while (now_ns := first_ns + round((time.monotonic_ns() - began_ns) * self._rate)) < ns:
            self._publish_clock(now_ns)
            time.sleep(min(CLOCK_PERIOD_NS, (ns - now_ns) / self._rate) / 1e9)
        # Not later than the message, if that is late: whoever gets it finds it of this moment.
        self._publish_clock(ns)

    def _publish_clock(self, ns: int) -> None:
        self._clock.publish(Clock(clock=MESSAGES.time(ns)))


def _qos(offered: Any) -> QoSProfile:
    """As the recorded publisher offered it, as far as it matters to who may subscribe."""
    profile = QoSProfile(depth=10)
    if offered and offered[0].reliability.name == "BEST_EFFORT":
        profile.reliability = QoSReliabilityPolicy.BEST_EFFORT
    if offered and offered[0].durability.name == "TRANSIENT_LOCAL":
        profile.durability = QoSDurabilityPolicy.TRANSIENT_LOCAL
    return profile


def play(args: argparse.Namespace) -> int:
    """``bag play``: publish a bag; the exit status. DataError where it cannot be read."""
    _check(args, least_loops=0)
    with BagReader(args.bag) as bag, spun_node("bag_player") as node:
        player = BagPlayer(node, bag, args.rate)
        for name in player.unknown:
            print(f"Left out, as its package is not installed: {name}", file=sys.stderr)
        messages = 0
        with suppress(KeyboardInterrupt):  # how a bag that is played for ever is meant to end
            for _ in range(args.loops) if args.loops else count():
                for _ in player.play():
                    messages += 1
    print(f"{messages} messages played")
    return 0


def live(args: argparse.Namespace) -> int:
    """``bag live``: a bag into a live node; the exit status, 1 if an image is unaccounted for.

    RosError if the node does not come up or dies, DataError for what is wrong with the bag.
    """
    _check(args, least_loops=1)
    reports, account, ledger = _into_live_node(args, settings_from(args, EngineConfig))
    if not reports:
        raise DataError(f"the node made no mask of the images on {args.image_topic}; see --log")
    fresh = dict(Counter(report.reset_reason for report in reports if report.reset_reason))
    engine = Latency.of([report.timing.latency_ms for report in reports])
    # By the bag's clock. Where that is set back, as at each loop, an age is negative, and none.
    age = Latency.of([report.age_ms for report in reports if report.age_ms >= 0] or [0.0])
    print(
        f"{account}\n"
        f"resets: {', '.join(f'{why} {times}' for why, times in fresh.items())}\n"
        f"engine p50 {engine.steady.p50:.1f}, p99 {engine.steady.p99:.1f} ms; stamp to mask, by "
        f"the bag's clock, p50 {age.steady.p50:.1f}, p99 {age.steady.p99:.1f} ms"
    )
    if args.json is not None:
        figures = {"account": account, "ledger": ledger, "fresh": fresh, "engine": engine}
        write_json(args.json, {**figures, "age": age, "unaccounted": account.unaccounted})
    return 0 if account.unaccounted == 0 else 1


def _into_live_node(
    args: argparse.Namespace, config: EngineConfig
) -> tuple[list[FrameReport], Account, Ledger]:
    """The reports of a node of its own, and what became of the images, by it and by its ledger."""
    topic = args.image_topic
    with (
        tempfile.TemporaryDirectory() as folder,
        BagReader(args.bag) as bag,
        spun_node("bag_player") as node,
    ):
        bag.require(topic, (IMAGE, COMPRESSED), "--image-topic")
        own = "image/compressed" if bag.topics[topic] == COMPRESSED else "image"
        player = BagPlayer(node, bag, args.rate, {topic: own})
        recorder = Recorder(node, store_masks=False)
        log = args.log or Path(folder) / "node.log"
        with NodeProcess(_parameters(args, config, bag), log) as process:
            wait_until_connected(
                node, process, lambda: player.listeners(topic) > 0 and recorder.matched
            )
            played, total = 0, args.loops * bag.counts[topic]
            with tqdm(total=total, unit="frame", desc=args.bag.name, disable=None) as bar:
                for raw in chain.from_iterable(player.play() for _ in range(args.loops)):
                    if raw.topic == topic:
                        played += 1
                        bar.update()
                        process.check()
            recorder.wait_for_last(played, process)
            return recorder.reports, recorder.account(played), recorder.counts[1]


def _parameters(args: argparse.Namespace, config: EngineConfig, bag: BagReader) -> dict[str, Any]:
    parameters: dict[str, Any] = {**vars(config), "device": args.device, "use_sim_time": True}
    if args.checkpoint is not None:
        parameters["checkpoint"] = str(args.checkpoint.resolve())
    if bag.topics[args.image_topic] == COMPRESSED:
        parameters["image_transport"] = "compressed"
    first = next(bag.raw([args.image_topic]), None)
    with suppress(ImageError):  # the node will reject it; others may be in order
        if first is not None:
            height, width = to_rgb(bag.decode(first)).shape[:2]
            parameters |= {"expected_height": height, "expected_width": width}
    return as_parameters(parameters)


def _check(args: argparse.Namespace, least_loops: int) -> None:
    """Raise ConfigError for a rate or a number of loops that cannot be."""
    if not 0.01 <= args.rate <= 100.0:
        raise ConfigError(f"--rate is {args.rate}; it must lie in [0.01, 100]")
    if args.loops < least_loops:
        raise ConfigError(f"--loops is {args.loops}; it must be {least_loops} or more")
