"""The node ``segmentation_node``: cameras in, masks and what is known about them out."""

from __future__ import annotations

import gc
import os
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NoReturn

import rclpy
import torch
from diagnostic_msgs.msg import DiagnosticArray
from rcl_interfaces.msg import SetParametersResult
from rclpy.clock import Clock, ClockType, JumpThreshold, TimeJump
from rclpy.context import Context
from rclpy.duration import Duration
from rclpy.exceptions import NotInitializedException, ParameterException
from rclpy.executors import ExternalShutdownException
from rclpy.lifecycle import TransitionCallbackReturn
from rclpy.logging import get_logger
from rclpy.parameter import Parameter
from rclpy.qos_overriding_options import InvalidQosOverridesError

from lowlat_seg_ros import __version__
from lowlat_seg_ros.config import ConfigError, EngineConfig, name_of
from lowlat_seg_ros.engine.cpu_threads import realtime_allowed, run_in_temporary_thread
from lowlat_seg_ros.engine.preprocess import plan
from lowlat_seg_ros.engine.runner import format_name, release_unused
from lowlat_seg_ros.engine.schedule import effective_threshold
from lowlat_seg_ros.engine.timing import FrameCost, measure
from lowlat_seg_ros.frames import FrameError, ResetReason
from lowlat_seg_ros.labels import ClassTable
from lowlat_seg_ros.network import checkpoint, inference
from lowlat_seg_ros.network.checkpoint import DEFAULT_CHECKPOINT, CheckpointError, Header
from lowlat_seg_ros.network.inference import resolve_device
from lowlat_seg_ros.network.layers import why_no_numba
from lowlat_seg_ros.network.programs import why_no_openvino
from lowlat_seg_ros.network.segmenter import Segmenter
from lowlat_seg_ros.ros import start
from lowlat_seg_ros.ros.camera import Cameras
from lowlat_seg_ros.ros.connections import output_qos, overridable_qos
from lowlat_seg_ros.ros.diagnostics import camera_statuses, diagnostics, lifecycle_status
from lowlat_seg_ros.ros.params import Settings, SettingsParameters, checked, moved, wrong_type
from lowlat_seg_ros.ros.runtime import ManagedNode, OwnThreadExecutor
from lowlat_seg_ros.ros.start import keep_freed_memory

NODE_NAME = "segmentation_node"

#: How long a frame, and then Sh, may take to end when the process is stopped.
STOP_TIMEOUT_S = 2.0

#: The same when the node goes on: nobody waits for the process, and a slow frame is no fault.
TRANSITION_TIMEOUT_S = 30.0

#: What a user can have got wrong; the message says what, so no traceback is needed.
START_ERRORS = (
    *(CheckpointError, ConfigError, FrameError),
    *(ParameterException, InvalidQosOverridesError),
)


@dataclass(frozen=True, eq=False)
class Model:
    """Weights in memory, where they came from and what they cost here.

    ``load_s``, ``measure_s``: how long loading them and measuring the cost took.
    """

    segmenter: Segmenter
    header: Header
    table: ClassTable
    device: torch.device
    path: Path
    sha256: str
    cost: FrameCost
    load_s: float
    measure_s: float


def load_model(settings: Settings) -> Model:
    """Check the hash, load, and run every stage at the expected size, which takes seconds.

    Raises ``CheckpointError`` for the file or its hash, ``ConfigError`` for the device and for
    classes that the file does not have.
    """
    began, node = time.monotonic(), settings.node
    path = Path(os.path.expanduser(node.checkpoint) or DEFAULT_CHECKPOINT)
    device = resolve_device(node.device)
    sha256 = checkpoint.verify(path, node.checkpoint_sha256)
    segmenter, header = inference.load(
        path, device, settings.engine.precision, settings.engine.runtime
    )
    table = ClassTable(path.stem, header.classes, header.colours)
    table = checked(lambda: table.remapped(node.class_remap))
    loaded = time.monotonic()
    size = (node.expected_height, node.expected_width)
    cost = measure(segmenter, settings.engine, size, node.expected_rate_hz)
    took_s = (loaded - began, time.monotonic() - loaded)
    return Model(segmenter, header, table, device, path, sha256, cost, *took_s)


