"""One camera: its images through the pipeline; and all cameras of the node together."""

from __future__ import annotations

import dataclasses
import threading
import time
import traceback
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
from rclpy.node import Node
from std_msgs.msg import Header
from std_srvs.srv import Trigger

from lowlat_seg_ros.engine.engine import Engine
from lowlat_seg_ros.engine.slow_track import SharedSlowTrack
from lowlat_seg_ros.frames import FrameError, NodeTiming, ResetReason, Segmentation
from lowlat_seg_ros.images import ImageError, ImageReader, Packet
from lowlat_seg_ros.labels import ClassTable
from lowlat_seg_ros.messages import TRANSPORTS, stamp_ns
from lowlat_seg_ros.network.segmenter import Segmenter
from lowlat_seg_ros.pipeline import Pipeline
from lowlat_seg_ros.ros.connections import ImageConnection, message_of
from lowlat_seg_ros.ros.doctor import Finding
from lowlat_seg_ros.ros.monitor import BusyTime, Throttle, examine_pace, since_ms
from lowlat_seg_ros.ros.outputs import MESSAGES, Outputs, topic_beside
from lowlat_seg_ros.ros.params import Settings
from lowlat_seg_ros.ros.runtime import OwnThreadGroup
from lowlat_seg_ros.ros.stream_state import StreamState, StreamWatch


