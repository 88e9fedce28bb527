"""The launch file, on a machine with ros2 launch."""

from __future__ import annotations

import runpy
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
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

FILE = Path(__file__).parents[2] / "launch" / "segmentation.launch.py"
PROFILES = {"FASTRTPS_DEFAULT_PROFILES_FILE", "FASTDDS_DEFAULT_PROFILES_FILE"}


def description() -> LaunchDescription:
    return runpy.run_path(str(FILE))["generate_launch_description"]()


def variables() -> set[str]:
    actions = [a for a in description().entities if isinstance(a, SetEnvironmentVariable)]
    return {action.name[0].text for action in actions}


def test_every_argument_is_described() -> None:
    arguments = {a.name: a for a in description().entities if isinstance(a, DeclareLaunchArgument)}
    names = "image namespace params_file checkpoint device use_sim_time log_level rviz"
    assert list(arguments) == names.split()
    assert all(argument.description.endswith(".") for argument in arguments.values())


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


def test_node_starts_with_its_arguments(observer: Node, tmp_path: Path, checkpoint: Path) -> None:
    file = tmp_path / "parameters.yaml"
    file.write_text("/**/segmentation_node: {ros__parameters: {max_key_interval: 7}}")
    arguments = {
        "image": "/front/image",
        "namespace": "car",
        "params_file": file,
        "checkpoint": checkpoint,
        "device": "cpu",
        "use_sim_time": "true",
    }
    given = [f"{name}:={value}" for name, value in arguments.items()]
    command = ["ros2", "launch", "lowlat_seg_ros", FILE.name, *given]
    process = subprocess.Popen(command)
    try:
        wait(lambda: observer.count_subscribers("/front/image") == 1, process)
        assert values(observer, ["max_key_interval", "use_sim_time", "device"]) == [7, True, "cpu"]
        assert observer.count_publishers("/car/segmentation_node/mask") == 1
    finally:
        process.send_signal(signal.SIGINT)
        status = process.wait(timeout=60)
    assert status == 0


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