class SegmentationNode(ManagedNode):
    """Loads the network when it is configured, and segments images while it is active.

    Several may run in one process and with one :class:`OwnThreadExecutor`.
    """

    expected = START_ERRORS

    def __init__(
        self,
        *,
        node_name: str = NODE_NAME,
        namespace: str | None = None,
        parameter_overrides: Sequence[Parameter] = (),
        context: Context | None = None,
    ) -> None:
        """Declare the parameters; raises rclpy's exceptions and ``ConfigError`` for wrong ones.

        The arguments are those of :class:`rclpy.node.Node`; what the process was started with
        (``--ros-args``) holds as well.
        """
        super().__init__(
            node_name,
            namespace=namespace,
            parameter_overrides=list(parameter_overrides),
            context=context,
        )
        self._settings = SettingsParameters(self)
        self._jumps = self.get_clock().create_jump_callback(
            JumpThreshold(
                min_forward=None, min_backward=Duration(nanoseconds=-1), on_clock_change=False
            ),
            post_callback=self._on_time_jump,
        )
        self._diagnostics = self.create_publisher(
            DiagnosticArray, "/diagnostics", output_qos(), qos_overriding_options=overridable_qos()
        )
        self._model: Model | None = None  # these two from configure to cleanup
        self._cameras: Cameras | None = None
        self._start_timer()

    @property
    def autostart(self) -> bool:
        return self._settings.current.node.autostart

    def set_parameters_atomically(self, parameter_list: list[Parameter]) -> SetParametersResult:
        """As rclpy does it, which services call; an old name is answered with the new one, and a
        value of another type with how to write it."""
        if where := moved(parameter.name for parameter in parameter_list):
            return SetParametersResult(successful=False, reason=where)
        result = super().set_parameters_atomically(parameter_list)
        if result.reason.startswith("Wrong parameter type"):
            wrong = (wrong_type(parameter.name, parameter.value) for parameter in parameter_list)
            result.reason = next(filter(None, wrong), result.reason)
        return result

    def configure(self) -> None:
        """Load, warm up and measure; raises ``CheckpointError`` and ``ConfigError``."""
        settings = self._settings.current
        # In a thread that ends, since OpenMP keeps a team of threads for each that uses PyTorch.
        model = run_in_temporary_thread(partial(load_model, settings), interruptible=True)
        self._cameras = Cameras(
            self, model.segmenter, model.header.threshold, model.table,
            lambda: self._settings.current,
        )  # fmt: skip
        self._model = model
        self._settings.fixed = True
        self._start_timer()  # its period may be another
        self._log_model(model, settings.engine, len(self._cameras.topics))

    def _log_model(self, model: Model, config: EngineConfig, cameras: int) -> None:
        """What was loaded, what a frame costs, and what that means for the settings."""
        threshold, cost = effective_threshold(model.header.threshold, config), model.cost
        self.get_logger().info(
            f"lowlat_seg_ros {__version__}: {name_of(model.header.network)} with "
            f"{len(model.table)} classes on {model.device}, in "
            f"{format_name(model.segmenter, config.runtime)}, from {model.path} (SHA-256 "
            f"{model.sha256}), deviation threshold {threshold:.3f}"
        )
        height, width = plan(
            (cost.height, cost.width), config.inference_height,
            trained_height=model.segmenter.trained_height,
        ).scaled  # fmt: skip
        self.get_logger().info(
            f"At {cost.width}x{cost.height}, segmented at {width}x{height}: "
            f"{cost.fast_track_ms:.0f} ms a frame, Sh {cost.slow_track_ms:.0f} ms in the "
            f"background, {cost.full_frame_ms:.0f} ms for a first frame; at most "
            f"{cost.rate_hz(cameras):.1f} Hz with {cameras} camera(s)"
        )
        if 0 < config.max_latency_ms < cost.fast_track_ms:
            self.get_logger().warning(
                f"A frame takes {cost.fast_track_ms:.0f} ms, which is over max_latency_ms "
                f"{config.max_latency_ms:g}, so load will be shed; set a smaller "
                f"inference_height than {height}, or a larger max_latency_ms"
            )
        if config.foreground_priority == "realtime":
            if realtime_allowed():
                self.get_logger().info("Frames have real-time priority (SCHED_RR) until their mask")
            else:
                self.get_logger().warning(
                    "advanced.foreground_priority is realtime, which this process may not use, so "
                    "frames have normal priority; run it with CAP_SYS_NICE or an rtprio limit of 1 "
                    "(docs/latency.md), or set the parameter to normal"
                )
        if model.device.type == "cpu":
            in_8_bits = model.header.ranges and config.precision in ("auto", "int8")
            openvino_runs = in_8_bits and config.runtime == "auto"
            lacks = (why_no_numba(), why_no_openvino() if openvino_runs else "")
            for sentence in filter(None, lacks):
                self.get_logger().warning(sentence)

    def activate(self) -> None:
        assert self._cameras is not None
        self._cameras.start()
        for sentence in self._settings.unknown():
            self.get_logger().warning(f"Parameters: {sentence}")
        self.get_logger().info(f"Waiting for images on {', '.join(self._cameras.topics)}")

    def deactivate(self) -> None:
        """Unsubscribe; raises ``TimeoutError`` if the frame being worked on does not end."""
        assert self._cameras is not None
        if not self._cameras.stop(TRANSITION_TIMEOUT_S):
            raise TimeoutError(f"the frame does not end within {TRANSITION_TIMEOUT_S:g} s")
        self.get_logger().info("Images are no longer listened to")

    def cleanup(self) -> None:
        """Stop the slow track and forget the network; raises ``TimeoutError`` if Sh goes on."""
        if not self.release(TRANSITION_TIMEOUT_S):
            raise TimeoutError(f"Sh does not end within {TRANSITION_TIMEOUT_S:g} s")
        self.get_logger().info("The network is forgotten")

    def log_start(self, began: float, imported: float) -> None:
        """How long the process took to get here; both: seconds of ``time.monotonic``."""
        assert self._model is not None
        imports, load, measuring = imported - began, self._model.load_s, self._model.measure_s
        total = time.monotonic() - began
        self.get_logger().info(
            f"Started in {total:.1f} s: imports {imports:.1f}, loading the weights {load:.1f}, "
            f"measuring what a frame costs {measuring:.1f}, all else "
            f"{total - imports - load - measuring:.1f}"
        )

    def release(self, timeout_s: float = TRANSITION_TIMEOUT_S) -> bool:
        """Forget all that :meth:`configure` made; False if the frame or Sh does not end in time."""
        cameras, self._cameras, self._model = self._cameras, None, None
        self._settings.fixed = False
        if cameras is None:
            return True
        ended = cameras.close(timeout_s)
        del cameras  # and with it the network, whose memory is then given back
        release_unused()
        return ended

    def _start_timer(self) -> None:
        if hasattr(self, "_timer"):
            self.destroy_timer(self._timer)
        # A steady clock: diagnostics go on while simulated time stands still.
        self._timer = self.create_timer(
            self._settings.current.node.diagnostics_period_s,
            self._publish_periodically,
            clock=Clock(clock_type=ClockType.STEADY_TIME),
        )

    def _on_time_jump(self, jump: TimeJump) -> None:
        if self._cameras is not None:
            self._cameras.reset(ResetReason.TIME_JUMPED_BACK)
        self.get_logger().warning(
            f"ROS time jumped by {jump.delta.nanoseconds / 1e9:.3f} s; the next frame is a new key "
            "frame"
        )

    def _publish_periodically(self) -> None:
        now_ns, settings = self.get_clock().now().nanoseconds, self._settings.current
        model, cameras = self._model, self._cameras
        if model is None or cameras is None:
            device, statuses = settings.node.device, [lifecycle_status(self.state, self.problem)]
        else:
            device, count = str(model.device), len(cameras.topics)
            statuses = [lifecycle_status(self.state, self.problem, model.cost, count)]
            for state in cameras.states(time.monotonic()):
                statuses += camera_statuses(state, settings)
            cameras.publish_statistics()
        name = self.get_fully_qualified_name().lstrip("/")
        self._diagnostics.publish(diagnostics(name, device, now_ns, statuses))


