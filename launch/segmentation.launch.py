"""``ros2 launch lowlat_seg_ros segmentation.launch.py``: the node, and rviz2 if asked.

multi_camera.launch.py includes it and sets ``cameras`` and ``images``.
"""

import os
from pathlib import Path

from ament_index_python.packages import get_package_share_directory
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

CONFIG = Path(get_package_share_directory("lowlat_seg_ros")) / "config"
PROFILE_VARIABLES = ("FASTRTPS_DEFAULT_PROFILES_FILE", "FASTDDS_DEFAULT_PROFILES_FILE")
# Name: default and meaning. Those of PARAMETERS override params_file only where they are given.
ARGUMENTS = {
    "image": ("/camera/image_raw", "Topic of the camera images, sensor_msgs/Image."),
    "image_transport": ("", "How images come: raw, compressed; empty for params_file's."),
    "namespace": ("", "Namespace of the node and of its topics."),
    "params_file": (str(CONFIG / "segmentation.yaml"), "YAML file of the node's parameters."),
    "checkpoint": ("", "Weights, a .safetensors file; empty for params_file's."),
    "device": ("", "Where the network runs: auto, cpu, cuda, cuda:1; empty for params_file's."),
    "autostart": ("", "false to wait for lifecycle transitions; empty for params_file's."),
    "use_sim_time": ("", "true for the clock of /clock, for bags and simulators; else false."),
    "log_level": ("info", "What is logged: debug, info, warn, error, fatal."),
    "rviz": ("false", "true to start rviz2 with the camera, the overlay and the mask."),
}
PARAMETERS = {
    **{"image_transport": str, "checkpoint": str, "device": str},
    **{"autostart": bool, "use_sim_time": bool},
}


def generate_launch_description() -> LaunchDescription:
    """The arguments, the DDS profile for large images unless the user set one, and the nodes."""
    unset = [] if any(name in os.environ for name in PROFILE_VARIABLES) else PROFILE_VARIABLES
    profile = str(CONFIG / "fastdds_large_images.xml")
    return LaunchDescription(
        [
            *(
                DeclareLaunchArgument(name, default_value=default, description=meaning)
                for name, (default, meaning) in ARGUMENTS.items()
            ),
            *(SetEnvironmentVariable(name, profile) for name in unset),
            OpaqueFunction(function=nodes),
        ]
    )


def nodes(context: LaunchContext) -> list[Node]:
    """The nodes to start, the arguments being known."""
    value = {name: LaunchConfiguration(name).perform(context) for name in ARGUMENTS}
    given = {
        name: ParameterValue(LaunchConfiguration(name), value_type=kind)
        for name, kind in PARAMETERS.items()
        if value[name]
    }
    if cameras := names(context, "cameras"):
        given["cameras"] = cameras
    segmentation = Node(
        package="lowlat_seg_ros",
        executable="segmentation_node",
        name="segmentation_node",
        namespace=value["namespace"],
        parameters=[value["params_file"], *([given] if given else [])],
        remappings=[("image", value["image"]), *images_of(context)],
        arguments=["--ros-args", "--log-level", value["log_level"]],
        output="screen",
        on_exit=end,
    )
    return [segmentation, *([rviz(value)] if value["rviz"].lower() == "true" else [])]


def images_of(context: LaunchContext) -> list[tuple[str, str]]:
    """Where the images of each of several cameras come from."""
    cameras, topics = names(context, "cameras"), names(context, "images")
    topics = topics or [f"/{camera}/image_raw" for camera in cameras]
    if len(topics) != len(cameras):
        raise ValueError(
            f"{len(topics)} topics in images ({', '.join(topics)}) for {len(cameras)} cameras "
            f"({', '.join(cameras)}); give one for each, in the same order"
        )
    return [(f"{camera}/image", topic) for camera, topic in zip(cameras, topics, strict=True)]


def names(context: LaunchContext, argument: str) -> list[str]:
    """The parts of an argument of multi_camera.launch.py, none where only this file was started."""
    given = context.launch_configurations.get(argument, "")
    return [name.strip() for name in given.split(",") if name.strip()]


def end(_: ProcessExited, context: LaunchContext) -> list[EmitEvent]:
    """Nothing goes on without the node, so that whoever started this can start it again."""
    return [] if context.is_shutdown else [EmitEvent(event=Shutdown(reason="the node has ended"))]


def rviz(value: dict[str, str]) -> Node:
    """rviz2 on the topics of the segmentation node; its file names those of the defaults."""
    namespace = value["namespace"].strip("/")
    own = f"/{namespace}/segmentation_node" if namespace else "/segmentation_node"
    topics = {f"/segmentation_node/{name}": f"{own}/{name}" for name in ("overlay", "mask")}
    return Node(
        package="rviz2",
        executable="rviz2",
        namespace=namespace,
        arguments=["-d", str(CONFIG / "segmentation.rviz")],
        parameters=[{"use_sim_time": value["use_sim_time"].lower() == "true"}],
        remappings=[("/camera/image_raw", value["image"]), *topics.items()],
    )
