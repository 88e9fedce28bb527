"""The node ``segmentation_node``: cameras in, masks and what is known about them out."""

from __future__ import annotations

import os
import signal
import sys
import time

import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.clock import Clock, ClockType, JumpThreshold, TimeJump
from rclpy.duration import Duration
from rclpy.exceptions import NotInitializedException, ParameterException
from rclpy.executors import ExternalShutdownException
from rclpy.lifecycle import TransitionCallbackReturn
from rclpy.logging import get_logger
from rclpy.qos_overriding_options import InvalidQosOverridesError

from lowlat_seg_ros import __version__
from lowlat_seg_ros.config import ConfigError, name_of
from lowlat_seg_ros.engine.runner import release_unused
from lowlat_seg_ros.engine.schedule import effective_threshold
from lowlat_seg_ros.frames import FrameError, ResetReason
from lowlat_seg_ros.network.checkpoint import CheckpointError
from lowlat_seg_ros.ros import qos
from lowlat_seg_ros.ros.diagnostics import camera_statuses, diagnostics, lifecycle_status
from lowlat_seg_ros.ros.executor import OwnThreadExecutor
from lowlat_seg_ros.ros.lifecycle import ManagedNode
from lowlat_seg_ros.ros.model import load_model
from lowlat_seg_ros.ros.params import SettingsParameters, unknown_parameters
from lowlat_seg_ros.ros.rig import Rig

#: How long a frame, and then Sh, may take to end when the process is stopped.
STOP_TIMEOUT_S = 2.0

#: The same when the node goes on: nobody waits for the process, and a slow frame is no fault.
TRANSITION_TIMEOUT_S = 30.0

#: What a user can have got wrong; the message says what, so no traceback is needed.
START_ERRORS = (
    *(CheckpointError, ConfigError, FrameError),
    *(ParameterException, InvalidQosOverridesError),
)


class SegmentationNode(ManagedNode):
    """Loads the network when it is configured, and segments images while it is active."""

    expected = START_ERRORS

    def __init__(self) -> None:
        """Declare the parameters; raises rclpy's exceptions and ``ConfigError`` for wrong ones."""
        super().__init__("segmentation_node")
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
        self._rig: Rig | None = None  # from configure to cleanup
        self._start_timer()

    @property
    def autostart(self) -> bool:
        """Whether the process configures and activates the node by itself."""
        return self._settings.current.node.autostart

    def configure(self) -> None:
        """Load, warm up and measure; raises ``CheckpointError`` and ``ConfigError``."""
        settings = self._settings.current
        model = load_model(settings)
        self._rig = Rig(self, model, lambda: self._settings.current)
        self._settings.fixed = True
        self._start_timer()  # its period may be another
        threshold = effective_threshold(model.header.threshold, settings.engine)
        budget, cameras = model.budget, len(self._rig.topics)
        self.get_logger().info(
            f"lowlat_seg_ros {__version__}: {name_of(model.header.network)} with "
            f"{len(model.table)} classes on {model.device}, from {model.path} (SHA-256 "
            f"{model.sha256}), deviation threshold {threshold:.3f}"
        )
        self.get_logger().info(
            f"At {budget.width}x{budget.height}: {budget.fast_track_ms:.0f} ms a frame, Sh "
            f"{budget.slow_track_ms:.0f} ms in the background, {budget.full_frame_ms:.0f} ms for "
            f"a first frame; at most {budget.rate_hz(cameras):.1f} Hz with {cameras} camera(s)"
        )

    def activate(self) -> None:
        """Subscribe to the cameras."""
        assert self._rig is not None
        self._rig.start()
        for sentence in unknown_parameters(self):
            self.get_logger().warning(f"Parameters: {sentence}")
        self.get_logger().info(f"Waiting for images on {', '.join(self._rig.topics)}")

    def deactivate(self) -> None:
        """Stop listening; raises ``TimeoutError`` if the frame being worked on does not end."""
        assert self._rig is not None
        if not self._rig.stop(TRANSITION_TIMEOUT_S):
            raise TimeoutError(f"the frame does not end within {TRANSITION_TIMEOUT_S:g} s")
        self.get_logger().info("Images are no longer listened to")

    def cleanup(self) -> None:
        """Stop the slow track and forget the network; raises ``TimeoutError`` if Sh goes on."""
        if not self.release(TRANSITION_TIMEOUT_S):
            raise TimeoutError(f"Sh does not end within {TRANSITION_TIMEOUT_S:g} s")
        self.get_logger().info("The network is forgotten")

    def release(self, timeout_s: float = TRANSITION_TIMEOUT_S) -> bool:
        """Forget all that :meth:`configure` made; False if the frame or Sh does not end in time."""
        rig, self._rig = self._rig, None
        self._settings.fixed = False
        if rig is None:
            return True
        ended = rig.close(timeout_s)
        del rig
        release_unused()
        return ended

    def _start_timer(self) -> None:
        if hasattr(self, "_timer"):
            self.destroy_timer(self._timer)
        # A steady clock: diagnostics go on while simulated time stands still.
        self._timer = self.create_timer(
            self._settings.current.node.diagnostics_period_s,
            self._publish_diagnostics,
            clock=Clock(clock_type=ClockType.STEADY_TIME),
        )

    def _on_time_jump(self, jump: TimeJump) -> None:
        if self._rig is not None:
            self._rig.reset(ResetReason.TIME_JUMPED_BACK)
        self.get_logger().warning(
            f"ROS time jumped by {jump.delta.nanoseconds / 1e9:.3f} s; the next frame starts afresh"
        )

    def _publish_diagnostics(self) -> None:
        now_ns, settings = self.get_clock().now().nanoseconds, self._settings.current
        rig, device = self._rig, settings.node.device
        if rig is None:
            statuses = [lifecycle_status(self.state, self.problem)]
        else:
            device, budget = str(rig.model.device), rig.model.budget
            statuses = [lifecycle_status(self.state, self.problem, budget, len(rig.topics))]
            for state in rig.states(time.monotonic()):
                statuses += camera_statuses(state, settings)
        name = self.get_fully_qualified_name().lstrip("/")
        self._diagnostics.publish(diagnostics(name, device, now_ns, statuses))