class CameraStream:
    """Masks for the images of one camera; made once, started and stopped as often as needed.

    Its callbacks run one at a time, in a group of their own. ``camera`` is its name where there are
    several, and part of its topics; ``busy`` is that of all. It is the sink of its own pipeline.
    """

    def __init__(
        self,
        node: Node,
        make_engine: Callable[..., Engine],
        table: ClassTable,
        settings: Callable[[], Settings],
        camera: str,
        busy: BusyTime,
    ) -> None:
        self._node, self._settings, self._camera = node, settings, camera
        self._group = OwnThreadGroup()
        self._busy = busy
        self._logged: set[str] = set()  # kinds of findings that were there at the last look
        self._log_error = Throttle(node.get_logger().error)
        self._active = False
        self._idle = threading.Lock()  # held by the image callback
        self._began_ns = 0  # the newest image callback
        # Its image, as :meth:`StreamWatch.image` takes it, until that is noted.
        self._arrived: tuple[int, int, int, int] | None = None

        config = settings().node
        image = f"{camera}/image" if camera else "image"
        resolved = node.resolve_topic_name(image)
        self._transport = TRANSPORTS[config.image_transport]
        self._images = ImageConnection(
            node,
            image,
            message_of(config.image_transport),
            depth=self._transport.depth,
            raw=not self._transport.is_video,
        )
        self._out = Outputs(node, table, camera, camera_info=topic_beside(resolved))
        self._out.label_info(settings().engine.confidence_threshold)
        self._engine = make_engine(on_refinement=self._out.refinement)
        self._watch = StreamWatch(
            node,
            camera,
            busy,
            self._images,
            self._out,
            self._engine,
            video=self._transport.is_video,
        )
        self._reader = ImageReader(lambda: self._settings().node.bits_per_sample, self._warn)
        self._pipeline = Pipeline(
            self._engine,
            self,
            read=self._reader,
            class_ids=table.id_lut,
            mask_at_network_size=config.output_size == "network",
        )
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
        """The stream at this moment, for diagnostics; rates are since the last call."""
        return self._watch.state(now_s, self._pipeline.ledger, self._settings())

    def log_new(self, findings: Sequence[Finding]) -> None:
        """Log what is wrong now and was not at the last call."""
        for finding in findings:
            if finding.kind not in self._logged:
                self._node.get_logger().warning(f"{self.topic}: {finding.text}")
        self._logged = {finding.kind for finding in findings}

    def start(self) -> None:
        """Subscribe to the images; after a pause the first one is a new key frame."""
        self._reader.restart()
        if self._pipeline.ledger.received:
            self.reset(ResetReason.ACTIVATED)
        self._active = True
        self._watch.start()
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
        """Remove the topics and close the engine; False if Sh takes longer than ``timeout_s``.

        Call it when stopped.
        """
        self._node.destroy_service(self._service)
        ended = self._engine.close(timeout_s)
        self.publish_statistics()
        self._out.destroy()
        return ended

    def publish_statistics(self) -> None:
        """Publish what became of all images and frames so far."""
        now_ns = self._now_ns()
        ledger = self._pipeline.ledger  # before the counters, which count a frame first
        self._out.statistics(now_ns, self._engine.counters, ledger)

    def reset(self, reason: ResetReason) -> None:
        """Make the next frame a new key frame, with a full mask."""
        self._pipeline.reset(reason)

    # The pipeline's sink.

    @property
    def wants_confidence(self) -> bool:
        return self._out.wants_confidence

    def mask(self, header: Header, mask: np.ndarray, image_size: tuple[int, int]) -> int:
        self._out.mask(header, mask, image_size)
        published_ns = self._now_ns()
        self._note_arrival()
        return published_ns

    def details(
        self,
        header: Header,
        image: np.ndarray,
        result: Segmentation,
        timing: NodeTiming,
    ) -> None:
        config = self._settings().node
        self._watch.published(result, timing, self._began_ns, config.max_processing_time_ms)
        self._out.report(header, result, timing)
        self._out.pictures(header, image, result, config)
        self._watch.seen(image, result)

    def _on_image(self, message: Any, info: dict[str, Any]) -> None:
        began_ns = time.perf_counter_ns()
        with self._idle, self._busy.work(began_ns):
            if self._active:  # else it is as if it had come after the end of the subscription
                superseded = self._images.missing(info)
                if self._transport.is_video:
                    message, info, superseded = self._newest(message, info, superseded)
                # When it arrived, on the system clock, whatever clock ROS and the camera go by; 0
                # or nothing where the middleware does not say.
                received_ns = info.get("received_timestamp") or 0
                wait_ms = since_ms(received_ns, time.time_ns()) if received_ns > 0 else 0.0
                self._answer(message, began_ns, wait_ms, superseded)
                self._watch.done(began_ns, superseded)

    def _newest(
        self, message: Any, info: dict[str, Any], missing: int
    ) -> tuple[Packet, dict[str, Any], int]:
        """The newest picture of a video, its info, and how many before it get no mask.

        Those that waited behind ``message`` are decoded, since later ones build on them.
        """
        packet, superseded = MESSAGES.packet(message, after_gap=missing > 0), missing
        # No more than can wait: a camera may send them as fast as they are decoded.
        for message, info in islice(iter(self._images.take, None), self._transport.depth):
            self._reader.skip(packet)
            missing = self._images.missing(info)
            packet = MESSAGES.packet(message, after_gap=missing > 0)
            superseded += 1 + missing
        return packet, info, superseded

    def _answer(self, message: Any, began_ns: int, wait_ms: float, superseded: int) -> None:
        self._began_ns = began_ns
        if isinstance(message, bytes):
            try:
                message = MESSAGES.read(self._transport.kind, message)
            except ImageError as error:
                self._pipeline.reject(superseded)
                self._complain(error.fault, "Image rejected", str(error))
                return
        size, arrived_ns = len(message.data), self._now_ns()
        self._arrived = stamp_ns(message.header.stamp), size, superseded, arrived_ns
        config = self._settings().engine
        if config != self._engine.config:  # what changed since the last frame counts from now on
            self._engine.reconfigure(config)
            self._out.label_info(config.confidence_threshold)
        published = self._pipeline.ledger.published
        try:
            self._pipeline.answer(message, began_ns, wait_ms, superseded)
        except ImageError as error:
            self._complain(error.fault, "Image rejected", str(error))
        except Exception as error:
            # Whatever fails, the node goes on with the next image; this one is accounted for.
            if not self._node.context.ok():
                return  # it was shut down meanwhile, so nothing could be published
            unanswered = self._pipeline.ledger.published == published
            what = "No mask for an image" if unanswered else "Failed after the mask was out"
            if isinstance(error, FrameError):
                self._complain(type(error), what, str(error))
            else:
                trace = "".join(traceback.format_exception(error))
                self._complain(type(error), what, f"{type(error).__name__}: {error}", trace)
        finally:
            self._note_arrival()

    def _note_arrival(self) -> None:
        """Let the diagnostics know of the image at hand; not before its mask, which would wait."""
        arrived, self._arrived = self._arrived, None
        if arrived is not None:
            self._watch.image(*arrived)

    def _warn(self, text: str) -> None:
        self._node.get_logger().warning(f"Images on {self.topic}: {text}")

    def _complain(self, kind: Hashable, what: str, why: str, trace: str = "") -> None:
        self._watch.refused(why)
        self._log_error(kind, f"{what}: {trace or why}", self._settings().node.log_throttle_s)

    def _force_key_frame(self, _: Trigger.Request, answer: Trigger.Response) -> Trigger.Response:
        if not self._active:
            answer.message = "the node is not active, so no frame is coming; activate it first"
            return answer
        self._engine.force_key_frame()
        answer.success, answer.message = True, "the next frame becomes the key frame"
        return answer

    def _now_ns(self) -> int:
        return self._node.get_clock().now().nanoseconds


