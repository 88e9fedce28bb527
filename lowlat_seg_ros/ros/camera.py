"""One camera: its subscription, its topics, and the way of a frame from message to mask."""

from __future__ import annotations

import dataclasses
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any

import numpy as np
from rclpy.node import Node
from std_srvs.srv import Trigger

from lowlat_seg_ros.data.labels import ClassTable
from lowlat_seg_ros.engine.engine import Engine
from lowlat_seg_ros.engine.ledger import OnRefinement
from lowlat_seg_ros.frames import Frame, FrameError, NodeTiming, ResetReason, Segmentation
from lowlat_seg_ros.images.ledger import Bookkeeper, Ledger
from lowlat_seg_ros.images.raw import ImageError
from lowlat_seg_ros.ros.camera_info import topic_beside
from lowlat_seg_ros.ros.connections import ImageConnection
from lowlat_seg_ros.ros.diagnostics import RateMeter, Rates, StreamState
from lowlat_seg_ros.ros.doctor import Finding, examine_input
from lowlat_seg_ros.ros.executor import OwnThreadGroup
from lowlat_seg_ros.ros.gaps import SequenceGaps
from lowlat_seg_ros.ros.monitor import BusyTime, StreamMonitor, StreamTimes, since_ms
from lowlat_seg_ros.ros.outputs import Outputs
from lowlat_seg_ros.ros.params import Settings
from lowlat_seg_ros.ros.reports import stamp_ns
from lowlat_seg_ros.ros.throttle import Throttle
from lowlat_seg_ros.ros.transport import TRANSPORTS


