"""The launch files, on a machine with ros2 launch."""

from __future__ import annotations

import os
import runpy
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

# The repository's own folder launch/ can be imported, so ask for what only ROS has.
pytest.importorskip("launch_ros", reason="needs ros2 launch, which is not on PyPI")
if shutil.which("ros2") is None:
    pytest.skip("needs the command ros2; source a ROS 2 installation", allow_module_level=True)

import rclpy
from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, SetEnvironmentVariable
from rcl_interfaces.srv import GetParameters
from rclpy.node import Node
from sensor_msgs.msg import Image

from lowlat_seg_ros.tools import cli

LAUNCH = Path(__file__).parents[2] / "launch"
PROFILES = {"FASTRTPS_DEFAULT_PROFILES_FILE", "FASTDDS_DEFAULT_PROFILES_FILE"}


def description(file: str = "segmentation.launch.py") -> LaunchDescription:
    return runpy.run_path(str(LAUNCH / file))["generate_launch_description"]()


def variables() -> set[str]:
    actions = [a for a in description().entities if isinstance(a, SetEnvironmentVariable)]
    return {action.name[0].text for action in actions}


@pytest.mark.parametrize("file", sorted(path.name for path in LAUNCH.glob("*.launch.py")))
def test_every_argument_is_described(file: str) -> None:
    own = [a for a in description(file).entities if isinstance(a, DeclareLaunchArgument)]
    assert own
    assert all(argument.description.endswith(".") for argument in own)


def test_profile_for_large_images_is_set_unless_the_user_has_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in PROFILES:
        monkeypatch.delenv(name, raising=False)
    assert variables() == PROFILES
    monkeypatch.setenv("FASTDDS_DEFAULT_PROFILES_FILE", "mine.xml")
    assert variables() == set()


@pytest.fixture
def observer() -> Iterator[Node]:
    rclpy.init()
    yield rclpy.create_node("observer")
    rclpy.shutdown()


@contextmanager
def launched(file: str, **arguments: object) -> Iterator[subprocess.Popen[bytes]]:
    """``ros2 launch`` of a file of the installed package, ended by Ctrl-C, which must go well."""
    given = [f"{name}:={value}" for name, value in arguments.items()]
    process = subprocess.Popen(["ros2", "launch", "lowlat_seg_ros", file, *given])
    try:
        yield process
    finally:
        process.send_signal(signal.SIGINT)
        status = process.wait(timeout=60)
    assert status == 0


def test_node_starts_with_its_arguments(observer: Node, tmp_path: Path, checkpoint: Path) -> None:
    file = tmp_path / "parameters.yaml"
    file.write_text("/**/segmentation_node: {ros__parameters: {advanced: {max_key_interval: 7}}}")
    arguments = {
        "image": "/front/image",
        "namespace": "car",
        "params_file": file,
        "checkpoint": checkpoint,
        "device": "cpu",
        "use_sim_time": "true",
    }
    with launched("segmentation.launch.py", **arguments) as process:
        wait(lambda: observer.count_subscribers("/front/image") == 1, process)
        assert values(observer, ["advanced.max_key_interval", "use_sim_time", "device"]) == [
            7,
            True,
            "cpu",
        ]
        assert observer.count_publishers("/car/segmentation_node/mask") == 1


def test_node_waits_for_transitions_without_autostart(observer: Node, checkpoint: Path) -> None:
    arguments = {"namespace": "car", "checkpoint": checkpoint, "autostart": "false"}
    with launched("segmentation.launch.py", **arguments):
        names = ["advanced.max_key_interval", "autostart", "checkpoint"]
        assert values(observer, names) == [0, False, str(checkpoint)]
        assert observer.count_subscribers("/camera/image_raw") == 0


def test_node_starts_with_several_cameras(observer: Node, checkpoint: Path) -> None:
    arguments = {"namespace": "car", "checkpoint": checkpoint, "device": "cpu"}
    cameras = {"cameras": "front,left", "images": "/front/image_raw,/port_side"}
    with launched("multi_camera.launch.py", **arguments, **cameras) as process:
        for topic in ("/front/image_raw", "/port_side"):
            wait(lambda topic=topic: observer.count_subscribers(topic) == 1, process)
        for name in ("front", "left"):
            assert observer.count_publishers(f"/car/segmentation_node/{name}/mask") == 1


# What is given to a launch file, and what is said about it.
WRONG = [
    ("segmentation", "params_file:=/nope.yaml", "params_file is /nope.yaml, which cannot be read"),
    ("segmentation", "params_file:=OTHER", "which is for /other and has nothing for /segmentation"),
    ("segmentation", "log_level:=loud", "log_level is 'loud'; choose one of debug, info, warn,"),
    ("segmentation", "rviz:=yes", "rviz is 'yes'; choose one of true, false"),
    ("segmentation", "imge:=/front", "no launch argument imge; did you mean image?"),
    ("segmentation", "namespace:=a//b", "namespace is 'a//b'; a name consists of"),
    ("multi_camera", "camera:=front", "no launch argument camera; did you mean cameras?"),
    ("multi_camera", "images:=/front", "1 topics in images (/front) for 3 cameras"),
    ("replay", "bag:=/nope", "bag is /nope, which does not exist"),
    ("replay", "rate:=fast", "rate is 'fast'; give a number above 0"),
]


