"""``lowlat-seg demo``: a clip through the live node, with a video, a chart and figures."""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path

from lowlat_seg_ros.config import ConfigError, EngineConfig
from lowlat_seg_ros.lab.arguments import add_network, add_settings, settings_from
from lowlat_seg_ros.lab.data import dataset
from lowlat_seg_ros.ros.start import isolate, require_ros

EXAMPLES = """\
examples:
  lowlat-seg demo                                    a rendered drive, with labels
  lowlat-seg demo --seed 7 --frames 100 --rate 8     another, longer one, with a faster camera
  lowlat-seg demo --dataset camvid --root DIR        the labelled clip of CamVid (split val)
  lowlat-seg demo --deviation-threshold 0.05         more key frames
  lowlat-seg demo --checkpoint FILE --device cuda    other weights, on a GPU

The node runs in a process of its own, on a ROS domain of its own that only this machine sees.
Images are stamped when they are played, as a camera does. A clip that was recorded at another rate
is played faster or slower. Frames that come while the node is busy are replaced by newer ones
(superseded) and counted; if a frame is unaccounted for, the demo fails.

written to --out:
  overlay.mp4    input beside mask; where each mask comes from, and its latency
  latency.png    each frame's stages; key frames; the predicted deviation against the threshold
  summary.json   percentiles, accuracy against the labels, key frames, counters, the machine
  node.log       what the node said

exit status: 0 when done; 1 when frames are unaccounted for; 2 when something must be fixed first
"""

#: A camera of 5 Hz leaves room for the fast track and Sh on slow machines, too.
RATE_HZ = 5.0


def configure(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EXAMPLES
    dataset.configure(parser)
    parser.set_defaults(frames=dataset.RENDERED_FRAMES)  # ten seconds
    add = parser.add_argument
    # fmt: off
    add("--rate", type=float, default=RATE_HZ, metavar="HZ",
        help="rate of the camera; the default suits slow machines, too (default %(default)s)")
    add_network(parser)
    add("--out", type=Path, default=Path("demo_output"), metavar="DIR",
        help="folder of the results (default %(default)s)")
    add_settings(parser, EngineConfig)
    # fmt: on


def run(args: argparse.Namespace) -> int:
    """Play, record, measure, write; 1 if a frame is unaccounted for."""
    dataset.check(args)
    if args.frames == 1:
        raise ConfigError(f"--frames is {args.frames}; play at least 2")
    config = settings_from(args, EngineConfig)
    require_ros()
    isolate()
    # What stops this program with SIGTERM must stop the node as well.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    from lowlat_seg_ros.tools.demo_run import run_demo  # late: it imports rclpy

    return run_demo(args, config)