class Cameras:
    """All camera streams of a node; made, started, stopped and closed together.

    Each has an engine of its own, so that nothing of one scene gets into another. They share the
    weights, the slow track, and the one thread of the executor, in which the frame that has waited
    longest is next: two frames at a time would share the same cores, and both would be late. So
    activations are in memory once, too.
    """

    def __init__(
        self,
        node: Node,
        segmenter: Segmenter,
        threshold: float,
        table: ClassTable,
        settings: Callable[[], Settings],
    ) -> None:
        config = settings().engine
        self._slow_track = SharedSlowTrack(config)
        self._cameras: list[CameraStream] = []
        make_engine = partial(
            Engine, segmenter, config, threshold=threshold, slow_track=self._slow_track.camera_queue
        )
        busy = BusyTime()
        try:
            for name in settings().node.cameras or [""]:
                self._cameras.append(CameraStream(node, make_engine, table, settings, name, busy))
        except BaseException:
            self.close(0.0)
            raise

    @property
    def topics(self) -> list[str]:
        """Full names of the image topics."""
        return [camera.topic for camera in self._cameras]

    def start(self) -> None:
        """Subscribe to all; if one cannot be subscribed to, to none."""
        try:
            for camera in self._cameras:
                camera.start()
        except BaseException:
            self.stop(0.0)
            raise

    def stop(self, timeout_s: float) -> bool:
        """Unsubscribe; False if the frame being worked on takes longer than ``timeout_s``."""
        return all([camera.stop(timeout_s) for camera in self._cameras])  # noqa: C419 - stop each

    def close(self, timeout_s: float) -> bool:
        """Stop for good; False if the frame or Sh takes longer than ``timeout_s``."""
        ended = [self.stop(timeout_s), self._slow_track.close(timeout_s)]
        ended += [camera.destroy(timeout_s) for camera in self._cameras]
        return all(ended)

    def reset(self, reason: ResetReason) -> None:
        """Make the next frame of each camera a new key frame."""
        for camera in self._cameras:
            camera.reset(reason)

    def publish_statistics(self) -> None:
        """Publish what became of the images of each camera so far."""
        for camera in self._cameras:
            camera.publish_statistics()

    def states(self, now_s: float) -> list[StreamState]:
        """Each stream that answers images; see :meth:`CameraStream.state`."""
        active = [camera for camera in self._cameras if camera.active]
        states = [camera.state(now_s) for camera in active]
        load = sum(state.pace.load for state in states)  # they take turns in one thread
        for camera, state in zip(active, states, strict=True):
            camera.log_new([*state.image_findings, *examine_pace(state.pace, load)])
        return [dataclasses.replace(state, load=load) for state in states]
