"""``lowlat-seg bag live``: a bag into the live node over DDS, every image accounted for."""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path

from lowlat_seg_ros.arguments import add_network, add_settings, settings_from
from lowlat_seg_ros.config import EngineConfig
from lowlat_seg_ros.ros.environment import isolate, require_ros
from lowlat_seg_ros.tools.bag import topics
from lowlat_seg_ros.tools.bag.play import add_pace, check_pace

EXAMPLES = """\
examples:
  lowlat-seg bag live drive                       at the pace of the bag
  lowlat-seg bag live drive --rate 3 --loops 2    three times as fast, and twice

The node runs in a process and on a ROS domain of its own, by the bag's clock (use_sim_time),
as it does beside 'ros2 bag play --clock'. Images that come while it is busy are superseded, and
counted. When the bag begins again the clock jumps back, and the node must start afresh.

exit status: 0 when done; 1 when images are unaccounted for; 2 when something must be mended first
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EXAMPLES
    parser.add_argument("bag", type=Path, metavar="BAG", help="bag with a camera's images")
    add_pace(parser)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there as well")
    parser.add_argument(
        "--log", type=Path, metavar="FILE", help="what the node says (default: told if it fails)"
    )
    add_network(parser)
    topics.configure(parser, "image")
    add_settings(parser, EngineConfig)


def run(args: argparse.Namespace) -> int:
    """Play, count, tell; 1 if an image is unaccounted for."""
    check_pace(args, least_loops=1)
    config = settings_from(args, EngineConfig)
    require_ros()
    isolate()
    # What stops this program with SIGTERM must stop the node as well.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    from lowlat_seg_ros.lab.evaluation.summary import write_json
    from lowlat_seg_ros.tools.replay import replay, summary  # late: they import rclpy

    found = replay(args, config)
    print(summary(found))
    if args.json is not None:
        write_json(args.json, found.as_json())
    return 0 if found.account.unaccounted == 0 else 1
