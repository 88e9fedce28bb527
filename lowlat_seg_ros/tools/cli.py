"""``lowlat-seg``: one command for pictures and videos, the demo, bags, evaluation and training.

This file only composes. A subcommand is a module with two functions::

    def configure(parser: argparse.ArgumentParser) -> None: ...  # adds its options
    def run(args: argparse.Namespace) -> int: ...                # does it, returns the exit status

It is imported only when it is asked for, so that ``lowlat-seg --help`` is instant. What a user can
fix is raised as one of :func:`user_errors`, shown as one line, and ends with status 2.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from dataclasses import dataclass

import lowlat_seg_ros

EPILOG = """\
examples:
  lowlat-seg segment INPUT --out DIR    masks of your own picture, video, folder or camera
  lowlat-seg demo                       the node on a rendered drive; writes demo_output/
  lowlat-seg evaluate --help            methods to compare, on data with labels
  lowlat-seg benchmark --help           latency against the full network, on this machine
  lowlat-seg train base --help          the first of the three training stages
  lowlat-seg quantize --help            the step after training, for convolutions in 8 bits
  lowlat-seg calibrate --help           the step after that, for the expected accuracy of masks
  lowlat-seg render --out DIR           a rendered drive with exact labels, as images
  lowlat-seg bag --help                 the node's engine on bags, without ROS
  lowlat-seg COMMAND --help             the options of a command, and more examples

Sl is the light network that runs on every frame, Sh the heavy one that runs in the background on
some of them, the key frames. README.md and docs/method.md of the repository explain more.
"""


@dataclass(frozen=True)
class Command:
    """A subcommand: the ``module`` that implements it and one line of ``help``."""

    module: str
    help: str


COMMANDS = {
    "segment": Command(
        "lowlat_seg_ros.tools.segment",
        "masks and overlays of pictures, a video, a folder or a camera, without ROS",
    ),
    "demo": Command(
        "lowlat_seg_ros.tools.demo",
        "run the ROS 2 node on a clip and write a video, a chart and figures",
    ),
    "evaluate": Command(
        "lowlat_seg_ros.lab.evaluation.evaluate",
        "compare methods on labelled frames: accuracy, temporal consistency, latency",
    ),
    "benchmark": Command(
        "lowlat_seg_ros.tools.benchmark",
        "measure latency, refinements, kernels, scaling and memory against the full network",
    ),
    "train": Command(
        "lowlat_seg_ros.lab.training.cli",
        "train the network in three stages, or the methods to compare it with",
    ),
    "quantize": Command(
        "lowlat_seg_ros.lab.quantize",
        "prepare a trained network for convolutions in 8 bits",
    ),
    "calibrate": Command(
        "lowlat_seg_ros.lab.calibrate.command",
        "fit the model of the expected accuracy of masks, the last step before use",
    ),
    "render": Command(
        "lowlat_seg_ros.tools.render",
        "render a drive with exact labels, write it as images, and print the frame rate",
    ),
    "bag": Command(
        "lowlat_seg_ros.tools.bag.command",
        "make rosbag2 bags, run the node's engine on them without ROS, and write reports",
    ),
}


def main(argv: list[str] | None = None) -> int:
    """Run the command line ``argv`` (default: this process's own); returns the exit status."""
    argv = sys.argv[1:] if argv is None else argv
    try:
        args = parser_for(argv).parse_args(argv)
    except KeyboardInterrupt:  # imports may take a second
        return _interrupted()
    try:
        return int(importlib.import_module(COMMANDS[args.command].module).run(args))
    except KeyboardInterrupt:
        return _interrupted()
    except user_errors() as error:
        print(f"lowlat-seg {args.command}: {error}", file=sys.stderr)
        return 2


def _interrupted() -> int:
    print("lowlat-seg: interrupted", file=sys.stderr)
    return 130  # 128 + SIGINT, as shells have it


def parser_for(argv: list[str]) -> argparse.ArgumentParser:
    """The parser, with the options of the one subcommand that ``argv`` names."""
    parser = argparse.ArgumentParser(
        prog="lowlat-seg",
        description="Low-latency semantic segmentation of camera streams.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=lowlat_seg_ros.__version__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    named = next((word for word in argv if not word.startswith("-")), None)
    for name, command in COMMANDS.items():
        subparser = commands.add_parser(
            name,
            help=command.help,
            description=f"{command.help[0].upper()}{command.help[1:]}.",
            formatter_class=parser.formatter_class,  # epilogues are examples, to be kept as written
        )
        if name == named:
            importlib.import_module(command.module).configure(subparser)
    return parser


def user_errors() -> tuple[type[Exception], ...]:
    """The errors whose message tells the user what to do; imported late, as torch is slow."""
    from lowlat_seg_ros.config import ConfigError
    from lowlat_seg_ros.frames import FrameError
    from lowlat_seg_ros.lab.data.sequence import DataError
    from lowlat_seg_ros.network.checkpoint import CheckpointError
    from lowlat_seg_ros.ros.start import RosError

    return (ConfigError, DataError, FrameError, CheckpointError, RosError)


if __name__ == "__main__":
    sys.exit(main())
