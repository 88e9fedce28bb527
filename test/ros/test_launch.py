"""The launch files, on a machine with ros2 launch."""

from __future__ import annotations

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

from lowlat_seg_ros import cli

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


def test_launch_ends_with_its_node(tmp_path: Path) -> None:
    arguments = {"checkpoint": tmp_path / "none.safetensors"}
    with launched("segmentation.launch.py", **arguments) as process:
        process.wait(timeout=60)


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