def main(args: list[str] | None = None) -> int:
    """Run the node until SIGINT or SIGTERM; 0 then, 1 if it cannot start."""
    # rclpy calls it after its own, which alone would let loading and warming up run to their end.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    rclpy.init(args=args)
    try:
        return _run()
    except KeyboardInterrupt:
        return 0


def _run() -> int:
    try:
        node = SegmentationNode()
        if node.autostart and not _autostart(node):
            return 1 if rclpy.ok() else 0
        executor = OwnThreadExecutor()
        executor.add_node(node)
    except START_ERRORS as error:
        get_logger("segmentation_node").fatal(f"Cannot start: {error}")
        return 1
    except (RuntimeError, NotInitializedException):  # as rclpy's are once it is shut down
        if rclpy.ok():
            raise
        return 0  # asked to end while starting: the middleware then makes no more topics
    try:
        _spin(executor)
    finally:
        _end(node, executor)
    return 0


def _autostart(node: SegmentationNode) -> bool:
    """Configure and activate; False if the node, which has said why, cannot."""
    steps = (node.trigger_configure, node.trigger_activate)
    return all(step() == TransitionCallbackReturn.SUCCESS for step in steps)


def _spin(executor: OwnThreadExecutor) -> None:
    """Until a signal comes; those that follow it are ignored."""
    try:
        try:
            executor.spin()
        finally:
            for number in (
                signal.SIGINT,
                signal.SIGTERM,
            ):  # impatient users and launch send several
                signal.signal(number, signal.SIG_IGN)
    # Of one signal both come, of rclpy and of Python, and the second one a moment later.
    except (KeyboardInterrupt, ExternalShutdownException):
        pass


def _end(node: SegmentationNode, executor: OwnThreadExecutor) -> None:
    """Let go of everything; where a thread does not let itself be stopped, leave it behind."""
    ended = [node.release(STOP_TIMEOUT_S), executor.join(STOP_TIMEOUT_S)]
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
