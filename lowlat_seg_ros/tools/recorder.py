"""Records what a segmentation node publishes, frame by frame."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import numpy as np
from rclpy.node import Node
from rclpy.qos import QoSProfile, QoSReliabilityPolicy
from sensor_msgs.msg import Image

from lowlat_seg_ros.images import Ledger, to_ids
from lowlat_seg_ros.lab.evaluation.summary import Account, Answer
from lowlat_seg_ros.messages import record_of, segmentation, stamp_ns
from lowlat_seg_ros.msg import FrameReport


class Recorder:
    """Keeps every mask and frame report of the node ``source``, by the stamp of its image."""

    def __init__(self, node: Node, source: str = "segmentation_node") -> None:
        self._node, self._changed = node, threading.Condition()
        self._masks: dict[int, tuple[np.ndarray, float]] = {}
        self._reports: dict[int, FrameReport] = {}
        # Reliable, and deep enough to lose nothing while this process is busy with a video.
        qos = QoSProfile(depth=1000, reliability=QoSReliabilityPolicy.RELIABLE)
        self.topics = (f"{source}/mask", f"{source}/frame_report")
        node.create_subscription(Image, self.topics[0], self._on_mask, qos)
        node.create_subscription(FrameReport, self.topics[1], self._on_report, qos)

    @property
    def matched(self) -> bool:
        """Whether the node's publishers are seen."""
        return all(self._node.count_publishers(topic) for topic in self.topics)

    @property
    def complete(self) -> int:
        """How many frames have both mask and report."""
        with self._changed:
            return len(self._masks.keys() & self._reports.keys())

    def wait_for(self, stamp: int, timeout_s: float) -> bool:
        """Until mask and report of the image stamped ``stamp`` ns are here; False if too late."""
        with self._changed:
            return self._changed.wait_for(
                lambda: stamp in self._masks and stamp in self._reports, timeout_s
            )

    def answers(self, stamps: Sequence[int]) -> list[Answer]:
        """The results for the images played with ``stamps`` ns, in order, where there are any."""
        with self._changed:
            masks, reports = dict(self._masks), dict(self._reports)
        return [
            Answer(index, segmentation(reports[stamp], masks[stamp][0]),
                   published_ms=reports[stamp].age_ms, received_ms=masks[stamp][1])
            for index, stamp in enumerate(stamps)
            if stamp in masks and stamp in reports
        ]  # fmt: skip

    def account(self, stamps: Sequence[int]) -> Account:
        """What became of the images played with ``stamps`` ns, by the node's newest ledger."""
        with self._changed:
            newest = max(self._reports, default=None)
            ledger = record_of(Ledger, self._reports[newest].ledger) if newest else Ledger()
            masks = len(self._masks.keys() & self._reports.keys() & set(stamps))
        return Account(len(stamps), masks, ledger.superseded, ledger.rejected, ledger.failed)

    def _on_mask(self, message: Image) -> None:
        now_ns, stamp = self._node.get_clock().now().nanoseconds, stamp_ns(message.header.stamp)
        self._keep(lambda: self._masks.update({stamp: (to_ids(message), (now_ns - stamp) / 1e6)}))

    def _on_report(self, message: FrameReport) -> None:
        self._keep(lambda: self._reports.update({stamp_ns(message.header.stamp): message}))

    def _keep(self, store: Callable[[], None]) -> None:
        with self._changed:
            store()
            self._changed.notify_all()
