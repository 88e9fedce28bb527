"""One camera: its subscription, its topics, and how it fares."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable
from typing import Any

from rclpy.node import Node
from std_srvs.srv import Trigger

from lowlat_seg_ros.engine.counters import OnRefinement
from lowlat_seg_ros.engine.engine import Engine
from lowlat_seg_ros.frames import ResetReason
from lowlat_seg_ros.labels import ClassTable
from lowlat_seg_ros.ros.camera_info import topic_beside
from lowlat_seg_ros.ros.connections import ImageConnection
from lowlat_seg_ros.ros.diagnostics import StreamState
from lowlat_seg_ros.ros.doctor import Finding, examine_input
from lowlat_seg_ros.ros.executor import OwnThreadGroup
from lowlat_seg_ros.ros.gaps import SequenceGaps
from lowlat_seg_ros.ros.monitor import BusyTime, RateMeter, Rates, StreamTimes, since_ms
from lowlat_seg_ros.ros.outputs import Outputs
from lowlat_seg_ros.ros.params import Settings
from lowlat_seg_ros.ros.pipeline import Pipeline
from lowlat_seg_ros.ros.transport import TRANSPORTS


class CameraStream:
    """Masks for the images of one camera; made once, started and stopped as often as wanted.

    Its callbacks run one at a time, in a group of their own. ``camera`` is its name where there are
    several, and part of its topics; ``busy`` is that of all.
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
        transport = TRANSPORTS[settings().node.image_transport]
        image = f"{camera}/image" if camera else "image"
        self._images = ImageConnection(
            node, transport.topic(node, image), transport.message, self._on_other_publishers
        )
        self._gaps = SequenceGaps()
        self._rates, self._busy = RateMeter(time.monotonic()), busy
        self._active = False
        self._idle = threading.Lock()  # held by the image callback
        scaled = settings().node.output_size == "network"
        info = topic_beside(node.resolve_topic_name(image)) if scaled else ""
        self._out = Outputs(node, table, camera, camera_info=info)
        self._engine = engine(self._out.refinement)
        self._pipeline = Pipeline(node, transport, self._engine, self._out, settings)
        name = f"~/{camera}/force_key_frame" if camera else "~/force_key_frame"
        self._service = node.create_service(Trigger, name, self._force_key_frame)

    @property
    def topic(self) -> str:
        """Full name of the image topic."""
        return self._images.topic

    @property
    def active(self) -> bool:
        """Whether images are answered."""
        return self._active

    def state(self, now_s: float) -> StreamState:
        """How the stream fares, for diagnostics; rates are since the last call."""
        ledger, times = self._pipeline.ledger, self._pipeline.monitor.times()
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
        if self._pipeline.ledger.received:
            self.reset(ResetReason.ACTIVATED)
        self._active = True
        self._pipeline.monitor.start()
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
        self._pipeline.reset(reason)

    def _on_image(self, msg: Any, info: dict[str, Any]) -> None:
        began_ns, wait_ms = time.perf_counter_ns(), _wait_ms(info)
        with self._idle:
            if self._active:  # else it is as if it had come after the end of the subscription
                number = info.get("publication_sequence_number")
                superseded = self._gaps.missing(number, self._images.publishers)
                self._pipeline.answer(msg, began_ns, wait_ms, superseded)
        self._busy.add(time.perf_counter_ns() - began_ns)

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


def _wait_ms(info: dict[str, Any]) -> float:
    """How long ago the image behind a callback arrived, 0 where the middleware does not say."""
    # Of the system clock, whatever clock ROS and the camera go by.
    received_ns = info.get("received_timestamp") or 0
    return since_ms(received_ns, time.time_ns()) if received_ns > 0 else 0.0
