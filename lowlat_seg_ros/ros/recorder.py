"""Records what a segmentation node publishes, frame by frame."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
from rclpy.node import Node
from rclpy.qos import QoSProfile, QoSReliabilityPolicy
from sensor_msgs.msg import Image

from lowlat_seg_ros.evaluation.record import Account, Answer
from lowlat_seg_ros.frames import (
    Counters,
    Deadline,
    MaskKind,
    Provenance,
    ResetReason,
    Segmentation,
    Selection,
    StageTiming,
)
from lowlat_seg_ros.msg import FrameReport
from lowlat_seg_ros.ros.ledger import Ledger
from lowlat_seg_ros.ros.reports import stamp_ns

Record = TypeVar("Record")

_KINDS = {
    FrameReport.FULL: MaskKind.FULL,
    FrameReport.PROPAGATED: MaskKind.PROPAGATED,
    FrameReport.DEGRADED: MaskKind.DEGRADED,
}


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
        self._keep(lambda: self._masks.update({stamp: (mask_of(message), (now_ns - stamp) / 1e6)}))

    def _on_report(self, message: FrameReport) -> None:
        self._keep(lambda: self._reports.update({stamp_ns(message.header.stamp): message}))

    def _keep(self, store: Callable[[], None]) -> None:
        with self._changed:
            store()
            self._changed.notify_all()


def mask_of(message: Image) -> np.ndarray:
    """The class ids of a ``~/mask`` message, uint8 (H, W)."""
    rows = np.frombuffer(message.data, np.uint8).reshape(message.height, message.step)
    return rows[:, : message.width]


def segmentation(report: FrameReport, mask: np.ndarray) -> Segmentation:
    """The engine's record from which the node made ``report``, with its ``mask``."""
    chosen = Selection(report.deviation, report.threshold, report.is_key)
    return Segmentation(
        mask,
        stamp_ns(report.header.stamp),
        report.header.frame_id,
        Provenance(
            _KINDS[report.kind],
            stamp_ns(report.key_stamp),
            report.key_age_frames,
            report.key_age_ms,
            report.exact,
            report.epoch,
            ResetReason(report.reset_reason) if report.reset_reason else None,
        ),
        record_of(StageTiming, report.timing),
        record_of(Counters, report.counters),
        chosen if report.selected else None,
        record_of(Deadline, report.deadline),
    )


def record_of(kind: type[Record], message: Any) -> Record:
    """The record ``kind`` from the ``message`` that mirrors it."""
    names = (item.name for item in dataclasses.fields(kind))  # type: ignore[arg-type]
    return kind(**{name: getattr(message, name) for name in names})
