"""``lowlat-seg bag make|run|report|play|live``: their options, the topics, and what each calls."""

from __future__ import annotations

import argparse
import importlib
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

from lowlat_seg_ros.config import EngineConfig
from lowlat_seg_ros.lab.arguments import add_network, add_settings
from lowlat_seg_ros.lab.data import dataset
from lowlat_seg_ros.ros.start import isolate, require_ros

#: Kinds of storage of a bag, by the names that ROS 2 gives them.
STORAGES = ("mcap", "sqlite3")

#: Frames that Sh takes in virtual time: about a quarter of a second at 15 Hz.
DELAY_FRAMES = 4

#: The node's name, and the topic of time.
NODE, CLOCK = "/segmentation_node", "/clock"

#: What the topics are, by the names of their fields in :class:`Topics`.
TOPICS = {
    "image": "of the camera's images",
    "label": "of the labels",
    "mask": "of the masks",
    "report": "of the frame reports",
    "statistics": "of the node's counts",
    "confidence": "of the confidence of masks, mono8",
}

#: Frames with pictures on the page of a report: 50 of 480x360 make about 5 MB.
PICTURES = 50

EXAMPLES = """\
examples:
  lowlat-seg bag make --out drive                    a rendered drive as a rosbag2 bag, with labels
  lowlat-seg bag run drive --out masks               the node's engine on it, in virtual time
  lowlat-seg bag report masks --out report           figures as JSON, and a page to look through
  lowlat-seg bag live drive --rate 3                 the same bag into the live node, over DDS

Bags are rosbag2 folders (mcap or sqlite3), which ros2 bag and Foxglove read. Only play and
live need ROS.
"""

MAKE = """\
examples:
  lowlat-seg bag make --out BAG                                 a rendered drive with exact labels
  lowlat-seg bag make --dataset camvid --root DIR --out BAG     CamVid's labelled clip
  lowlat-seg bag make --dataset cityscapes --root DIR --split val --drive NAME --out BAG
  lowlat-seg bag make --video drive.mp4 --size 360x480 --out BAG

written to the bag: images (rgb8), labels (mono8 class ids, 255 for unlabelled; none for a video)
and /clock, each stamped with the frame's time, which starts at 1 s
"""

RUN = """\
examples:
  lowlat-seg bag run drive --out masks                     every image, masks the same on each run
  lowlat-seg bag run drive --out masks --copy /odom        and a copy of another topic
  lowlat-seg bag run drive --out masks --latency-ms 120    as on a machine with this latency
  lowlat-seg bag run bags/* --out masks                    many, each into masks/<its name>
  lowlat-seg bag run bags/* --out masks --ray auto         the same on a Ray cluster
  lowlat-seg bag run drive --out masks --time real         as fast as this machine is, at the
                                                           bag's own pace, as the node would do

time:
  virtual   Sh takes --delay-frames frames, and each mask --latency-ms. Nothing depends on the speed
            of this machine, except the times of the stages, which are measured
  real      images come when they were recorded, and Sh runs in the background. While the engine is
            busy only the newest image waits; those that it replaces are counted

written to OUT:
  IN's images, camera infos, transforms and clock, and the topics of --copy
  for each image segmented: a mask (mono8 class ids), its confidence (mono8; 255 is 1) and a
    FrameReport, with the image's stamp and recorded at the time when the mask was published
  Statistics of all images so far, once a second and at the end
  metadata.yaml, which also says how the masks were made
  summary.json, if there are several INs: one table over all of them

exit status: 0 when done; 1 when a bag gave no mask; 2 when something must be fixed first
"""

REPORT = """\
examples:
  lowlat-seg bag report masks --out report        on what 'lowlat-seg bag run' wrote
  lowlat-seg bag report recorded --out report     on what 'ros2 bag record' recorded of the live
                                                  node: images, ~/mask, ~/frame_report and
                                                  ~/statistics

written to --out:
  report.json   the figures of ros2_benchmark; percentiles of latency and stages; what became of
                each image; if there are labels, the accuracy of masks (docs/bags.md)
  report.html   one file that needs no network: stages of each frame, key frames, deviation against
                threshold, superseded images; a slider over frames with input, overlay, confidence
"""

PLAY = """\
examples:
  lowlat-seg bag play drive --rate 3          three times as fast as it was recorded
  lowlat-seg bag play drive --loops 0         again and again, until Ctrl-C

For a machine without ros2 bag, such as one with ROS 2 from PyPI. All topics whose messages'
packages are installed are published, and /clock, in the ROS domain of ROS_DOMAIN_ID. Subscribers
must follow /clock: set use_sim_time.
"""

LIVE = """\
examples:
  lowlat-seg bag live drive                       at the pace of the bag
  lowlat-seg bag live drive --rate 3 --loops 2    three times as fast, and twice

The node runs in a process and on a ROS domain of its own and follows the bag's clock
(use_sim_time), as with 'ros2 bag play --clock'. Images that come while it is busy are replaced by
newer ones (superseded) and counted. When the bag begins again, the clock jumps back and the node
resets.

exit status: 0 when done; 1 when images are unaccounted for; 2 when something must be fixed first
"""


