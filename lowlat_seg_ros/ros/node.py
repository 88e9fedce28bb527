"""The node ``segmentation_node``: one camera in, masks and what is known about them out."""

from __future__ import annotations

import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import rclpy
import torch
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.clock import Clock, ClockType, JumpThreshold, TimeJump
from rclpy.duration import Duration
from rclpy.exceptions import ParameterException
from rclpy.executors import ExternalShutdownException
from rclpy.logging import get_logger
from rclpy.node import Node
from rclpy.qos_overriding_options import InvalidQosOverridesError

from lowlat_seg_ros import __version__
from lowlat_seg_ros.config import ConfigError
from lowlat_seg_ros.data.labels import ClassTable
from lowlat_seg_ros.engine.engine import Engine
from lowlat_seg_ros.engine.schedule import effective_threshold
from lowlat_seg_ros.frames import Frame, ResetReason
from lowlat_seg_ros.network.checkpoint import DEFAULT_CHECKPOINT, CheckpointError, Header, load
from lowlat_seg_ros.network.device import resolve_device
from lowlat_seg_ros.network.segmenter import Segmenter
from lowlat_seg_ros.ros import qos
from lowlat_seg_ros.ros.camera import CameraStream
from lowlat_seg_ros.ros.diagnostics import RateMeter, StreamState, diagnostics
from lowlat_seg_ros.ros.executor import OwnThreadExecutor
from lowlat_seg_ros.ros.params import Settings, SettingsParameters, unknown_parameters

#: How long a frame, and then Sh, may take to end when the node is stopped.
STOP_TIMEOUT_S = 2.0

#: What a user can have got wrong; the message says what, so no traceback is needed.
START_ERRORS = (CheckpointError, ConfigError, ParameterException, InvalidQosOverridesError)


@dataclass(frozen=True)
class _Loaded:
    """What there is between configure and cleanup."""

    device: torch.device
    engine: Engine
    camera: CameraStream


class SegmentationNode(Node):
    """Loads the network once and segments the images of one camera.

    The methods are those of a lifecycle: :meth:`configure` loads and warms up, :meth:`activate`
    subscribes, :meth:`deactivate` and :meth:`cleanup` undo them.
    """

    def __init__(self) -> None:
        """Declare the parameters; raises rclpy's exceptions and ``ConfigError`` for wrong ones."""
        super().__init__("segmentation_node")
        self.camera_group = MutuallyExclusiveCallbackGroup()
        self._settings = SettingsParameters(self)
        self._jumps = self.get_clock().create_jump_callback(
            JumpThreshold(
                min_forward=None, min_backward=Duration(nanoseconds=-1), on_clock_change=False
            ),
            post_callback=self._on_time_jump,
        )
        self._diagnostics = self.create_publisher(
            DiagnosticArray,
            "/diagnostics",
            qos.output(),
            qos_overriding_options=qos.overridable(),
        )
        self._loaded: _Loaded | None = None

    def configure(self) -> None:
        """Load and warm up; raises ``CheckpointError`` and ``ConfigError``."""
        settings = self._settings.current
        path = Path(settings.node.checkpoint or DEFAULT_CHECKPOINT)
        device = resolve_device(settings.node.device)
        segmenter, header = load(path, device)
        warm_up_s = _warm_up(segmenter, header, settings)
        engine = Engine(segmenter, settings.engine, threshold=header.threshold)
        table = ClassTable(path.stem, header.classes, header.colours)
        camera = CameraStream(
            self, engine, table, self.camera_group, lambda: self._settings.current
        )
        self._loaded = _Loaded(device, engine, camera)
        self.get_logger().info(
            f"lowlat_seg_ros {__version__}: {header.network.backbone} with {len(table)} classes "
            f"on {device}, from {path}, deviation threshold "
            f"{effective_threshold(header.threshold, settings.engine):.3f}, warmed up at "
            f"{settings.node.expected_width}x{settings.node.expected_height} in {warm_up_s:.1f} s"
        )

    def activate(self) -> None:
        """Subscribe to the camera, and report to ``/diagnostics`` from now on."""
        assert self._loaded is not None
        camera = self._loaded.camera
        camera.start()
        self._rates = RateMeter(time.monotonic())
        # A steady clock: diagnostics go on while simulated time stands still.
        self._timer = self.create_timer(
            self._settings.current.node.diagnostics_period_s,
            self._publish_diagnostics,
            clock=Clock(clock_type=ClockType.STEADY_TIME),
        )
        for sentence in unknown_parameters(self):
            self.get_logger().warning(f"Parameters: {sentence}")
        self.get_logger().info(f"Waiting for images on {camera.topic}")

    def deactivate(self) -> bool:
        """Stop listening; False if the frame being worked on did not end in time."""
        assert self._loaded is not None
        self.destroy_timer(self._timer)
        return self._loaded.camera.stop(STOP_TIMEOUT_S)

    def cleanup(self) -> bool:
        """Stop the slow track and forget the network; False if Sh did not end in time."""
        assert self._loaded is not None
        loaded, self._loaded = self._loaded, None
        loaded.camera.destroy()
        return loaded.engine.close(STOP_TIMEOUT_S)

    def _on_time_jump(self, jump: TimeJump) -> None:
        if self._loaded is not None:
            self._loaded.camera.reset(ResetReason.TIME_JUMPED_BACK)
        self.get_logger().warning(
            f"ROS time jumped by {jump.delta.nanoseconds / 1e9:.3f} s; the next frame starts afresh"
        )

    def _publish_diagnostics(self) -> None:
        assert self._loaded is not None
        camera, engine = self._loaded.camera, self._loaded.engine
        stream = StreamState(camera.topic, camera.publishers, camera.ledger, camera.times())
        message = diagnostics(
            self.get_fully_qualified_name().lstrip("/"),
            str(self._loaded.device),
            self.get_clock().now().nanoseconds,
            stream,
            self._rates.update(stream.ledger, time.monotonic()),
            engine.counters,
            engine.slow_track(),
            self._settings.current,
        )
        self._diagnostics.publish(message)


