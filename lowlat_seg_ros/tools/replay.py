"""A bag played into a live node, and what became of its images."""

from __future__ import annotations

import argparse
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rclpy.node import Node
from rclpy.qos import QoSProfile, QoSReliabilityPolicy
from sensor_msgs.msg import Image
from tqdm import tqdm

from lowlat_seg_ros.config import EngineConfig
from lowlat_seg_ros.images import ImageError, Ledger, to_rgb
from lowlat_seg_ros.lab.data.sequence import DataError
from lowlat_seg_ros.lab.evaluation.summary import Account, Latency
from lowlat_seg_ros.messages import COMPRESSED, IMAGE, record_of
from lowlat_seg_ros.msg import FrameReport
from lowlat_seg_ros.ros.params import as_parameters
from lowlat_seg_ros.tools.bag.play import loops
from lowlat_seg_ros.tools.bag.player import BagPlayer
from lowlat_seg_ros.tools.bag.storage import BagReader
from lowlat_seg_ros.tools.live import LAST_TIMEOUT_S, NODE, spun_node, wait_until_connected
from lowlat_seg_ros.tools.process import NodeProcess

#: So often the last images are asked after.
POLL_S = 0.05


@dataclass(frozen=True)
class Replay:
    """``account`` of all images played; ``fresh``: how many masks began afresh, by reason.

    ``engine``: frame in to mask out; ``age``: stamp to mask published, by the bag's clock; in ms.
    ``ledger``: the node's own.
    """

    account: Account
    ledger: Ledger
    fresh: dict[str, int]
    engine: Latency
    age: Latency

    def as_json(self) -> dict[str, Any]:
        """For :func:`~lowlat_seg_ros.lab.evaluation.summary.write_json`."""
        return {**vars(self), "unaccounted": self.account.unaccounted}


class Tally:
    """Counts the masks of the node ``source``, and keeps its reports, in the order they come."""

    def __init__(self, node: Node, source: str) -> None:
        self._node, self._lock = node, threading.Lock()
        self._masks, self._reports = 0, list[FrameReport]()
        qos = QoSProfile(depth=1000, reliability=QoSReliabilityPolicy.RELIABLE)
        self._topics = (f"{source}/mask", f"{source}/frame_report")
        node.create_subscription(Image, self._topics[0], self._on_mask, qos)
        node.create_subscription(FrameReport, self._topics[1], self._on_report, qos)

    @property
    def matched(self) -> bool:
        """Whether the node's publishers are seen."""
        return all(self._node.count_publishers(topic) for topic in self._topics)

    @property
    def reports(self) -> list[FrameReport]:
        """Those that have come."""
        with self._lock:
            return list(self._reports)

    def account(self, played: int) -> tuple[Account, Ledger]:
        """Of ``played`` images, by the masks that came and the node's newest ledger."""
        with self._lock:
            ledger = record_of(Ledger, self._reports[-1].ledger) if self._reports else Ledger()
            lost = (ledger.superseded, ledger.rejected, ledger.failed)
            return Account(played, self._masks, *lost), ledger

    def _on_mask(self, _: Image) -> None:
        with self._lock:
            self._masks += 1

    def _on_report(self, message: FrameReport) -> None:
        with self._lock:
            self._reports.append(message)


def replay(args: argparse.Namespace, config: EngineConfig) -> Replay:
    """Play ``args.bag`` into a node of its own and wait for the last mask.

    RosError if the node does not come up or dies, DataError for what is wrong with the bag.
    """
    with tempfile.TemporaryDirectory() as folder, BagReader(args.bag) as bag:
        bag.require(args.image_topic, (IMAGE, COMPRESSED), "--image-topic")
        log = args.log or Path(folder) / "node.log"
        with spun_node("bag_player") as node:
            compressed = bag.topics[args.image_topic] == COMPRESSED
            own = "image/compressed" if compressed else "image"
            player = BagPlayer(node, bag, args.rate, {args.image_topic: own})
            tally = Tally(node, NODE)
            with NodeProcess(_parameters(args, config, bag), log) as process:
                wait_until_connected(
                    node, process,
                    lambda: player.listeners(args.image_topic) > 0 and tally.matched,
                )  # fmt: skip
                played = _play(args, bag, player, process)
                _wait_for_the_last(tally, played, process)
                reports, (account, ledger) = tally.reports, tally.account(played)
    if not reports:
        raise DataError(f"the node made no mask of the images on {args.image_topic}; see --log")
    reasons = Counter(report.reset_reason for report in reports if report.reset_reason)
    return Replay(
        account, ledger, dict(reasons), Latency.of([r.timing.latency_ms for r in reports]),
        Latency.of([r.age_ms for r in reports]),
    )  # fmt: skip


def summary(found: Replay) -> str:
    """The most telling figures, as lines."""
    engine, age = found.engine.steady, found.age.steady
    return (
        f"{found.account}\n"
        f"begun afresh: {', '.join(f'{why} {times}' for why, times in found.fresh.items())}\n"
        f"engine p50 {engine.p50:.1f}, p99 {engine.p99:.1f} ms; stamp to mask, by the bag's clock, "
        f"p50 {age.p50:.1f}, p99 {age.p99:.1f} ms"
    )


def _play(args: argparse.Namespace, bag: BagReader, player: BagPlayer, process: NodeProcess) -> int:
    """Returns how many images there were."""
    played = 0
    total = args.loops * bag.counts[args.image_topic]
    with tqdm(total=total, unit="frame", desc=args.bag.name, disable=None) as bar:
        for _ in loops(args.loops):
            for raw in player.play():
                if raw.topic == args.image_topic:
                    played += 1
                    bar.update()
                    process.check()
    return played


def _wait_for_the_last(tally: Tally, played: int, process: NodeProcess) -> None:
    """For the newest image, which nothing can supersede, or until it is late."""
    end = time.monotonic() + LAST_TIMEOUT_S
    while tally.account(played)[0].unaccounted > 0 and time.monotonic() < end:
        process.check()
        time.sleep(POLL_S)


def _parameters(args: argparse.Namespace, config: EngineConfig, bag: BagReader) -> dict[str, Any]:
    parameters: dict[str, Any] = {**vars(config), "device": args.device, "use_sim_time": True}
    if args.checkpoint is not None:
        parameters["checkpoint"] = str(args.checkpoint.resolve())
    if bag.topics[args.image_topic] == COMPRESSED:
        parameters["image_transport"] = "compressed"
    try:
        first = next(bag.raw([args.image_topic]), None)
        if first is not None:
            height, width = to_rgb(bag.decode(first)).shape[:2]
            parameters |= {"expected_height": height, "expected_width": width}
    except ImageError:  # the node will reject it; others may be in order
        pass
    return as_parameters(parameters)
