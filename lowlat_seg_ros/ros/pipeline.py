"""The way of a camera's image from message to mask."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from typing import Any

import numpy as np
from rclpy.node import Node

from lowlat_seg_ros.engine.engine import Engine
from lowlat_seg_ros.frames import Frame, FrameError, NodeTiming, ResetReason
from lowlat_seg_ros.images.ledger import Bookkeeper, Ledger
from lowlat_seg_ros.images.raw import ImageError
from lowlat_seg_ros.ros.monitor import StreamMonitor, since_ms
from lowlat_seg_ros.ros.outputs import Outputs
from lowlat_seg_ros.ros.params import Settings
from lowlat_seg_ros.ros.reports import stamp_ns
from lowlat_seg_ros.ros.throttle import Throttle
from lowlat_seg_ros.ros.transport import Transport


class Pipeline:
    """Answers images one at a time: converted, segmented, published; each one is booked.

    ``settings`` is asked once a frame.
    """

    def __init__(
        self,
        node: Node,
        transport: Transport,
        engine: Engine,
        out: Outputs,
        settings: Callable[[], Settings],
    ) -> None:
        self._node, self._transport, self._engine = node, transport, engine
        self._out, self._settings = out, settings
        self._books = Bookkeeper()
        self._log_error = Throttle(node.get_logger().error)
        self._reset_due: ResetReason | None = None
        #: When images and masks came and went.
        self.monitor = StreamMonitor(self._now_ns)

    @property
    def ledger(self) -> Ledger:
        """What became of every image; balances at every moment."""
        return self._books.ledger

    def reset(self, reason: ResetReason) -> None:
        """Make the next frame a fresh key frame."""
        self._reset_due = reason

    def answer(self, msg: Any, began_ns: int, wait_ms: float, superseded: int) -> None:
        """Publish the mask of the image message ``msg``, or say why there is none.

        The callback began at ``began_ns`` (``time.perf_counter_ns``), ``wait_ms`` after the message
        had arrived; ``superseded`` others before it never did.
        """
        self._books.receive(superseded)
        self.monitor.image(stamp_ns(msg.header.stamp))
        try:
            image = self._transport.to_rgb(msg)
        except ImageError as error:
            self._books.reject()
            self._complain(error.fault, f"Image rejected: {error}")
            return
        try:
            self._segment(msg, image, began_ns, wait_ms)
        except Exception as error:
            # Whatever fails, the node goes on with the next image; this one is accounted for.
            self._fail(error)

    def _segment(self, msg: Any, image: np.ndarray, began_ns: int, wait_ms: float) -> None:
        """The way of a valid image; raises whatever the engine or the middleware raises."""
        settings = self._take_over_settings()
        converted_ns = time.perf_counter_ns()
        encoding = self._transport.encoding(msg)
        frame = Frame(image, stamp_ns(msg.header.stamp), msg.header.frame_id, encoding)
        step = self._engine.segment(
            frame,
            waited_ms=wait_ms + (converted_ns - began_ns) / 1e6,
            mask_at_network_size=settings.node.output_size == "network",
        )
        try:
            out_ns = time.perf_counter_ns()
            self._out.mask(msg.header, step.mask, image.shape[:2])
            self._books.publish()
            now_ns = time.perf_counter_ns()
            timing = NodeTiming(
                wait_ms=wait_ms,
                convert_ms=(converted_ns - began_ns) / 1e6,
                publish_ms=(now_ns - out_ns) / 1e6,
                processing_ms=(now_ns - began_ns) / 1e6,
                age_ms=since_ms(frame.stamp_ns, self._now_ns()),
            )
        finally:
            # The selector runs after the mask is out, also if it could not be published.
            result = self._engine.finish(step, confidence=self._out.wants_confidence)
        limit_ms = settings.node.max_processing_time_ms
        self.monitor.published(result.timing, timing, result.deadline, began_ns, limit_ms)
        self._out.report(msg.header, result, timing, self.ledger)
        self._out.pictures(msg.header, image, result, settings.node)

    def _take_over_settings(self) -> Settings:
        """What changed since the last frame takes effect on this one."""
        settings = self._settings()
        if settings.engine != self._engine.config:
            self._engine.reconfigure(settings.engine)
        reason, self._reset_due = self._reset_due, None
        if reason is not None:
            self._engine.reset(reason)
        return settings

    def _fail(self, error: Exception) -> None:
        unanswered = self.ledger.in_flight > 0
        if unanswered:
            self._books.fail()
        if not self._node.context.ok():
            return  # shut down meanwhile, so nothing could be published
        what = "No mask for an image" if unanswered else "Failed after the mask was out"
        expected = isinstance(error, FrameError)
        text = str(error) if expected else "".join(traceback.format_exception(error))
        self._complain(type(error), f"{what}: {text}")

    def _complain(self, kind: Any, text: str) -> None:
        self._log_error(kind, text, self._settings().node.log_throttle_s)

    def _now_ns(self) -> int:
        return self._node.get_clock().now().nanoseconds
