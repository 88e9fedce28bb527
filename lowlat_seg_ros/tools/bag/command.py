"""``lowlat-seg bag make|run|report|play|live``: bags, the node's offline twin, the live node."""

from __future__ import annotations

import argparse
import importlib
from types import ModuleType

EXAMPLES = """\
examples:
  lowlat-seg bag make --out drive                    a rendered drive as a rosbag2 bag, with labels
  lowlat-seg bag run drive --out masks               the node's engine on it, in virtual time
  lowlat-seg bag report masks --out report           figures as JSON, and a page to look through
  lowlat-seg bag live drive --rate 3                 the same bag into the live node, over DDS

Bags are rosbag2 folders (mcap or sqlite3), as ros2 bag and Foxglove read them. Only play and live
need ROS.
"""

#: Each is a module with configure() and run(), imported when it is asked for, and its help.
ACTIONS = {
    "make": (
        "lowlat_seg_ros.tools.bag.make",
        "write a drive with labels, or a video file, as a bag",
    ),
    "run": (
        "lowlat_seg_ros.tools.bag.run",
        "segment a bag's images with the node's engine, without ROS",
    ),
    "report": (
        "lowlat_seg_ros.tools.bag.report",
        "figures and a page of a bag with masks and frame reports",
    ),
    "play": ("lowlat_seg_ros.tools.bag.play", "publish a bag over DDS, with its clock"),
    "live": (
        "lowlat_seg_ros.tools.bag.live",
        "play a bag into the live node, every image accounted for",
    ),
}


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the actions and their options."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EXAMPLES
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    for name, (_, text) in ACTIONS.items():
        sentence = f"{text[0].upper()}{text[1:]}."
        action = actions.add_parser(name, help=text, description=sentence)
        _module(name).configure(action)


def run(args: argparse.Namespace) -> int:
    """Do what was asked for; returns the exit status."""
    return int(_module(args.action).run(args))


def _module(name: str) -> ModuleType:
    return importlib.import_module(ACTIONS[name][0])
