"""``lowlat-seg bag play``: a bag over DDS, where there is no ``ros2 bag play``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import suppress
from itertools import count
from pathlib import Path

from lowlat_seg_ros.config import ConfigError
from lowlat_seg_ros.ros.environment import require_ros

EXAMPLES = """\
examples:
  lowlat-seg bag play drive --rate 3          three times as fast as it was recorded
  lowlat-seg bag play drive --loops 0         again and again, until Ctrl-C

All topics whose messages' packages are installed are published, and /clock, in the ROS domain of
ROS_DOMAIN_ID. Whoever listens must go by /clock: set use_sim_time.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EXAMPLES
    parser.add_argument("bag", type=Path, metavar="BAG", help="bag to play")
    add_pace(parser)


def add_pace(parser: argparse.ArgumentParser) -> None:
    """Add ``--rate`` and ``--loops``."""
    parser.add_argument(
        "--rate", type=float, default=1.0, metavar="FACTOR",
        help="times as fast as it was recorded (default %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--loops", type=int, default=1, metavar="N",
        help="times that it is played; the clock jumps back each time (default %(default)s)",
    )  # fmt: skip


def check_pace(args: argparse.Namespace, least_loops: int) -> None:
    """Raise ConfigError for a rate or a number of loops that cannot be."""
    if not 0.01 <= args.rate <= 100.0:
        raise ConfigError(f"--rate is {args.rate}; it must lie in [0.01, 100]")
    if args.loops < least_loops:
        raise ConfigError(f"--loops is {args.loops}; it must be {least_loops} or more")


def loops(number: int) -> Iterator[int]:
    """0, 1, ... for each time that a bag is to be played; without end if ``number`` is 0."""
    return iter(range(number)) if number else count()


def run(args: argparse.Namespace) -> int:
    """Play it; DataError where the bag cannot be read."""
    check_pace(args, least_loops=0)
    require_ros()
    from lowlat_seg_ros.tools.bag.player import BagPlayer
    from lowlat_seg_ros.tools.bag.storage import BagReader
    from lowlat_seg_ros.tools.live import spun_node

    with BagReader(args.bag) as bag, spun_node("bag_player") as node:
        player = BagPlayer(node, bag, args.rate)
        for name in player.unknown:
            print(f"Left out, as its package is not installed: {name}", file=sys.stderr)
        messages = 0
        with suppress(KeyboardInterrupt):  # how it is meant to end where it goes on for ever
            for _ in loops(args.loops):
                for _ in player.play():
                    messages += 1
    print(f"{messages} messages played")
    return 0