@pytest.mark.parametrize(("file", "argument", "wanted"), WRONG)
def test_nothing_is_started_with_a_wrong_argument(
    file: str, argument: str, wanted: str, tmp_path: Path
) -> None:
    other = tmp_path / "other.yaml"
    other.write_text("other: {ros__parameters: {autostart: false}}")
    refused(file, argument.replace("OTHER", str(other)), wanted)


@pytest.mark.skipif(bool(shutil.which("rviz2")), reason="rviz2 is installed")
def test_nothing_is_started_when_rviz2_is_missing() -> None:
    refused("segmentation", "rviz:=true", "rviz is true, but the package rviz2 is not installed")


def refused(file: str, argument: str, wanted: str) -> None:
    command = ["ros2", "launch", "lowlat_seg_ros", f"{file}.launch.py", argument]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert wanted in done.stdout + done.stderr
    assert "process started" not in done.stdout + done.stderr


def test_launch_file_that_includes_ours_has_arguments_of_its_own(tmp_path: Path) -> None:
    outer = tmp_path / "robot.launch.py"
    outer.write_text(
        "from launch import LaunchDescription as L\n"
        "from launch.actions import DeclareLaunchArgument as D, IncludeLaunchDescription as I\n"
        f"inner = I({str(LAUNCH / 'segmentation.launch.py')!r}, "
        "launch_arguments={'checkpoint': '/nope'}.items())\n"
        "generate_launch_description = lambda: L([D('imag'), inner])\n"
    )
    command = ["ros2", "launch", str(outer), "imag:=/front"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert "process started" in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("file", "arguments", "wanted"),
    [
        ("segmentation", ["checkpoint:=/nope"], "the node ended with status 1"),
        ("segmentation", ["device:=gpu"], "the node ended with status 1"),
        ("replay", ["checkpoint:=/nope"], "the node ended with status 1"),
        ("replay", ["bag:=EMPTY", "checkpoint:=GOOD"], "the bag could not be played"),
        ("replay", ["dataset:=folder", "root:=EMPTY"], "the data set could not be made a bag"),
    ],
)
def test_launch_fails_where_what_it_started_fails(
    file: str, arguments: list[str], wanted: str, tmp_path: Path, checkpoint: Path
) -> None:
    """systemd and others go by the status, which is 0 after a Shutdown event."""
    words = [a.replace("EMPTY", str(tmp_path)).replace("GOOD", str(checkpoint)) for a in arguments]
    command = ["ros2", "launch", "lowlat_seg_ros", f"{file}.launch.py", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert wanted in done.stdout + done.stderr
    assert done.returncode == 1


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 0), (signal.SIGKILL, 1)])
def test_launch_ends_with_its_node(
    observer: Node, checkpoint: Path, number: signal.Signals, status: int
) -> None:
    words = [f"checkpoint:={checkpoint}", "device:=cpu", "image:=/only/here"]
    command = ["ros2", "launch", "lowlat_seg_ros", "segmentation.launch.py", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        started = next(line for line in process.stdout if "process started with pid" in line)
        wait(lambda: observer.count_subscribers("/only/here") == 1, process)
        os.kill(int(started.rpartition("[")[2].rstrip("]\n")), number)
        process.communicate(timeout=60)
    assert process.returncode == status


def test_bag_is_played_again_and_again_by_its_clock(
    observer: Node, tmp_path: Path, checkpoint: Path
) -> None:
    pytest.importorskip("rosbags", reason="bags are made with the library rosbags")
    words = ["--size", "48x64", "--frames", "6", "--rate", "10", "--out", str(tmp_path / "bag")]
    assert cli.main(["bag", "make", *words]) == 0
    arguments = {"bag": tmp_path / "bag", "loop": "true", "rate": 2.0, "namespace": "car"}
    stamps: list[int] = []
    observer.create_subscription(
        Image, "/car/segmentation_node/mask", lambda mask: stamps.append(mask.header.stamp.sec), 10
    )

    def looped() -> bool:
        rclpy.spin_once(observer, timeout_sec=0.1)
        return len(stamps) > 12  # of 6 frames

    with launched("replay.launch.py", checkpoint=checkpoint, device="cpu", **arguments) as process:
        wait(looped, process)
        assert set(stamps) == {1}  # the first second of the bag, as it was recorded
        assert values(observer, ["advanced.max_key_interval", "use_sim_time", "device"]) == [
            0,
            True,
            "cpu",
        ]


def wait(condition: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    while not condition():  # the test's own timeout bounds this
        assert process.poll() is None, "ros2 launch ended too early"
        time.sleep(0.1)


def values(observer: Node, names: list[str]) -> list[object]:
    client = observer.create_client(GetParameters, "/car/segmentation_node/get_parameters")
    assert client.wait_for_service(timeout_sec=60)
    future = client.call_async(GetParameters.Request(names=names))
    rclpy.spin_until_future_complete(observer, future, timeout_sec=60)
    integer, flag, text = future.result().values
    return [integer.integer_value, flag.bool_value, text.string_value]
