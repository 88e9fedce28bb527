"""The cameras of the node, and what they share: one network and one slow track."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from rclpy.node import Node

from lowlat_seg_ros.config import EngineConfig
from lowlat_seg_ros.engine.counters import OnRefinement
from lowlat_seg_ros.engine.engine import Engine
from lowlat_seg_ros.engine.slow_track import SharedSlowTrack
from lowlat_seg_ros.frames import ResetReason
from lowlat_seg_ros.ros.camera import CameraStream
from lowlat_seg_ros.ros.diagnostics import StreamState
from lowlat_seg_ros.ros.model import Model
from lowlat_seg_ros.ros.monitor import BusyTime
from lowlat_seg_ros.ros.params import Settings


class Rig:
    """All camera streams; made, started, stopped and closed together.

    Each has an engine of its own, so that nothing of a scene is mixed. The weights are there once.
    Frames of all cameras are processed by the one thread of the executor, the longest waiting one
    first: two at a time would share the same cores, and both would be late. So activations are
    there once, too.
    """

    def __init__(self, node: Node, model: Model, settings: Callable[[], Settings]) -> None:
        self.model = model
        self._slow_track = SharedSlowTrack(settings().engine)
        self._cameras: list[CameraStream] = []
        engine, busy = partial(self._engine, settings().engine), BusyTime()
        try:
            for name in settings().node.cameras or [""]:
                stream = CameraStream(node, engine, model.table, settings, name, busy=busy)
                self._cameras.append(stream)
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
        """Make the next frame of each camera a fresh key frame."""
        for camera in self._cameras:
            camera.reset(reason)

    def states(self, now_s: float) -> list[StreamState]:
        """How each stream fares, while images are answered; see :meth:`CameraStream.state`."""
        return [camera.state(now_s) for camera in self._cameras if camera.active]

    def _engine(self, config: EngineConfig, on_refinement: OnRefinement) -> Engine:
        return Engine(
            self.model.segmenter,
            config,
            threshold=self.model.header.threshold,
            slow_track=self._slow_track.camera_queue,
            on_refinement=on_refinement,
        )
