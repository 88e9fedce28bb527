"""The demo's parts: environment, the node's process, recorder and its account."""

from __future__ import annotations

import itertools
import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Thread

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs ROS 2")

import rclpy
from lowlat_seg_ros.msg import FrameReport, Statistics
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from sensor_msgs.msg import Image
from std_msgs.msg import Header

from lowlat_seg_ros.frames import (
    Counters,
    Deadline,
    Ledger,
    MaskKind,
    NodeTiming,
    Provenance,
    ResetReason,
    Segmentation,
    Selection,
    StageTiming,
)
from lowlat_seg_ros.messages import segmentation
from lowlat_seg_ros.ros import start
from lowlat_seg_ros.ros.connections import output_qos
from lowlat_seg_ros.ros.outputs import MESSAGES
from lowlat_seg_ros.ros.params import as_parameters
from lowlat_seg_ros.ros.start import RosError
from lowlat_seg_ros.tools.live import Player, Recorder, live_node

IMAGE = np.zeros((48, 64, 3), np.uint8)


def result(stamp: int, reset: ResetReason | None = None, selected: bool = True) -> Segmentation:
    # Values that float32, which the messages hold, can hold.
    return Segmentation(
        np.arange(12, dtype=np.uint8).reshape(3, 4),
        stamp,
        "camera",
        Provenance(MaskKind.PROPAGATED, stamp - 500_000_000, 5, 500.0, True, 3, reset),
        StageTiming(preprocess_ms=1.5, lower_ms=20.25, latency_ms=30.5, selector_ms=0.5),
        selection=Selection(0.25, 0.125, True) if selected else None,
        deadline=Deadline(2, 40.5, True),
    )


@pytest.mark.parametrize("kind", MaskKind)
@pytest.mark.parametrize("reset", [None, *ResetReason])
@pytest.mark.parametrize("selected", [True, False])
def test_report_and_mask_give_back_the_engines_record(
    kind: MaskKind, reset: ResetReason | None, selected: bool
):
    made = result(1_700_000_000_123_456_789, reset, selected)
    made = Segmentation(
        **vars(made) | {"provenance": Provenance(**vars(made.provenance) | {"kind": kind})}
    )
    header = Header(stamp=MESSAGES.time(made.stamp_ns), frame_id=made.frame_id)
    back = segmentation(MESSAGES.frame_report(header, made, NodeTiming()), made.mask)
    assert vars(back) == vars(made)


def test_domain_in_use_is_not_taken(monkeypatch: pytest.MonkeyPatch):
    domain = start.free_domain()
    assert domain in start.DOMAINS
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind(("", 7410 + 250 * domain))
        monkeypatch.setattr(start, "DOMAINS", range(domain, domain + 1))
        with pytest.raises(RosError, match="in use"):
            start.free_domain()


@pytest.mark.parametrize(
    ("only", "discovery", "replaced"),
    [("1", "SYSTEM_DEFAULT", True), ("0", "LOCALHOST", True), (None, "LOCALHOST", True),
     (None, "SUBNET", False), (None, None, False)],
)  # fmt: skip
def test_what_replaces_a_profile(
    monkeypatch: pytest.MonkeyPatch, only: str | None, discovery: str | None, replaced: bool
):
    for name, value in {"LOCALHOST_ONLY": only, "AUTOMATIC_DISCOVERY_RANGE": discovery}.items():
        monkeypatch.setenv(f"ROS_{name}", value or "")
        if value is None:
            monkeypatch.delenv(f"ROS_{name}")
    assert start.replaces_profile() == replaced


