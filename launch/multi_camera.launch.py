"""``ros2 launch lowlat_seg_ros multi_camera.launch.py``: one node for several cameras."""

from pathlib import Path

from ament_index_python.packages import get_package_share_directory
from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, IncludeLaunchDescription

SHARE = Path(get_package_share_directory("lowlat_seg_ros"))
# Name: default and meaning, beside the arguments of segmentation.launch.py.
ARGUMENTS = {
    "cameras": ("front,left,right", "Names of the cameras, parts of the topics ~/<name>/mask."),
    "images": ("", "Their image topics in the same order; empty for /<name>/image_raw."),
    "params_file": (str(SHARE / "config" / "multi_camera.yaml"), "YAML file of parameters."),
}


def generate_launch_description() -> LaunchDescription:
    """The arguments, which the included file sees, and its node with one network for all."""
    return LaunchDescription(
        [
            *(
                DeclareLaunchArgument(name, default_value=default, description=meaning)
                for name, (default, meaning) in ARGUMENTS.items()
            ),
            IncludeLaunchDescription(str(SHARE / "launch" / "segmentation.launch.py")),
        ]
    )
