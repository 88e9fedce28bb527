"""``ros2 launch lowlat_seg_ros replay.launch.py``: the node on a bag, or on a data set as a bag."""

import importlib.util
import os
import posixpath
import shutil
import sys
import tempfile
from pathlib import Path

from ament_index_python.packages import get_package_share_directory
from launch import Action, LaunchContext, LaunchDescription
from launch.actions import (
    DeclareLaunchArgument,
    ExecuteProcess,
    IncludeLaunchDescription,
    LogInfo,
    OpaqueFunction,
    RegisterEventHandler,
    TimerAction,
)
from launch.event_handlers import OnProcessExit, OnShutdown
from launch.events.process import ProcessExited
from launch.substitutions import LaunchConfiguration
from launch_ros.ros_adapters import get_ros_node

from lowlat_seg_ros.config import ConfigError
from lowlat_seg_ros.messages import TRANSPORTS
from lowlat_seg_ros.ros import start

LAUNCH = Path(get_package_share_directory("lowlat_seg_ros")) / "launch"
# Name: default and meaning, in addition to the arguments of segmentation.launch.py.
ARGUMENTS = {
    "bag": ("", "Folder of a rosbag2 bag with images on the topic of the argument image."),
    "dataset": ("drive", "Without a bag: drive (rendered), camvid, cityscapes or folder."),
    "root": ("", "Folder of the data set."),
    "rate": ("1.0", "Playing speed; 2.0 is twice as fast as recorded."),
    "loop": ("false", "true: play it again and again."),
}
DATASETS = ("drive", "camvid", "cityscapes", "folder")
CLOCK_HZ = "100"
# How long to wait between looking for the node's subscription.
POLL_S = 0.2


def generate_launch_description() -> LaunchDescription:
    """The arguments, the node, which follows the clock of the bag, and the bag."""
    node = IncludeLaunchDescription(
        str(LAUNCH / "segmentation.launch.py"), launch_arguments={"use_sim_time": "true"}.items()
    )
    arguments = [
        DeclareLaunchArgument(name, default_value=default, description=meaning)
        for name, (default, meaning) in ARGUMENTS.items()
    ]
    known = [a.name for a in LaunchDescription([*arguments, node]).get_launch_arguments()]
    check_first = OpaqueFunction(function=check, args=[known])
    return LaunchDescription([*arguments, check_first, node, OpaqueFunction(function=prepare)])


def check(context: LaunchContext, known: list[str]) -> None:
    """Raise ConfigError for an unknown argument or an impossible value, before anything starts."""
    if start.names_file(sys.argv, __file__, "lowlat_seg_ros"):
        start.check_arguments(context.argv, known)
    for name in ("bag", "root"):
        if (path := path_of(context, name)) and not Path(path).exists():
            raise ConfigError(f"{name} is {path}, which does not exist; check the path")
    start.choice("dataset", value(context, "dataset"), DATASETS)
    start.flag("loop", value(context, "loop"))
    try:
        fits = 0 < float(value(context, "rate")) < float("inf")
    except ValueError:
        fits = False
    if not fits:
        raise ConfigError(f"rate is {value(context, 'rate')!r}; give a number above 0, such as 0.5")
    players = ("rosbag2_py", "rosbags")
    if not any(importlib.util.find_spec(name) for name in players):
        raise ConfigError(
            "nothing plays bags here; install ros2 bag (apt install "
            f"ros-{os.environ.get('ROS_DISTRO', 'jazzy')}-ros2bag), or 'pip install rosbags'"
        )


def prepare(context: LaunchContext) -> list[Action]:
    """Play the bag, or make one of the data set first."""
    if bag := path_of(context, "bag"):
        return [OpaqueFunction(function=play, args=[bag])]
    folder = tempfile.mkdtemp(prefix="lowlat_seg_ros_")
    bag = str(Path(folder) / "bag")
    command = ["lowlat-seg", "bag", "make", "--dataset", value(context, "dataset"), "--out", bag]
    command += ["--root", root] if (root := path_of(context, "root")) else []
    topic = posixpath.join("/", value(context, "namespace"), value(context, "image"))
    command += ["--image-topic", topic]

    def go_on(event: ProcessExited, context: LaunchContext) -> list[Action]:
        if event.returncode == 0:
            return [OpaqueFunction(function=play, args=[bag])]
        if context.is_shutdown:
            return []
        raise RuntimeError("the data set could not be made a bag; see the messages above")

    def clean_up(*_: object) -> None:
        shutil.rmtree(folder, ignore_errors=True)

    make = ExecuteProcess(cmd=command, output="screen", name="make_bag")
    return [
        RegisterEventHandler(OnProcessExit(target_action=make, on_exit=go_on)),
        RegisterEventHandler(OnShutdown(on_shutdown=clean_up)),
        make,
    ]


def play(context: LaunchContext, bag: str) -> list[Action]:
    """Play ``bag`` as soon as the node listens, which it does after loading and warming up."""
    node = get_ros_node(context)
    image = posixpath.join("/", value(context, "namespace"), value(context, "image"))
    topics = [image + transport.below for transport in TRANSPORTS.values()]
    if not any(node.count_subscribers(topic) for topic in topics):
        return [TimerAction(period=POLL_S, actions=[OpaqueFunction(function=play, args=[bag])])]
    loop = start.flag("loop", value(context, "loop"))
    if importlib.util.find_spec("rosbag2_py") is not None:
        command = ["ros2", "bag", "play", bag, "--clock", CLOCK_HZ, "--disable-keyboard-controls"]
        command += ["--loop"] if loop else []
    else:  # ROS 2 from PyPI has no `ros2 bag`
        command = ["lowlat-seg", "bag", "play", bag, "--loops", "0" if loop else "1"]
    command += ["--rate", value(context, "rate")]
    player = ExecuteProcess(cmd=command, output="screen", name="play_bag")
    return [RegisterEventHandler(OnProcessExit(target_action=player, on_exit=played)), player]


def played(event: ProcessExited, context: LaunchContext) -> list[Action]:
    """After the bag the node goes on; a bag that cannot be played ends the launch, status 1."""
    if context.is_shutdown:
        return []
    if event.returncode == 0:
        return [LogInfo(msg="The bag is at its end; Ctrl-C ends the node.")]
    raise RuntimeError("the bag could not be played; see the messages above")


def path_of(context: LaunchContext, name: str) -> str:
    """A path that is given; after := the shell leaves ~ as it is."""
    return os.path.expanduser(value(context, name))


def value(context: LaunchContext, name: str) -> str:
    """What is given for an argument, or its default."""
    return LaunchConfiguration(name).perform(context)
