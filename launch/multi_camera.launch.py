"""``ros2 launch lowlat_seg_ros multi_camera.launch.py``: one node for several cameras."""

import sys
from pathlib import Path

from ament_index_python.packages import get_package_share_directory
from launch import LaunchContext, LaunchDescription
from launch.actions import DeclareLaunchArgument, IncludeLaunchDescription, OpaqueFunction

from lowlat_seg_ros.config import ConfigError
from lowlat_seg_ros.ros import start

SHARE = Path(get_package_share_directory("lowlat_seg_ros"))
# Name: default and meaning, in addition to the arguments of segmentation.launch.py.
ARGUMENTS = {
    "cameras": ("front,left,right", "Names of the cameras; masks are on ~/<name>/mask."),
    "images": ("", "Image topics in the same order; empty for /<name>/image_raw."),
    "params_file": (str(SHARE / "config" / "multi_camera.yaml"), "YAML file of parameters."),
}


def generate_launch_description() -> LaunchDescription:
    """The arguments, which the included file sees, and its node, which serves all cameras."""
    description = LaunchDescription(
        [
            *(
                DeclareLaunchArgument(name, default_value=default, description=meaning)
                for name, (default, meaning) in ARGUMENTS.items()
            ),
            IncludeLaunchDescription(str(SHARE / "launch" / "segmentation.launch.py")),
        ]
    )
    known = [argument.name for argument in description.get_launch_arguments()]
    check = OpaqueFunction(function=check_arguments, args=[known])
    return LaunchDescription([check, *description.entities])


def check_arguments(context: LaunchContext, known: list[str]) -> None:
    """Raise ConfigError for an unknown argument, and if no camera is named."""
    if start.names_file(sys.argv, __file__, "lowlat_seg_ros"):
        start.check_arguments(context.argv, known)
    if not context.launch_configurations.get("cameras", "front").strip(" ,"):
        raise ConfigError("cameras is empty; name at least one, as in cameras:=front,left")