class CameraStream:
    """Masks for the images of one camera; made once, started and stopped as often as wanted.

    Its callbacks run one at a time, in a group of their own. ``settings`` is asked once a frame.
    ``camera`` is its name where there are several, and part of its topics; ``busy`` is that of all.
    """

    def __init__(
        self,
        node: Node,
        engine: Callable[[OnRefinement], Engine],
        table: ClassTable,
        settings: Callable[[], Settings],
        camera: str = "",
        *,
        busy: BusyTime,
    ) -> None:
        self._node, self._settings, self._camera = node, settings, camera
        self._group = OwnThreadGroup()
        self._transport = TRANSPORTS[settings().node.image_transport]
        image = f"{camera}/image" if camera else "image"
        self._images = ImageConnection(
            node,
            self._transport.topic(node, image),
            self._transport.message,
            self._on_other_publishers,
        )
        self._books, self._gaps = Bookkeeper(), SequenceGaps()
        self._monitor = StreamMonitor(self._now_ns)
        self._log_error = Throttle(node.get_logger().error)
        self._reset_due: ResetReason | None = None
        self._rates, self._busy = RateMeter(time.monotonic()), busy
        self._active = False
        self._idle = threading.Lock()  # held by the image callback
        scaled = settings().node.output_size == "network"
        info = topic_beside(node.resolve_topic_name(image)) if scaled else ""
        self._out = Outputs(node, table, camera, camera_info=info)
        self._engine = engine(self._out.refinement)
        name = f"~/{camera}/force_key_frame" if camera else "~/force_key_frame"
        self._service = node.create_service(Trigger, name, self._force_key_frame)

    @property
    def topic(self) -> str:
        """Full name of the image topic."""
        return self._images.topic

    @property
    def ledger(self) -> Ledger:
        """What became of every image; balances at every moment."""
        return self._books.ledger

    @property
    def active(self) -> bool:
        """Whether images are answered."""
        return self._active

    def state(self, now_s: float) -> StreamState:
        """How the stream fares, for diagnostics; rates are since the last call."""
        ledger, times = self.ledger, self._monitor.times()
        rates = self._rates.update(ledger, now_s, self._busy.total_s)
        return StreamState(
            self._camera,
            self.topic,
            self._images.publishers,
            ledger,
            times,
            rates,
            self._engine.counters,
            self._engine.slow_track(),
            self._engine.threshold,
            tuple(self._examine(times, rates)),
            tuple(self._out.findings()),
        )

    def start(self) -> None:
        """Subscribe to the images; after a pause the first one starts afresh."""
        self._gaps = SequenceGaps()
        if self.ledger.received:
            self.reset(ResetReason.ACTIVATED)
        self._active = True
        self._monitor.start()
        self._images.open(self._on_image, self._group)

    def stop(self, timeout_s: float) -> bool:
        """Unsubscribe; False if the frame being worked on takes longer than ``timeout_s``.

        No image is answered from then on, not even one that the middleware had delivered.
        """
        self._active = False
        self._images.close()
        if not self._idle.acquire(timeout=timeout_s):
            return False
        self._idle.release()
        return True

    def destroy(self, timeout_s: float) -> bool:
        """Take back the topics and end the engine; False if Sh takes longer than ``timeout_s``.

        Call it when stopped.
        """
        self._node.destroy_service(self._service)
        ended = self._engine.close(timeout_s)
        self._out.destroy()
        return ended

    def reset(self, reason: ResetReason) -> None:
        """Make the next frame a fresh key frame."""
        self._reset_due = reason

    def _on_image(self, msg: Any, info: dict[str, Any]) -> None:
        began_ns = time.perf_counter_ns()
        self._answer(msg, info, began_ns)
        self._busy.add(time.perf_counter_ns() - began_ns)

    def _answer(self, msg: Any, info: dict[str, Any], began_ns: int) -> None:
        wait_ms = _wait_ms(info)
        with self._idle:
            if not self._active:
                return  # as if it had come after the end of the subscription
            number = info.get("publication_sequence_number")
            self._books.receive(superseded=self._gaps.missing(number, self._images.publishers))
            self._monitor.image(stamp_ns(msg.header.stamp))
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
        timing = NodeTiming()

        def publish(result: Segmentation) -> None:
            nonlocal timing
            out_ns = time.perf_counter_ns()
            self._out.mask(msg.header, result.mask, image.shape[:2])
            self._books.publish()
            timing = self._measure(frame, wait_ms, began_ns, converted_ns, out_ns)

        # The selector runs after the mask is out.
        waited_ms = wait_ms + (converted_ns - began_ns) / 1e6
        result = self._engine.process(
            frame,
            publish,
            waited_ms=waited_ms,
            confidence=self._out.wants_confidence,
            mask_at_network_size=settings.node.output_size == "network",
        )
        limit_ms = settings.node.max_processing_time_ms
        self._monitor.published(result.timing, timing, result.deadline, began_ns, limit_ms)
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

    def _force_key_frame(self, _: Trigger.Request, answer: Trigger.Response) -> Trigger.Response:
        if not self._active:
            answer.message = "the node is not active, so no frame is coming; activate it first"
            return answer
        self._engine.force_key_frame()
        answer.success, answer.message = True, "the next frame becomes the key frame"
        return answer

    def _on_other_publishers(self) -> None:
        self._gaps.restart()

    def _examine(self, times: StreamTimes, rates: Rates) -> list[Finding]:
        config = self._settings().node
        state = dataclasses.replace(
            self._images.look(),
            begun=times.since_image_ms is not None,
            silent_ms=times.silent_ms,
            timeout_ms=config.camera_timeout_ms,
            missing=rates.superseded,
            received=rates.received,
            busy_share=rates.busy_share,
        )
        return examine_input(state, config.max_lost_share)

    def _measure(
        self, frame: Frame, wait_ms: float, began_ns: int, converted_ns: int, out_ns: int
    ) -> NodeTiming:
        now_ns = time.perf_counter_ns()
        return NodeTiming(
            convert_ms=(converted_ns - began_ns) / 1e6,
            publish_ms=(now_ns - out_ns) / 1e6,
            processing_ms=(now_ns - began_ns) / 1e6,
            age_ms=since_ms(frame.stamp_ns, self._now_ns()),
            wait_ms=wait_ms,
        )

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


def _wait_ms(info: dict[str, Any]) -> float:
    """How long ago the image behind a callback arrived, 0 where the middleware does not say."""
    # Of the system clock, whatever clock ROS and the camera go by.
    received_ns = info.get("received_timestamp") or 0
    return since_ms(received_ns, time.time_ns()) if received_ns > 0 else 0.0
