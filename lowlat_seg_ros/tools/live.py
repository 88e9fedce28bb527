"""The live node in its own process, with a camera and a recorder for it in this one."""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rclpy
import yaml
from rcl_interfaces.srv import GetParameters
from rclpy.context import Context
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import QoSProfile, QoSReliabilityPolicy, qos_profile_sensor_data
from rclpy.signals import SignalHandlerOptions
from sensor_msgs.msg import Image
from std_msgs.msg import Header

from lowlat_seg_ros.frames import Counters, Ledger
from lowlat_seg_ros.images import to_ids
from lowlat_seg_ros.messages import record_of, segmentation, stamp_ns
from lowlat_seg_ros.msg import FrameReport, Statistics
from lowlat_seg_ros.ros.outputs import MESSAGES
from lowlat_seg_ros.ros.start import RosError
from lowlat_seg_ros.tools.account import Account, Answer

NODE = "segmentation_node"

#: The node loads its weights and warms up first.
START_TIMEOUT_S = 120.0

#: For the newest image, which nothing can supersede: the node finishes its frame, then this one.
LAST_TIMEOUT_S = 30.0

#: For the node to end by itself.
STOP_TIMEOUT_S = 10.0

#: How many lines of the log are shown when the node ends by itself.
LOG_LINES = 15


