"""``lowlat-seg bag make|run|report``: bags, and the node's offline twin."""

from __future__ import annotations

import argparse
import importlib
from types import ModuleType

EXAMPLES = """\
examples:
  lowlat-seg bag make --out drive                    a rendered drive as a rosbag2 bag, with labels
  lowlat-seg bag run drive --out masks               the node's engine on it, in virtual time
  lowlat-seg bag report masks --out report           figures as JSON, and a page to look through

Bags are rosbag2 folders (mcap or sqlite3), as ros2 bag and Foxglove read them. No ROS is needed.
"""

#: Each is a module of this folder with configure() and run(), imported when it is asked for.
ACTIONS = {
    "make": "write a drive with labels, or a video file, as a bag",
    "run": "segment a bag's images with the node's engine, without ROS",
    "report": "figures and a page of a bag with masks and frame reports",
}


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the actions and their options."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EXAMPLES
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    for name, text in ACTIONS.items():
        action = actions.add_parser(name, help=text, description=f"{text.capitalize()}.")
        _module(name).configure(action)


def run(args: argparse.Namespace) -> int:
    """Do what was asked for; returns the exit status."""
    return int(_module(args.action).run(args))


def _module(name: str) -> ModuleType:
    return importlib.import_module(f"lowlat_seg_ros.bags.{name}")