@dataclass(frozen=True)
class Topics:
    """Where a bag has a camera's images, their labels, and what the node made of them."""

    image: str = "/camera/image_raw"  # as the launch file has it
    label: str = "/camera/label"
    mask: str = f"{NODE}/mask"
    report: str = f"{NODE}/frame_report"
    statistics: str = f"{NODE}/statistics"
    confidence: str = f"{NODE}/confidence"

    @classmethod
    def of(cls, args: argparse.Namespace) -> Topics:
        """The topics that ``args`` name, as ``--image-topic``, and the default ones elsewhere."""
        return cls(**{
            name.removesuffix("_topic"): topic
            for name, topic in vars(args).items()
            if name.endswith("_topic")
        })  # fmt: skip


def configure(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EXAMPLES
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    for name, help, examples, options in (
        ("make", "write a drive with labels, or a video file, as a bag", MAKE, _make),
        ("run", "segment a bag's images with the node's engine, without ROS", RUN, _run),
        ("report", "write figures and a page about a bag with masks", REPORT, _report),
        ("play", "publish a bag over DDS, with its clock", PLAY, _play),
        ("live", "play a bag into the live node, and account for every image", LIVE, _live),
    ):
        text = f"{help[0].upper()}{help[1:]}."
        options(
            actions.add_parser(
                name, help=help, description=text, epilog=examples,
                formatter_class=parser.formatter_class,
            )
        )  # fmt: skip


def run(args: argparse.Namespace) -> int:
    if args.action in ("play", "live"):
        require_ros()
    if args.action == "live":
        isolate()
        # What stops this program with SIGTERM must stop the node as well.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    # Imported late: they load torch, or rclpy, and --help is instant.
    module = {"live": "play"}.get(args.action, args.action)
    action = getattr(importlib.import_module(f"lowlat_seg_ros.tools.bag.{module}"), args.action)
    return int(action(args))


# fmt: off
def _make(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--out", type=Path, required=True, metavar="BAG", help="folder to make")
    dataset.configure(parser)
    add("--video", type=Path, metavar="FILE", help="make the bag of a video file instead")
    add("--drive", metavar="NAME",
        help="drive of the data set, of which a bag holds one (default: the first)")
    add("--rate", type=float, metavar="HZ",
        help=f"frame rate of a drive or folder (default {dataset.RATE_HZ:g}), or of a video "
        "instead of its own times")
    _add_storage(parser)
    _add_topics(parser, "image", "label")


def _run(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("bags", type=Path, nargs="+", metavar="IN",
        help="one bag or more, with a camera's images")
    add("--out", type=Path, required=True, metavar="OUT",
        help="bag to make; for several INs the folder for their bags")
    add("--ray", nargs="?", const="local", metavar="ADDRESS",
        help="spread several INs over a Ray cluster (pip install ray): its address, 'auto' for "
        "the one that this machine belongs to, or nothing for this machine's cores; write it last")
    add("--time", choices=("virtual", "real"), default="virtual",
        help="whether time is computed or real, see below (default %(default)s)")
    add("--delay-frames", type=int, default=DELAY_FRAMES, metavar="N",
        help="frames that Sh takes in virtual time (default %(default)s)")
    add("--latency-ms", type=float, default=0.0, metavar="MS",
        help="time that a mask takes in virtual time (default %(default)s: no image is superseded)")
    add("--copy", action="append", default=[], metavar="TOPIC",
        help="write this topic of IN to OUT as well; 'all' for every topic; may be repeated")
    add_network(parser)
    _add_storage(parser)
    _add_topics(parser, "image")
    add_settings(parser, EngineConfig)


def _report(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("bag", type=Path, metavar="BAG", help="with images, masks and reports")
    add("--out", type=Path, required=True, metavar="DIR", help="folder to write to")
    add("--pictures", type=int, default=PICTURES, metavar="N",
        help="frames to show on the page, evenly spaced if there are more (default %(default)s)")
    add("--checkpoint", type=Path, metavar="FILE",
        help="weights with names and colours of the classes, if the bag does not have them "
        "(default: the package's)")
    _add_topics(parser, *TOPICS)


def _play(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("bag", type=Path, metavar="BAG", help="bag to play")
    add("--rate", type=float, default=1.0, metavar="FACTOR",
        help="playing speed; 2 is twice as fast as recorded (default %(default)s)")
    add("--loops", type=int, default=1, metavar="N",
        help="how often it is played; the clock jumps back each time (default %(default)s)")


def _live(parser: argparse.ArgumentParser) -> None:
    _play(parser)
    add = parser.add_argument
    add("--json", type=Path, metavar="FILE", help="write the figures there as well")
    add("--log", type=Path, metavar="FILE",
        help="what the node says (default: shown only if it fails)")
    add_network(parser)
    _add_topics(parser, "image")
    add_settings(parser, EngineConfig)


def _add_storage(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--storage", choices=STORAGES, default=STORAGES[0],
        help="how the bag is stored; Foxglove opens mcap (default %(default)s)")


# fmt: on
def _add_topics(parser: argparse.ArgumentParser, *names: str) -> None:
    """Add an option for each of the fields of :class:`Topics` in ``names``."""
    for name in names:
        parser.add_argument(
            f"--{name}-topic", default=getattr(Topics, name), metavar="TOPIC",
            help=f"{TOPICS[name]} (default %(default)s)",
        )  # fmt: skip