def test_isolation_keeps_the_users_profile(monkeypatch: pytest.MonkeyPatch):
    for name in (*start.PROFILE_VARIABLES, "ROS_DOMAIN_ID", "ROS_AUTOMATIC_DISCOVERY_RANGE"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    start.isolate()
    assert os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] == "SYSTEM_DEFAULT"
    for name in start.PROFILE_VARIABLES:
        assert Path(os.environ[name]).name == "fastdds_one_machine.xml"
        assert Path(os.environ[name]).is_file()
        os.environ[name] = "/mine.xml"
    start.isolate()
    assert {os.environ[name] for name in start.PROFILE_VARIABLES} == {"/mine.xml"}


def test_node_that_cannot_start_is_reported_with_its_log(tmp_path: Path):
    parameters = {"checkpoint": str(tmp_path / "none.safetensors")}
    with (
        pytest.raises(RosError, match=r"(?s)status 1.*none\.safetensors"),
        live_node(parameters, tmp_path / "log"),
    ):
        pass


def test_node_that_dies_while_playing_is_reported(checkpoint: Path, tmp_path: Path):
    parameters = as_parameters(
        {"checkpoint": str(checkpoint), "expected_width": 64, "expected_height": 48}
    )
    with live_node(parameters, tmp_path / "log") as node:
        played = itertools.count(1)

        def kill_at_third(_: int) -> None:
            if next(played) == 3:
                os.kill(node.process.pid, signal.SIGKILL)

        with pytest.raises(RosError, match=r"(?s)status -9.*Waiting for images"):
            node.play([IMAGE] * 100, 20.0, kill_at_third)


@pytest.fixture
def ros_node() -> Iterator[Node]:
    """A node that is spun in the background."""
    context = Context()
    rclpy.init(context=context)
    node = rclpy.create_node("test_live", context=context)
    executor = SingleThreadedExecutor(context=context)
    executor.add_node(node)
    thread = Thread(target=executor.spin)
    thread.start()
    yield node
    executor.shutdown()
    thread.join()
    context.try_shutdown()


def test_every_frame_played_is_accounted_for_or_missed(ros_node: Node):
    """A node that answers two frames and rejects one; of a fourth it says nothing."""
    masks = ros_node.create_publisher(Image, "lossy/mask", output_qos())
    reports = ros_node.create_publisher(FrameReport, "lossy/frame_report", output_qos())
    statistics = ros_node.create_publisher(Statistics, "lossy/statistics", output_qos())
    recorder = Recorder(ros_node, "lossy")
    end = time.monotonic() + 30
    while not all(p.get_subscription_count() for p in (masks, reports, statistics)):
        assert time.monotonic() < end
        time.sleep(0.05)
    for stamp in (1_000, 3_000):
        header, made = Header(stamp=MESSAGES.time(stamp)), result(stamp)
        masks.publish(MESSAGES.image(header, made.mask, "mono8"))
        reports.publish(MESSAGES.frame_report(header, made, NodeTiming(age_ms=4.0)))
    while len(recorder.reports) < 2:
        assert time.monotonic() < end
        time.sleep(0.05)
    ledger = Ledger(received=3, published=2, rejected=1)
    statistics.publish(MESSAGES.statistics(Header(), Counters(frames=2), ledger))
    stamps = [1_000, 2_000, 3_000]
    assert recorder.wait_for_all(len(stamps), 30)
    assert recorder.counts == (Counters(frames=2), ledger)
    assert [answer.index for answer in recorder.answers(stamps)] == [0, 2]
    assert recorder.answers(stamps)[0].published_ms == 4.0
    assert recorder.account(len(stamps)).rejected == 1
    assert not recorder.wait_for_all(len(stamps) + 1, 0.05)  # one that the node does not know of
    assert recorder.account(len(stamps) + 1).unaccounted == 1


def test_player_keeps_the_rate_and_stamps_with_the_time(ros_node: Node):
    player = Player(ros_node)
    before = time.time_ns()
    stamps = list(player.play([IMAGE] * 5, rate_hz=50.0))
    assert before <= stamps[0]
    assert stamps == sorted(set(stamps))
    assert stamps[-1] - stamps[0] >= 0.07e9  # never faster; slower is the machine's matter
