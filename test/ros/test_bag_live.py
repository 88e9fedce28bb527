"""Bags over DDS: into the live node with ``bag live``, and to anybody with ``bag play``."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("rclpy", reason="needs ROS 2")
pytest.importorskip("rosbags", reason="bags need the library rosbags")

from harness import RELIABLE, Inbox, wait_until
from rclpy.serialization import deserialize_message
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import Image

from lowlat_seg_ros.frames import Ledger
from lowlat_seg_ros.messages import stamp_ns
from lowlat_seg_ros.tools import cli
from lowlat_seg_ros.tools.bag.command import Topics
from lowlat_seg_ros.tools.bag.make import START_NS
from lowlat_seg_ros.tools.bag.play import BagPlayer
from lowlat_seg_ros.tools.bag.storage import BagReader, BagWriter
from lowlat_seg_ros.tools.live import spun_node

FRAMES, RATE_HZ = 12, 10


@pytest.fixture(scope="module")
def drive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A rendered drive as a bag."""
    bag = tmp_path_factory.mktemp("bags") / "drive"
    words = ["--size", "48x64", "--frames", FRAMES, "--rate", RATE_HZ, "--out", bag]
    assert cli.main(["bag", "make", *map(str, words)]) == 0
    return bag


def live(*words: object) -> subprocess.CompletedProcess[str]:
    """In a process of its own, as it sets up an environment of its own."""
    command = [sys.executable, "-m", "lowlat_seg_ros.tools.cli", "bag", "live", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=240)


@pytest.mark.parametrize(("rate", "loops"), [(1, 1), (3, 3)])
def test_every_image_is_accounted_for_and_each_loop_starts_an_epoch(
    rate: int, loops: int, drive: Path, checkpoint: Path, tmp_path: Path
) -> None:
    done = live(drive, "--checkpoint", checkpoint, "--device", "cpu", "--foreground-threads", 1,
                "--rate", rate, "--loops", loops, "--max-gap-ms", 60_000,
                "--json", tmp_path / "found.json")  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    account, ledger = found["account"], Ledger(**found["ledger"])
    assert account["played"] == FRAMES * loops
    assert account["masks"] + account["superseded"] == FRAMES * loops
    assert found["unaccounted"] == 0
    assert ledger == Ledger(account["masks"], account["masks"], superseded=account["superseded"])
    # The clock's jump and the image's stamp come by two topics: either is first, or each counts.
    # A slow machine may miss a lap, but neither the very first image nor the very last.
    fresh = found["fresh"]
    jumps = fresh.pop("time_jumped_back", 0)
    assert fresh == {"first_frame": 1}
    assert min(1, loops - 1) <= jumps <= 2 * (loops - 1)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["live", "--rate", "0"], "--rate is 0.0"),
        (["live", "--loops", "0"], "--loops is 0"),
        (["play", "--loops", "-1"], "--loops is -1"),
    ],
)
def test_what_cannot_be_ends_in_one_line(
    words: list[str], expected: str, drive: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert cli.main(["bag", *words, str(drive)]) == 2
    error = capsys.readouterr().err
    assert expected in error
    assert error.count("\n") == 1


def test_player_publishes_what_was_recorded_with_the_clock(
    drive: Path,
) -> None:
    images, labels, clocks = Inbox(), Inbox(), Inbox()
    with BagReader(drive) as bag, spun_node("player") as node, spun_node("listener") as listener:
        listener.create_subscription(Image, "/front/image", images.put, RELIABLE)
        listener.create_subscription(Image, Topics.label, labels.put, RELIABLE)
        listener.create_subscription(Clock, "/clock", clocks.put, RELIABLE)
        player = BagPlayer(node, bag, 5.0, {Topics.image: "/front/image"})
        wait_until(
            lambda: bool(player.listeners(Topics.image) and player.listeners(Topics.label)
                         and node.count_subscribers("/clock")),
            lambda: "nobody listens",
        )  # fmt: skip
        for _ in range(2):
            sent = list(player.play())
        wait_until(
            lambda: len(images.all()) == len(labels.all()) == 2 * FRAMES, lambda: "messages lost"
        )
        ended = stamp_ns(images.all()[-1].header.stamp)
        clocks.first(lambda clock: stamp_ns(clock.clock) == ended)
    assert [raw.topic for raw in sent] == [Topics.image, Topics.label] * FRAMES
    for topic, inbox in ((Topics.image, images), (Topics.label, labels)):
        recorded = [bytes(raw.data) for raw in sent if raw.topic == topic]
        assert inbox.all() == 2 * [deserialize_message(data, Image) for data in recorded]
    times = [stamp_ns(clock.clock) for clock in clocks.all()]
    falls = [b for a, b in itertools.pairwise(times) if b < a]
    assert falls == [START_NS]  # once, to the beginning
    assert len(times) > 4 * FRAMES  # between the images as well


def test_topics_of_types_that_are_not_here_are_left_out(drive: Path, tmp_path: Path) -> None:
    with BagReader(drive) as source, BagWriter(tmp_path / "bag", "mcap") as out:
        for raw in source.raw([Topics.image]):
            out.copy(raw)
        out.write("/pose", out.messages.make("geometry_msgs/msg/Pose2D"), START_NS)
        out.write("/odd", out.messages.make("stereo_msgs/msg/DisparityImage"), START_NS)
    with BagReader(tmp_path / "bag") as bag, spun_node("player") as node:
        player = BagPlayer(node, bag, 100.0)
        assert player.unknown == ("/odd (stereo_msgs/msg/DisparityImage)",)
        assert {raw.topic for raw in player.play()} == {Topics.image, "/pose"}