def main(args: list[str] | None = None, began: float | None = None) -> int:
    """Run the node until SIGINT or SIGTERM; 0 then, 1 if it cannot start.

    ``began``: when the process did, in seconds of ``time.monotonic``; now if it is None. Garbage is
    collected once the node has started.
    """
    imported = time.monotonic()
    keep_freed_memory()
    files = start.params_files(sys.argv[1:] if args is None else args)
    try:
        # rclpy calls it after its own, which alone would let loading and warming up run to their
        # end.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            for file in files:
                start.nodes_in("--params-file", file)
            rclpy.init(args=args)
        except (ConfigError, RuntimeError) as error:  # rclpy's are
            get_logger(NODE_NAME).fatal(f"Cannot start: {start.cannot_initialise(error)}")
            return 1
        return _run(files, imported if began is None else began, imported)
    except KeyboardInterrupt:
        return 0


def _run(files: list[str], began: float, imported: float) -> int:
    try:
        node = SegmentationNode()
        foreign = start.foreign_files(files, node.get_fully_qualified_name())
        if foreign and len(foreign) == len(files):
            raise ConfigError(foreign[0])
        for sentence in foreign:
            node.get_logger().warning(f"Parameters: {sentence}")
        if node.autostart:
            if not _start(node):
                return 1 if rclpy.ok() else 0  # the step has logged why
            node.log_start(began, imported)
        gc.enable()
        executor = OwnThreadExecutor()
        executor.add_node(node)
    except START_ERRORS as error:
        get_logger(NODE_NAME).fatal(f"Cannot start: {error}")
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


def _start(node: SegmentationNode) -> bool:
    steps = (node.trigger_configure, node.trigger_activate)
    try:
        return all(step() == TransitionCallbackReturn.SUCCESS for step in steps)
    except KeyboardInterrupt:
        _ignore_signals()
        node.destroy_node()
        _leave()  # the thread that loads and warms up runs on


def _spin(executor: OwnThreadExecutor) -> None:
    # One signal raises both, that of rclpy and that of Python, the second one a moment later.
    with suppress(KeyboardInterrupt, ExternalShutdownException):
        try:
            executor.spin()
        finally:
            _ignore_signals()


def _end(node: SegmentationNode, executor: OwnThreadExecutor) -> None:
    """Release everything; a thread that does not end in time is left behind."""
    ended = [node.release(STOP_TIMEOUT_S), executor.join(STOP_TIMEOUT_S)]
    if not all(ended):
        node.get_logger().warning("A frame or Sh still runs; leaving without waiting for it")
        _leave()
    node.destroy_node()
    rclpy.try_shutdown()


def _ignore_signals() -> None:
    """Impatient users and launch send several."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def _leave() -> NoReturn:
    """End the process at once, with 0.

    Python's own exit would pull the interpreter away under a thread that still runs and crash.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main())