def _warm_up(segmenter: Segmenter, header: Header, settings: Settings) -> float:
    """Run every stage once at the expected size, so that the first frame does not pay; seconds.

    An engine of its own is used, so that its frames appear in no counter.
    """
    began = time.monotonic()
    image = np.zeros((settings.node.expected_height, settings.node.expected_width, 3), np.uint8)
    with Engine(segmenter, settings.engine, threshold=header.threshold) as engine:
        for stamp_ns in range(3):  # full, then propagated: allocators settle on the second
            engine.process(Frame(image, stamp_ns))
    return time.monotonic() - began


def main(args: list[str] | None = None) -> int:
    """Run the node until SIGINT or SIGTERM; 0 then, 1 if it cannot start."""
    # rclpy calls it after its own, which alone would let loading and warming up run to their end.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    rclpy.init(args=args)
    try:
        node = SegmentationNode()
        node.configure()
        node.activate()
    except KeyboardInterrupt:
        return 0
    except START_ERRORS as error:
        get_logger("segmentation_node").fatal(f"Cannot start: {error}")
        return 1
    except Exception:
        if rclpy.ok():
            raise
        return 0  # asked to end while starting: the middleware then makes no more topics
    executor = OwnThreadExecutor(node.camera_group)
    executor.add_node(node)
    try:
        executor.spin()
    except (KeyboardInterrupt, ExternalShutdownException):
        pass  # how rclpy says that it was asked to end
    finally:
        _end(node, executor)
    return 0


def _end(node: SegmentationNode, executor: OwnThreadExecutor) -> None:
    """Let go of everything; where a thread does not let itself be stopped, leave it behind."""
    for number in (signal.SIGINT, signal.SIGTERM):  # impatient users and launch send several
        signal.signal(number, signal.SIG_IGN)
    ended = [node.deactivate(), node.cleanup(), executor.join(STOP_TIMEOUT_S)]
    if not all(ended):
        # Python's own exit would pull the interpreter away under that thread and crash.
        node.get_logger().warning("A frame or Sh still runs; leaving without waiting for it")
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)
    node.destroy_node()
    rclpy.try_shutdown()


if __name__ == "__main__":
    sys.exit(main())
