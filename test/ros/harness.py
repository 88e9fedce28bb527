"""A node in its own process, and a camera and an observer in this one, over real DDS."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import multiprocessing
import os
import runpy
import signal
import socket
import struct
import sys
import threading
import time
import warnings
from array import array
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import rclpy
import torch
import yaml
from diagnostic_msgs.msg import DiagnosticArray
from lowlat_seg_ros.msg import FrameReport, Ledger, Statistics
from rclpy.context import Context
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.parameter import Parameter
from rclpy.parameter_client import AsyncParameterClient
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import Image

from lowlat_seg_ros.config import NETWORKS
from lowlat_seg_ros.labels import CAMVID
from lowlat_seg_ros.messages import stamp_ns
from lowlat_seg_ros.network.checkpoint import Header, save
from lowlat_seg_ros.network.segmenter import Segmenter
from lowlat_seg_ros.ros import node
from lowlat_seg_ros.ros.outputs import MESSAGES
from lowlat_seg_ros.ros.params import as_parameters

ROOT = Path(__file__).parents[2]
NODE = "segmentation_node"
NOT_ALLOWED = 77
TIMEOUT_S = 120.0  # far beyond what anything takes, on a busy machine too
RELIABLE = QoSProfile(depth=100, reliability=ReliabilityPolicy.RELIABLE)


def write_checkpoint(path: Path, network: str = "tiny", threshold: float = 0.5) -> Path:
    """A network of random weights, the same on every call."""
    torch.manual_seed(0)
    segmenter = Segmenter(NETWORKS[network]).eval()
    # Fresh classifiers are nearly blind; spread them so that different images give other masks.
    for head in (segmenter.classifier, segmenter.high_classifier, segmenter.low_classifier):
        torch.nn.init.normal_(head.weight)
    header = Header(NETWORKS[network], CAMVID.names, CAMVID.colours, threshold)
    save(path, segmenter, header, torch.float32)
    return path


def picture(height: int = 48, width: int = 64, seed: int = 0) -> np.ndarray:
    """A blurred random RGB image, uint8 (H, W, 3)."""
    rough = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    rows, columns = np.arange(height) * 6 // height, np.arange(width) * 8 // width
    return np.ascontiguousarray(rough[rows][:, columns])


def message(
    pixels: np.ndarray, encoding: str, stamp_s: float, frame_id: str = "camera", padding: int = 0
) -> Image:
    """An image of the bytes of ``pixels``, (H, W) or (H, W, C), each row followed by padding."""
    height, width = pixels.shape[:2]
    rows = np.ascontiguousarray(pixels).view(np.uint8).reshape(height, -1)
    rows = np.pad(rows, ((0, 0), (0, padding)), constant_values=0xA5)
    image = Image(height=height, width=width, encoding=encoding, step=rows.shape[1])
    image.header.stamp = MESSAGES.time(round(stamp_s * 1e9))
    image.header.frame_id = frame_id
    image.data = array("B", rows.tobytes())
    return image


def mask_of(image: Image) -> np.ndarray:
    """The pixels of a mono8 message, uint8 (H, W)."""
    assert image.encoding == "mono8"
    return np.frombuffer(image.data, np.uint8).reshape(image.height, image.step)[:, : image.width]


class NodeProcess:
    """``segmentation_node`` as a process of its own, with ``parameters`` from a file.

    The process is forked from a server that has imported PyTorch, rclpy and the node, because that
    takes most of a node's start. With ``new_interpreter`` it is what ``python -m`` starts. Where
    there are ``faults`` its Sh does what that file says, see scripts/faulty_node.py. With
    ``no_network`` it has none but a loopback interface of its own, so nobody hears it; it ends with
    ``NOT_ALLOWED`` where the system does not let it leave the network.
    """

    def __init__(
        self,
        folder: Path,
        parameters: dict[str, Any],
        namespace: str,
        arguments: Sequence[str] = (),
        *,
        new_interpreter: bool = False,
        faults: Path | None = None,
        no_network: bool = False,
    ) -> None:
        self.namespace = namespace
        self.log_file = folder / f"{namespace}.log"
        self.log_file.touch()
        params_file = folder / f"{namespace}.yaml"
        params_file.write_text(
            yaml.safe_dump({"/**": {"ros__parameters": as_parameters(parameters)}})
        )
        ros = ["--ros-args", "--params-file", str(params_file), "-r", f"__ns:=/{namespace}"]
        command = (self.log_file, [*ros, *arguments], new_interpreter, faults, no_network)
        self._process = _servers.Process(target=_run_node, args=command)
        self._process.start()

    @property
    def pid(self) -> int:
        """Its number among the processes."""
        assert self._process.pid is not None
        return self._process.pid

    @property
    def status(self) -> int | None:
        """Its exit status, None while it runs."""
        return self._process.exitcode

    @property
    def log(self) -> str:
        """What the process has written so far."""
        return self.log_file.read_text()

    def wait_for_log(self, text: str) -> None:
        """Until ``text`` was logged."""
        wait_until(
            lambda: text in self.log or self.status is not None,
            lambda: f"{text!r} was not logged:\n{self.log}",
        )
        assert text in self.log, f"the node ended with {self.status}:\n{self.log}"

    def stop(self, number: int = signal.SIGINT, timeout_s: float = TIMEOUT_S) -> int:
        """Send it a signal and return its exit status; it is killed if it does not end."""
        if self.status is None:
            with contextlib.suppress(ProcessLookupError):  # it may end at this very moment
                os.kill(self.pid, number)
        self._process.join(timeout_s)
        if self.status is None:
            self._process.kill()
            raise AssertionError(f"the node does not end:\n{self.log}")
        return self.status


# The server starts with the first node and inherits the environment of that moment. It imports this
# file, and pytest because multiprocessing imports the main module in every child.
_servers = multiprocessing.get_context("forkserver")
_servers.set_forkserver_preload(["harness", "pytest"])


def _run_node(
    log_file: Path,
    arguments: list[str],
    new_interpreter: bool,
    faults: Path | None,
    no_network: bool,
) -> None:
    """Turn this process, which was just forked, into the node."""
    if no_network:
        _leave_network()
    with log_file.open("w") as log:
        os.dup2(log.fileno(), sys.stdout.fileno())
        os.dup2(log.fileno(), sys.stderr.fileno())
    if new_interpreter:
        os.execv(sys.executable, [sys.executable, "-m", "lowlat_seg_ros.ros", *arguments])
    if faults is not None:
        runpy.run_path(str(ROOT / "scripts" / "faulty_node.py"))["install"](faults)
    sys.argv[1:] = arguments
    sys.exit(node.main())


def _leave_network() -> None:
    """Go into a network namespace of this process's own (unshare(2)), with loopback alone."""
    libc = ctypes.CDLL(None, use_errno=True)
    new_network, new_user = 0x40000000, 0x10000000
    if libc.unshare(new_network) and libc.unshare(new_network | new_user):
        sys.exit(NOT_ALLOWED)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        up = struct.pack("16sh14x", b"lo", 0x1 | 0x40)  # IFF_UP and IFF_RUNNING
        fcntl.ioctl(any_socket, 0x8914, up)  # SIOCSIFFLAGS, netdevice(7)


