"""``ros2 launch lowlat_seg_ros segmentation.launch.py``: the node, and rviz2 if asked.

multi_camera.launch.py includes it and sets ``cameras`` and ``images``.
"""

import os
import sys
from pathlib import Path

from ament_index_python.packages import (
    PackageNotFoundError,
    get_package_prefix,
    get_package_share_directory,
)
from launch import LaunchContext, LaunchDescription
from launch.actions import (
    DeclareLaunchArgument,
    EmitEvent,
    OpaqueFunction,
    SetEnvironmentVariable,
)
from launch.events import Shutdown
from launch.events.process import ProcessExited
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue

from lowlat_seg_ros.config import ConfigError
from lowlat_seg_ros.ros import start

NODE = "segmentation_node"
CONFIG = Path(get_package_share_directory("lowlat_seg_ros")) / "config"
PROFILE_VARIABLES = ("FASTRTPS_DEFAULT_PROFILES_FILE", "FASTDDS_DEFAULT_PROFILES_FILE")
# Name: default and meaning. Those in PARAMETERS override params_file only if they are given.
ARGUMENTS = {
    "image": ("/camera/image_raw", "Topic of the camera images, sensor_msgs/Image."),
    "image_transport": (
        "",
        "How images come: raw, compressed, foxglove or ffmpeg; empty for params_file's.",
    ),
    "namespace": ("", "Namespace of the node and of its topics."),
    "params_file": (str(CONFIG / "segmentation.yaml"), "YAML file of the node's parameters."),
    "checkpoint": ("", "Weights, a .safetensors file; empty for params_file's."),
    "device": ("", "Where the network runs: auto, cpu, cuda, cuda:1; empty for params_file's."),
    "foreground_priority": (
        "",
        "Priority of frames: normal, or realtime if allowed; empty for params_file's.",
    ),
    "autostart": ("", "false: wait for lifecycle transitions; empty for params_file's."),
    "use_sim_time": ("", "true: follow /clock, for bags and simulators; else false."),
    "log_level": ("info", "Lowest level that is logged: debug, info, warn, error, fatal."),
    "rviz": ("false", "true: start rviz2 with the camera, the overlay and the mask."),
}
PARAMETERS = {
    **{"image_transport": str, "checkpoint": str, "device": str, "foreground_priority": str},
    **{"autostart": bool, "use_sim_time": bool},
}
# Parameters whose name differs from that of their argument.
PLACES = {"foreground_priority": "advanced.foreground_priority"}


def generate_launch_description() -> LaunchDescription:
    """Arguments, the DDS profile for large images unless the user has set one, and the nodes."""
    unset = [] if any(name in os.environ for name in PROFILE_VARIABLES) else PROFILE_VARIABLES
    profile = str(CONFIG / "fastdds_large_images.xml")
    return LaunchDescription(
        [
            OpaqueFunction(function=check_names),
            *(
                DeclareLaunchArgument(name, default_value=default, description=meaning)
                for name, (default, meaning) in ARGUMENTS.items()
            ),
            *(SetEnvironmentVariable(name, profile) for name in unset),
            OpaqueFunction(function=nodes),
        ]
    )


def check_names(context: LaunchContext) -> None:
    """Raise ConfigError for an unknown argument, which ros2 launch would ignore."""
    if start.names_file(sys.argv, __file__, "lowlat_seg_ros"):
        start.check_arguments(context.argv, ARGUMENTS)


def nodes(context: LaunchContext) -> list[Node]:
    """The nodes to start; all arguments have values now."""
    value = {name: LaunchConfiguration(name).perform(context) for name in ARGUMENTS}
    images = images_of(context)
    check(value, [topic for _, topic in images])
    given = {
        PLACES.get(name, name): ParameterValue(LaunchConfiguration(name), value_type=kind)
        for name, kind in PARAMETERS.items()
        if value[name]
    }
    if cameras := names(context, "cameras"):
        given["cameras"] = cameras
    segmentation = Node(
        package="lowlat_seg_ros",
        executable="segmentation_node",
        name=NODE,
        namespace=value["namespace"],
        parameters=[value["params_file"], *([given] if given else [])],
        remappings=[("image", value["image"]), *images],
        arguments=["--ros-args", "--log-level", value["log_level"]],
        output="screen",
        on_exit=end,
    )
    return [segmentation, *([rviz(value)] if start.flag("rviz", value["rviz"]) else [])]


def check(value: dict[str, str], images: list[str]) -> None:
    """Raise ConfigError for an impossible value before any process is started.

    launch would leave running what is already started.
    """
    # After := the shell leaves ~ as it is.
    value["params_file"] = os.path.expanduser(value["params_file"])
    start.choice("log_level", value["log_level"], start.LOG_LEVELS)
    for name in ("autostart", "use_sim_time"):
        start.flag(name, value[name])
    for topic in (value["image"], *images):
        start.check_name("image", topic)
    if namespace := value["namespace"].strip("/"):
        start.check_name("namespace", namespace)
    node = "/".join(["", *filter(None, [namespace, NODE])])
    for sentence in start.foreign_files([value["params_file"]], node, "params_file"):
        raise ConfigError(sentence)
    if start.flag("rviz", value["rviz"]):
        try:
            get_package_prefix("rviz2")
        except PackageNotFoundError as error:
            raise ConfigError(
                "rviz is true, but the package rviz2 is not installed; install it (apt install "
                f"ros-{os.environ.get('ROS_DISTRO', 'jazzy')}-rviz2), or leave rviz:=true out"
            ) from error


def images_of(context: LaunchContext) -> list[tuple[str, str]]:
    """For each of several cameras: its image topic in the node, and the one it is remapped to."""
    cameras, topics = names(context, "cameras"), names(context, "images")
    topics = topics or [f"/{camera}/image_raw" for camera in cameras]
    if len(topics) != len(cameras):
        raise ConfigError(
            f"{len(topics)} topics in images ({', '.join(topics)}) for {len(cameras)} cameras "
            f"({', '.join(cameras)}); give one for each, in the same order"
        )
    return [(f"{camera}/image", topic) for camera, topic in zip(cameras, topics, strict=True)]


def names(context: LaunchContext, argument: str) -> list[str]:
    """The names in an argument of multi_camera.launch.py; none if only this file was launched."""
    given = context.launch_configurations.get(argument, "")
    return [name.strip() for name in given.split(",") if name.strip()]


def end(event: ProcessExited, context: LaunchContext) -> list[EmitEvent]:
    """Nothing goes on without the node, so that whoever started this can start it again.

    Where the node failed, so does the launch, with status 1, as systemd and others go by that. With
    a Shutdown event it would end with 0; an exception shuts it down as well.
    """
    if context.is_shutdown:
        return []
    if event.returncode:
        raise RuntimeError(f"the node ended with status {event.returncode}; see its messages above")
    return [EmitEvent(event=Shutdown(reason="the node has ended"))]


def rviz(value: dict[str, str]) -> Node:
    """rviz2 on the topics of the node; its file has the default topics, which are remapped."""
    namespace = value["namespace"].strip("/")
    own = f"/{namespace}/segmentation_node" if namespace else "/segmentation_node"
    topics = {f"/segmentation_node/{name}": f"{own}/{name}" for name in ("overlay", "mask")}
    return Node(
        package="rviz2",
        executable="rviz2",
        namespace=namespace,
        arguments=["-d", str(CONFIG / "segmentation.rviz")],
        parameters=[{"use_sim_time": start.flag("use_sim_time", value["use_sim_time"])}],
        remappings=[("/camera/image_raw", value["image"]), *topics.items()],
    )
