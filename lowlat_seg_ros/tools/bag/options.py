"""Options that more than one action of ``lowlat-seg bag`` has."""

from __future__ import annotations

import argparse

#: Kinds of storage of a bag, by the names that ROS 2 gives them.
STORAGES = ("mcap", "sqlite3")


def storage(parser: argparse.ArgumentParser) -> None:
    """Add ``--storage``."""
    parser.add_argument(
        "--storage",
        choices=STORAGES,
        default=STORAGES[0],
        help="how the bag is stored; Foxglove opens mcap (default %(default)s)",
    )