class Inbox:
    """Messages of one topic in the order of their arrival."""

    def __init__(self) -> None:
        self._messages: list[Any] = []
        self._changed = threading.Condition()

    def put(self, item: Any) -> None:
        with self._changed:
            self._messages.append(item)
            self._changed.notify_all()

    def all(self) -> list[Any]:
        with self._changed:
            return list(self._messages)

    def first(self, condition: Callable[[Any], bool], after: int = 0) -> Any:
        """The first message, past or to come, for which ``condition`` holds.

        The first ``after`` messages do not count.
        """
        with self._changed:
            found: list[Any] = []

            def arrived() -> bool:
                found[:] = [item for item in self._messages[after:] if condition(item)][:1]
                return bool(found)

            assert self._changed.wait_for(arrived, TIMEOUT_S), (
                f"none of {len(self._messages)} messages is the one waited for"
            )
            return found[0]


class Bench:
    """A camera for a node, and inboxes of what it publishes; a context manager."""

    def __init__(self, namespace: str) -> None:
        self._namespace, self._prefix = namespace, f"/{namespace}/{NODE}"
        self.masks, self.reports, self.statistics, self.diagnostics = (Inbox() for _ in range(4))
        self._join()

    def __enter__(self) -> Bench:
        return self

    def __exit__(self, *_: object) -> None:
        self._leave()

    def _join(self) -> None:
        """Take part in DDS, with topics of its own."""
        self._context = Context()
        rclpy.init(context=self._context)
        self.node = rclpy.create_node("bench", context=self._context, namespace=self._namespace)
        self.camera = self.node.create_publisher(Image, "image", RELIABLE)
        self.clock = self.node.create_publisher(Clock, "/clock", RELIABLE)
        self.listen(Image, "mask", inbox=self.masks)
        self.listen(FrameReport, "frame_report", inbox=self.reports)
        self.listen(Statistics, "statistics", inbox=self.statistics)
        self.node.create_subscription(DiagnosticArray, "/diagnostics", self._sort, RELIABLE)
        self.parameters = AsyncParameterClient(self.node, self._prefix)
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self.node)
        self._thread = threading.Thread(target=self._spin)
        self._thread.start()

    def _leave(self) -> None:
        self._context.try_shutdown()
        self._thread.join(TIMEOUT_S)

    def listen(
        self, kind: Any, topic: str, qos: QoSProfile = RELIABLE, inbox: Inbox | None = None
    ) -> Inbox:
        """An inbox, the one given or a new one, for a topic of the node."""
        inbox = inbox or Inbox()
        self.node.create_subscription(kind, f"{self._prefix}/{topic}", inbox.put, qos)
        return inbox

    def wait_until_heard(self, node: NodeProcess) -> None:
        """Until the diagnostics of ``node``, which never pause, are heard, and it answers.

        On an overloaded machine Fast DDS now and then loses one direction between two processes for
        ever, though they see each other. So whoever hears nothing joins anew, which shows among the
        warnings of the run. Call it before the test has topics of its own.
        """
        answers: list[Any] = []

        def heard() -> bool:
            if node.status is not None:
                return True  # the test will see why
            if not answers and self.parameters.services_are_ready():
                answers.append(self.parameters.get_parameters(["use_sim_time"]))
            told = any(s.name.startswith(self._prefix[1:]) for s in self.diagnostics.all())
            return told and any(answer.done() for answer in answers)

        for last in (False, False, True):
            try:
                return wait_until(heard, lambda: f"nothing is heard of the node:\n{node.log}",
                                  within_s=TIMEOUT_S / 4)  # fmt: skip
            except AssertionError as error:
                if last:
                    raise
                warnings.warn(f"joined DDS anew, as {error}", stacklevel=2)
                self._leave()
                self._join()
                answers.clear()

    def wait_for_node(self) -> None:
        """Until what this camera sends is answered here: small images, until one is."""
        probe = message(picture(), "rgb8", 0.0, "probe")

        def answered() -> bool:
            self.camera.publish(probe)
            return bool(self.masks.all() and self.reports.all())

        wait_until(answered, lambda: f"no node answers at {self._prefix}", every_s=0.2)
        assert self.parameters.wait_for_services(TIMEOUT_S)

    def send(self, image: Image) -> FrameReport:
        """Publish an image and wait for the report on it."""
        self.camera.publish(image)
        return self.report_on(image)

    def report_on(self, image: Image) -> FrameReport:
        return self.reports.first(lambda report: report.header == image.header)

    def mask_on(self, image: Image) -> Image:
        return self.masks.first(lambda mask: mask.header == image.header)

    def status(self, name: str, condition: Callable[[dict[str, str]], bool], after: int = 0) -> Any:
        """The first state ``name`` on /diagnostics for whose values ``condition`` holds."""

        def fits(status: Any) -> bool:
            return status.name == f"{self._prefix[1:]}: {name}" and condition(values_of(status))

        return self.diagnostics.first(fits, after)

    def counted(self) -> Statistics:
        """What the node counts from now on, in system time; ledgers balance."""
        return counted(self.statistics)

    def set_parameters(self, **values: Any) -> list[Any]:
        """Ask the node to change parameters; one result for each."""
        wanted = [Parameter(n, value=value) for n, value in as_parameters(values).items()]
        return self._answer(self.parameters.set_parameters(wanted)).results

    def describe_parameters(self, names: list[str]) -> list[Any]:
        return self._answer(self.parameters.describe_parameters(names)).descriptors

    def list_parameters(self) -> list[str]:
        return self._answer(self.parameters.list_parameters()).result.names

    def set_clock(self, seconds: float) -> None:
        self.clock.publish(Clock(clock=MESSAGES.time(round(seconds * 1e9))))

    def _answer(self, future: Any) -> Any:
        wait_until(future.done, lambda: "the node does not answer")
        return future.result()

    def _sort(self, message: DiagnosticArray) -> None:
        for status in message.status:
            self.diagnostics.put(status)

    def _spin(self) -> None:
        with contextlib.suppress(ExternalShutdownException):
            self._executor.spin()


#: Makes a running node and a bench connected to it: ``start(**parameters)``, see the fixture.
Start = Callable[..., tuple[NodeProcess, Bench]]


def counted(statistics: Inbox) -> Statistics:
    """The first of a node's ``statistics`` that were counted after this moment, by system time."""
    now_ns = time.time_ns()
    found = statistics.first(lambda s: stamp_ns(s.header.stamp) >= now_ns)
    assert all(balances(item.ledger) for item in statistics.all())
    return found


def balances(ledger: Ledger) -> bool:
    """Whether every image that was received is somewhere."""
    ended = ledger.published + ledger.rejected + ledger.failed
    return bool(ledger.received == ended + ledger.in_flight)


def values_of(status: Any) -> dict[str, str]:
    """The key-value pairs of a diagnostic status."""
    return {pair.key: pair.value for pair in status.values}


def wait_until(
    condition: Callable[[], bool],
    failure: Callable[[], str],
    every_s: float = 0.02,
    within_s: float = TIMEOUT_S,
) -> None:
    """Poll ``condition``; AssertionError with ``failure()`` if it does not come true in time."""
    end = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < end, failure()
        time.sleep(every_s)