class NodeProcess(AbstractContextManager["NodeProcess"]):
    """``segmentation_node`` with ``parameters``, its output in ``log``; a context manager.

    It does not see the terminal's Ctrl-C: whoever made it stops it. ``program``: what Python runs.
    """

    def __init__(
        self,
        parameters: dict[str, Any],
        log: Path,
        program: Sequence[str] = ("-m", "lowlat_seg_ros.ros"),
    ) -> None:
        self._log = log
        self._folder = tempfile.TemporaryDirectory()
        file = Path(self._folder.name) / "parameters.yaml"
        # A file rather than -p, which would take a name such as 1e5 for a number.
        file.write_text(yaml.safe_dump({"/**": {"ros__parameters": parameters}}))
        arguments = [*program, "--ros-args", "--params-file", str(file)]
        with log.open("w") as output:
            self._process = subprocess.Popen(
                [sys.executable, *arguments],
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def check(self) -> None:
        """Raise :class:`RosError` with the last lines of the log if the process has ended."""
        if self._process.poll() is not None:
            lines = self._log.read_text(errors="replace").splitlines()[-LOG_LINES:]
            raise RosError(
                f"the node ended with status {self._process.returncode}; the end of its log "
                f"{self._log}:\n  " + "\n  ".join(lines or ["(nothing was logged)"])
            )

    def kill(self) -> None:
        """End the node as a crash does (SIGKILL)."""
        self._process.kill()
        self._process.wait()

    def stop(self, timeout_s: float = STOP_TIMEOUT_S) -> int:
        """Ask the node to end as Ctrl-C does, and kill it if it does not; its exit status."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
        try:
            status = self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            status = self._process.wait()
        self._folder.cleanup()
        return status

    def __exit__(self, *_: object) -> None:
        self.stop()


@contextmanager
def spun_node(name: str) -> Iterator[Node]:
    """A node of this process, whose callbacks run in a thread of their own."""
    context = Context()
    # Ctrl-C must reach this program, which then stops what it has started.
    rclpy.init(context=context, signal_handler_options=SignalHandlerOptions.NO)
    node = rclpy.create_node(name, context=context, start_parameter_services=False)
    executor = SingleThreadedExecutor(context=context)
    executor.add_node(node)

    def spin() -> None:
        with suppress(ExternalShutdownException):  # how rclpy says that the context was shut down
            executor.spin()

    spinner = threading.Thread(target=spin, daemon=True)
    spinner.start()
    try:
        yield node
    finally:
        context.try_shutdown()
        spinner.join()
        node.destroy_node()  # and with it its part in DDS


def wait_until_connected(node: Node, process: NodeProcess, matched: Callable[[], bool]) -> None:
    """Until the node of ``process`` listens, and both nodes have discovered each other.

    ``matched``: whether the topics of ``node`` are connected. RosError if the process ends, or
    after ``START_TIMEOUT_S``.
    """
    end = time.monotonic() + START_TIMEOUT_S
    service = node.create_client(GetParameters, f"{NODE}/get_parameters")
    # The node's topics are there while it still loads; it takes images from its subscription on.
    while not (matched() and service.service_is_ready()):
        process.check()
        if time.monotonic() > end:
            raise RosError(
                f"the node does not listen after {START_TIMEOUT_S:.0f} s; see its log, and whether "
                "a firewall keeps UDP on the loopback interface from ROS"
            )
        time.sleep(0.05)
    # Its answer shows that the node has discovered this one as well, as it counts frames from
    # the first that it hears.
    answer = service.call_async(GetParameters.Request(names=["device"]))
    while not answer.done() and time.monotonic() < end:
        process.check()
        time.sleep(0.05)
    time.sleep(0.2)  # its readers are matched one after the other


class Player:
    """A camera that plays a clip on ``topic``, as drivers do (SensorData, REP-2003)."""

    def __init__(self, node: Node, topic: str = "image", frame_id: str = "camera") -> None:
        self._node, self._frame_id = node, frame_id
        self._publisher = node.create_publisher(Image, topic, qos_profile_sensor_data)

    @property
    def listeners(self) -> int:
        return int(self._publisher.get_subscription_count())

    def play(self, images: Sequence[np.ndarray], rate_hz: float) -> Iterator[int]:
        """Publish ``images``, uint8 (H, W, 3) RGB, each stamped now; yields its stamp in ns.

        The schedule is absolute: time lost on one image is not passed on to the next ones.
        """
        began = time.monotonic()
        for index, image in enumerate(images):
            time.sleep(max(0.0, began + index / rate_hz - time.monotonic()))
            message = MESSAGES.image(Header(frame_id=self._frame_id), image, "rgb8")
            now_ns = int(self._node.get_clock().now().nanoseconds)
            message.header.stamp = MESSAGES.time(now_ns)
            self._publisher.publish(message)
            yield now_ns


class Recorder:
    """Counts the masks of the node ``source`` and stores its frame reports, in order of arrival.

    So it does the node's newest counts, which come once a second, and how long after the stamp of
    its image each mask came. ``store_masks``: the masks themselves as well.
    """

    def __init__(self, node: Node, source: str = NODE, *, store_masks: bool = True) -> None:
        self._node, self._changed, self._store_masks = node, threading.Condition(), store_masks
        self._count = 0
        self._masks: dict[int, np.ndarray] = {}  # by the stamp of their image, as are these
        self._received_ms: dict[int, float] = {}
        self._reports: list[FrameReport] = []
        self._counters, self._ledger = Counters(), Ledger()
        self._counted = 0  # reports that were here when these two came
        # Reliable, and deep enough to lose nothing while this process is busy with a video.
        qos = QoSProfile(depth=1000, reliability=QoSReliabilityPolicy.RELIABLE)
        self._topics = (f"{source}/mask", f"{source}/frame_report", f"{source}/statistics")
        node.create_subscription(Image, self._topics[0], self._on_mask, qos)
        node.create_subscription(FrameReport, self._topics[1], self._on_report, qos)
        node.create_subscription(Statistics, self._topics[2], self._on_statistics, qos)

    @property
    def matched(self) -> bool:
        """Whether the node's publishers are seen."""
        return all(self._node.count_publishers(topic) for topic in self._topics)

    @property
    def reports(self) -> list[FrameReport]:
        with self._changed:
            return list(self._reports)

    @property
    def received_ms(self) -> dict[int, float]:
        """From the stamp of each image, in ns, until its mask came."""
        with self._changed:
            return dict(self._received_ms)

    def wait_for_last(self, played: int, process: NodeProcess) -> None:
        """As :meth:`wait_for_all`, up to ``LAST_TIMEOUT_S``; RosError if the ``process`` ends."""
        end = time.monotonic() + LAST_TIMEOUT_S
        while not self.wait_for_all(played, 0.2) and time.monotonic() < end:
            process.check()

    def wait_for_all(self, played: int, timeout_s: float) -> bool:
        """Until the node has counted ``played`` images and all masks are here; False if too late.

        Nothing can supersede the newest image, so its mask comes, or is late.
        """
        with self._changed:
            return self._changed.wait_for(
                lambda: self._counted >= self._count and self.account(played).unaccounted == 0,
                timeout_s,
            )

    def answers(self, stamps: Sequence[int]) -> list[Answer]:
        """The results for the images played with ``stamps`` ns, in order, where there are any."""
        with self._changed:
            masks, received_ms = dict(self._masks), dict(self._received_ms)
        reports = {stamp_ns(report.header.stamp): report for report in self.reports}
        return [
            Answer(index, segmentation(reports[stamp], masks[stamp]),
                   published_ms=reports[stamp].age_ms, received_ms=received_ms[stamp])
            for index, stamp in enumerate(stamps)
            if stamp in masks and stamp in reports
        ]  # fmt: skip

    @property
    def counts(self) -> tuple[Counters, Ledger]:
        with self._changed:
            return self._counters, self._ledger

    def account(self, played: int) -> Account:
        """What became of ``played`` images, by the masks received and the node's newest ledger."""
        with self._changed:
            return Account.of(played, self._count, self._ledger)

    def _on_mask(self, message: Image) -> None:
        now_ns, stamp = self._node.get_clock().now().nanoseconds, stamp_ns(message.header.stamp)
        with self._changed:
            self._count += 1
            self._received_ms[stamp] = (now_ns - stamp) / 1e6
            if self._store_masks:
                self._masks[stamp] = to_ids(message)
            self._changed.notify_all()

    def _on_report(self, message: FrameReport) -> None:
        with self._changed:
            self._reports.append(message)
            self._changed.notify_all()

    def _on_statistics(self, message: Statistics) -> None:
        with self._changed:
            self._counters = record_of(Counters, message.counters)
            self._ledger = record_of(Ledger, message.ledger)
            self._counted = len(self._reports)
            self._changed.notify_all()


@dataclass(frozen=True, eq=False)
class LiveRun:
    answers: list[Answer]
    account: Account
    counters: Counters  # the node's, after the last frame
    played_hz: float


@dataclass(frozen=True)
class LiveNode:
    """A node that listens, with the camera and the recorder that are connected to it."""

    process: NodeProcess
    player: Player
    recorder: Recorder

    def play(
        self, images: Sequence[np.ndarray], rate_hz: float, progress: Callable[[int], object]
    ) -> LiveRun:
        """Play ``images``, uint8 (H, W, 3) RGB, and wait for the last mask.

        ``progress`` is called with 1 for each frame played. RosError if the node dies.
        """
        began, stamps, recorder = time.monotonic(), [], self.recorder
        for stamp in self.player.play(images, rate_hz):
            stamps.append(stamp)
            self.process.check()
            progress(1)
        played_hz = (len(stamps) - 1) / (time.monotonic() - began)
        recorder.wait_for_last(len(stamps), self.process)
        account = recorder.account(len(stamps))
        return LiveRun(recorder.answers(stamps), account, recorder.counts[0], played_hz)


@contextmanager
def live_node(parameters: dict[str, Any], log: Path) -> Iterator[LiveNode]:
    """Start a node and wait until it listens; stop it, whatever happens, at the end.

    Raises :class:`RosError` if it ends by itself or does not come up.
    """
    with spun_node("clip") as node:
        player, recorder = Player(node), Recorder(node)
        with NodeProcess(parameters, log) as process:
            wait_until_connected(node, process, lambda: player.listeners > 0 and recorder.matched)
            yield LiveNode(process, player, recorder)
