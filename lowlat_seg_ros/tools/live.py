"""A clip through a live node: the node in its own process, camera and recorder in this one."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import rclpy
from rcl_interfaces.srv import GetParameters
from rclpy.context import Context
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions

from lowlat_seg_ros.lab.evaluation.summary import Account, Answer
from lowlat_seg_ros.ros.environment import RosError
from lowlat_seg_ros.tools.player import Player
from lowlat_seg_ros.tools.process import NodeProcess
from lowlat_seg_ros.tools.recorder import Recorder

NODE = "segmentation_node"

#: The node loads its weights and warms up first.
START_TIMEOUT_S = 120.0

#: For the newest image, which nothing can supersede: the node takes the frame it is at, then this.
LAST_TIMEOUT_S = 30.0


@dataclass(frozen=True, eq=False)
class LiveRun:
    """What came of a clip: ``answers`` in order, where every frame went, and the rate achieved."""

    answers: list[Answer]
    account: Account
    played_hz: float


class LiveNode:
    """A node that listens, with the camera and the recorder that are connected to it."""

    def __init__(self, process: NodeProcess, player: Player, recorder: Recorder) -> None:
        self.process, self._player, self._recorder = process, player, recorder

    def play(
        self, images: Sequence[np.ndarray], rate_hz: float, progress: Callable[[int, int], None]
    ) -> LiveRun:
        """Play ``images``, uint8 (H, W, 3) RGB, and wait for the last mask.

        ``progress`` is told frames played and masks received. RosError if the node dies.
        """
        began, stamps = time.monotonic(), []
        for stamp in self._player.play(images, rate_hz):
            stamps.append(stamp)
            self.process.check()
            progress(len(stamps), self._recorder.complete)
        elapsed = time.monotonic() - began
        end = time.monotonic() + LAST_TIMEOUT_S
        while not self._recorder.wait_for(stamps[-1], timeout_s=0.2) and time.monotonic() < end:
            self.process.check()
        progress(len(stamps), self._recorder.complete)
        return LiveRun(
            self._recorder.answers(stamps),
            self._recorder.account(stamps),
            (len(stamps) - 1) / elapsed if len(stamps) > 1 else 0.0,
        )


@contextmanager
def live_node(parameters: dict[str, Any], log: Path) -> Iterator[LiveNode]:
    """Start a node and wait until it listens; stop it, whatever happens, at the end.

    Raises :class:`RosError` if it ends by itself or does not come up.
    """
    with spun_node("clip") as node:
        player, recorder = Player(node), Recorder(node, NODE)
        with NodeProcess(parameters, log) as process:
            wait_until_connected(node, process, lambda: player.listeners > 0 and recorder.matched)
            yield LiveNode(process, player, recorder)


@contextmanager
def spun_node(name: str) -> Iterator[Node]:
    """A node of this process, whose callbacks run in a thread of their own."""
    context = Context()
    # Ctrl-C must reach this program, which then stops what it has started.
    rclpy.init(context=context, signal_handler_options=SignalHandlerOptions.NO)
    node = rclpy.create_node(name, context=context, start_parameter_services=False)
    executor = SingleThreadedExecutor(context=context)
    executor.add_node(node)
    spinner = Thread(target=_spin, args=(executor,), daemon=True)
    spinner.start()
    try:
        yield node
    finally:
        context.try_shutdown()
        spinner.join()


def wait_until_connected(node: Node, process: NodeProcess, matched: Callable[[], bool]) -> None:
    """Until the node of ``process`` listens, and both sides have discovered each other.

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
    # Its answer shows that the node has discovered this side as well, as it counts frames from
    # the first that it hears.
    answer = service.call_async(GetParameters.Request(names=["device"]))
    while not answer.done() and time.monotonic() < end:
        process.check()
        time.sleep(0.05)
    time.sleep(0.2)  # its readers are matched one after the other


def _spin(executor: SingleThreadedExecutor) -> None:
    with suppress(ExternalShutdownException):  # how rclpy says that the context was shut down
        executor.spin()
