"""What is wrong with how the node is started is said in one sentence, before anything starts."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lowlat_seg_ros.config import ConfigError
from lowlat_seg_ros.ros import start

CONFIG = Path(__file__).parents[1] / "config"
NODE = "/car/segmentation_node"
ROS = "ros__parameters: {autostart: false}"

# What a file of parameters may say, and how the sentence about it goes on.
WRONG_FILES = {
    "a: [1": "which is not YAML (line 1, column 6: expected ',' or ']'",
    "/**:\n\tros__parameters:": "which is not YAML (line 2, column 1: found character",
    "\0": "which is not YAML (",
    "": "which has no parameters of any node; write '/**/segmentation_node: {ros__parameters",
    "- 1": "which has no parameters of any node",
    "segmentation_node: {autostart: false}": "which has no parameters of any node",
    "/**: {ros__parameters: 3}": "which has no parameters of any node",
    f"other: {{{ROS}}}": f"which is for /other and has nothing for {NODE}; write",
}


@pytest.mark.parametrize(("content", "wanted"), WRONG_FILES.items())
def test_wrong_file_of_parameters(content: str, wanted: str, tmp_path: Path) -> None:
    path = tmp_path / "parameters.yaml"
    path.write_text(content)
    try:
        (found,) = start.foreign_files([str(path)], NODE)
    except ConfigError as error:
        found = str(error)
    assert found.startswith(f"--params-file is {path}, {wanted}")


def test_file_whose_parameters_are_all_comments_or_of_python(tmp_path: Path) -> None:
    for content in (
        "/**:\n  ros__parameters:\n",
        "/**: {ros__parameters: {a: !!python/tuple [1]}}",
    ):
        path = tmp_path / "parameters.yaml"
        path.write_text(content)
        assert start.foreign_files([str(path)], NODE) == []


def test_file_that_cannot_be_read(tmp_path: Path) -> None:
    for path in (tmp_path / "none.yaml", tmp_path):
        with pytest.raises(ConfigError, match=f"params_file is {path}, which cannot be read"):
            start.nodes_in("params_file", str(path))


PATTERNS = [
    "/**", "/*", "/*/segmentation_node", "/**/segmentation_node", "/car/*", "/car/**",
    "car/segmentation_node", "segmentation_node", "/segmentation_node", "/**/node", "/*/*/*",
    "/car/segmentation_node/**", "/bus/segmentation_node",
]  # fmt: skip


def test_names_of_nodes_are_matched_as_rcl_does_it(tmp_path: Path) -> None:
    pytest.importorskip("rclpy", reason="asks rcl itself")
    import rclpy
    from rclpy.context import Context
    from rclpy.node import Node

    files = []
    for index, name in enumerate(PATTERNS):
        files.append(str(tmp_path / f"{index}.yaml"))
        Path(files[-1]).write_text(f'"{name}": {{ros__parameters: {{p{index}: 1}}}}')
    context = Context()
    rclpy.init(
        args=["--ros-args", *(word for file in files for word in ("--params-file", file))],
        context=context,
    )
    node = Node(
        "segmentation_node", namespace="car", context=context,
        automatically_declare_parameters_from_overrides=True,
    )  # fmt: skip
    rcl = {name for i, name in enumerate(PATTERNS) if node.has_parameter(f"p{i}")}
    context.shutdown()
    own = {name for name, file in zip(PATTERNS, files, strict=True)
           if not start.foreign_files([file], NODE)}  # fmt: skip
    assert own == rcl
    assert 0 < len(own) < len(PATTERNS)


@pytest.mark.parametrize(
    ("name", "right"),
    [("/camera/image_raw", True), ("image", True), ("~/image", True), ("/a b", False),
     ("/a//b", False), ("/2nd", False), ("/a-b", False), ("", False), ("/a/", False)],
)  # fmt: skip
def test_names_of_topics(name: str, right: bool) -> None:
    if right:
        start.check_name("image", name)
    else:
        with pytest.raises(ConfigError, match=f"image is '{name}'; a name consists of letters"):
            start.check_name("image", name)


def test_misspelt_launch_argument_is_answered_with_the_right_one() -> None:
    known = ["image", "params_file", "rviz"]
    start.check_arguments(["image:=/a:=b", "launch-prefix:=gdb"], known)
    for word, close in (("imge:=/a", "image"), ("params-file:=x", "params_file")):
        with pytest.raises(
            ConfigError, match=rf"no launch argument .*did you mean {close}\? There"
        ):
            start.check_arguments([word], known)
    with pytest.raises(ConfigError, match="no launch argument speed; There are image, params"):
        start.check_arguments(["speed:=1"], known)


def test_arguments_of_a_file_that_includes_ours_are_its_own(tmp_path: Path) -> None:
    file = str(tmp_path / "x.launch.py")
    assert start.names_file(["ros2", "launch", "ours", "x.launch.py", "a:=b"], file, "ours")
    assert start.names_file(["ros2", "launch", file], file, "ours")
    assert not start.names_file(["ros2", "launch", "theirs", "x.launch.py"], file, "ours")
    assert not start.names_file(["ros2", "launch", "ours", "y.launch.py"], file, "ours")


def test_values_of_launch_arguments() -> None:
    assert [start.flag("rviz", text) for text in ("true", "True", "false", "")] == [1, 1, 0, 0]
    assert start.choice("log_level", "INFO", start.LOG_LEVELS) == "info"
    with pytest.raises(ConfigError, match="rviz is 'yes'; choose one of true, false"):
        start.flag("rviz", "yes")


# Words after --ros-args, and what the node says before it ends with status 1.
WRONG_WORDS = {
    "--log-level loud": "'--log-level loud'. Error: Argument does not use a valid severity level; "
    "choose one of debug, info, warn, error, fatal",
    "-r image:=a-b": "a name consists of letters, digits, _ and /",
    "-p x:=[1": "write -p NAME:=VALUE, the value as in YAML",
    "--bogus": "there is no ROS argument '--bogus'; leave it out",
    "--params-file": "Couldn't parse trailing --params-file flag",
    "--params-file /nope.yaml": "--params-file is /nope.yaml, which cannot be read (no such file",
    "--params-file OTHER": "which is for /other and has nothing for /segmentation_node",
    "--params-file MIXED": "do not belong at line_num 1; correct that line",
}


@pytest.mark.parametrize(("words", "wanted"), WRONG_WORDS.items())
def test_wrong_command_line_is_told_in_one_line(
    words: str, wanted: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for name, text in {
        "OTHER": f"other: {{{ROS}}}",
        "MIXED": "/**: {ros__parameters: {a: [1, b]}}",
    }.items():
        (tmp_path / name).write_text(text)
        words = words.replace(name, str(tmp_path / name))
    assert wanted in why_not_started(words.split(), capfd)


@pytest.mark.parametrize(
    ("environment", "wanted"),
    [
        ({"ROS_LOG_DIR": "/dev/null/log"}, "set ROS_LOG_DIR to a folder that can be written"),
        (
            {"ROS_SECURITY_ENABLE": "true", "ROS_SECURITY_STRATEGY": "Enforce"},
            "make an enclave, and name it in ROS_SECURITY_ENCLAVE_OVERRIDE",
        ),
    ],
)
def test_environment_in_which_ros_does_not_start_is_told_in_one_line(
    environment: dict[str, str],
    wanted: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("ROS_SECURITY_KEYSTORE", str(tmp_path))
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert wanted in why_not_started([], capfd)


def why_not_started(words: list[str], capfd: pytest.CaptureFixture[str]) -> str:
    """The only line of [FATAL] of a node that ends with 1 after these ROS arguments."""
    pytest.importorskip("rclpy", reason="needs ROS 2")
    import rclpy

    from lowlat_seg_ros.ros import node

    before = signal.getsignal(signal.SIGTERM)
    try:
        assert node.main(["--ros-args", *words]) == 1
    finally:
        signal.signal(signal.SIGTERM, before)
        rclpy.try_shutdown()
    error = capfd.readouterr().err
    (fatal,) = [line for line in error.splitlines() if "[FATAL]" in line]
    assert "Cannot start: " in fatal
    assert "Traceback" not in error
    return fatal


@pytest.mark.slow
def test_interrupted_while_importing_it_ends_quietly() -> None:
    pytest.importorskip("rclpy", reason="needs ROS 2")
    command = [sys.executable, "-X", "importtime", "-m", "lowlat_seg_ros.ros"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        lines = []
        for line in process.stderr:
            lines.append(line)
            if line.endswith("| torch.version\n") or " torch." in line:  # PyTorch is half loaded
                break
        process.send_signal(signal.SIGINT)
        lines += process.stderr.readlines()
    assert process.returncode == 0
    assert all(line.startswith("import time:") for line in lines)
