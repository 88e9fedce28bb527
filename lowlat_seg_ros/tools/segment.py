"""``lowlat-seg segment``: masks of one's own pictures, videos and cameras, without ROS."""

from __future__ import annotations

import argparse
from pathlib import Path

from lowlat_seg_ros.config import ConfigError, EngineConfig, SettingError
from lowlat_seg_ros.lab.arguments import add_network

EXAMPLES = """\
examples:
  lowlat-seg segment street.jpg --out out              one picture
  lowlat-seg segment drive.mp4 --out out               a video, frame by frame
  lowlat-seg segment drive.mp4 --out out --every 30    one frame in 30 of it
  lowlat-seg segment photos --out out --stills         a folder of unrelated pictures
  lowlat-seg segment 0 --out out --max-frames 300      the camera /dev/video0; Ctrl-C ends it, too

A video, a camera, and a folder whose pictures all have one size are segmented as a sequence: as in
the node, the heavy network (Sh) runs in the background, and its features are propagated from frame
to frame. A frame waits for Sh only if it is the first one, if it comes more than a second after the
frame before, or if it is not part of a sequence.

The network runs at the height of its training images, where objects have the size that it knows;
larger pictures would also take longer. Masks have the input's size in any case.

written to --out:
  masks/NAME.png      class ids (mono8)
  overlays/NAME.jpg   of pictures and folders: the classes' colours over the input, with their names
  overlay.mp4         the same as a video, of a video, a camera, or a folder in order
  summary.json        frames, latency, kinds of masks, share of each class, names of the ids

exit status: 0 when done; 2 when something must be fixed first
"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EXAMPLES
    add = parser.add_argument
    # fmt: off
    add("input", type=Path, metavar="INPUT",
        help="picture, video, folder of pictures, or camera: a number, or /dev/videoN")
    add("--out", type=Path, required=True, metavar="DIR", help="folder to write to")
    add_network(parser)
    add("--inference-height", type=int, metavar="PX",
        help="height at which the network runs, 0 for the input's own (default: that of its "
        "training images, which is the width in portrait formats)")
    add("--stills", action="store_true", help="the pictures of a folder are unrelated, no sequence")
    add("--rate", type=float, metavar="HZ",
        help="frames per second of a folder (default 10), or of a video instead of its own times")
    add("--every", type=int, default=1, metavar="N", help="segment one frame in N (default: all)")
    add("--max-frames", type=int, default=0, metavar="N",
        help="end after N masks, 0 for no limit (default %(default)s)")
    add("--alpha", type=float, default=0.5, metavar="SHARE",
        help="opacity of the classes' colours in an overlay, 0 to 1 (default %(default)s)")
    add("--mask-only", action="store_true", help="write no overlays")
    # fmt: on


def run(args: argparse.Namespace) -> int:
    try:
        EngineConfig(inference_height=args.inference_height or 0)
    except SettingError as error:
        raise ConfigError(f"--inference-height {error.problem}") from error
    if args.rate is not None and not 0.0 < args.rate <= 1000.0:
        raise ConfigError(f"--rate is {args.rate}; it must lie in (0, 1000] Hz")
    if args.every < 1:
        raise ConfigError(f"--every is {args.every}; it must be 1 or more")
    if args.max_frames < 0:
        raise ConfigError(f"--max-frames is {args.max_frames}; give a number, or 0 for no limit")
    if not 0.0 <= args.alpha <= 1.0:
        raise ConfigError(f"--alpha is {args.alpha}; it must lie in [0, 1]")
    from lowlat_seg_ros.tools.segment_run import segment_all  # late: it imports torch

    return segment_all(args)
