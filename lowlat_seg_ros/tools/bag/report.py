"""``lowlat-seg bag report``: figures of a bag with masks, and a page to look through."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from lowlat_seg_ros.config import ConfigError
from lowlat_seg_ros.tools.bag import topics

#: Frames with pictures on the page: 50 of 480x360 make about 5 MB.
PICTURES = 50

EXAMPLES = """\
examples:
  lowlat-seg bag report masks --out report        of what 'lowlat-seg bag run' wrote
  lowlat-seg bag report recorded --out report     of what 'ros2 bag record' wrote beside the live
                                                  node: images, ~/mask and ~/frame_report

written to --out:
  report.json   ros2_benchmark's figures; percentiles of latency and stages; what became of each
                image; if there are labels, the accuracy of masks for their own frame and as seen
                at publish time
  report.html   one file that needs no network: stages of each frame, key frames, deviation against
                threshold, drops; a slider over frames with input, overlay and confidence
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EXAMPLES
    parser.add_argument("bag", type=Path, metavar="BAG", help="with images, masks and reports")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write to")
    parser.add_argument(
        "--pictures", type=int, default=PICTURES, metavar="N",
        help="frames to show on the page, evenly spaced if there are more (default %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--checkpoint", type=Path, metavar="FILE",
        help="names and colours of the classes, where the bag does not say (the package's)",
    )  # fmt: skip
    topics.configure(parser, "image", "label", "mask", "report", "confidence")


def run(args: argparse.Namespace) -> int:
    """Read, compute, write; 1 if an image of the bag is unaccounted for."""
    if args.pictures < 1:
        raise ConfigError(f"--pictures is {args.pictures}; show at least 1 frame")
    from lowlat_seg_ros.lab.evaluation.summary import write_json
    from lowlat_seg_ros.labels import ClassTable
    from lowlat_seg_ros.network.checkpoint import DEFAULT_CHECKPOINT, read_header
    from lowlat_seg_ros.tools.bag import figures, page, recording
    from lowlat_seg_ros.tools.bag.scores import score
    from lowlat_seg_ros.tools.bag.storage import BagReader

    names, header = topics.chosen(args), read_header(args.checkpoint or DEFAULT_CHECKPOINT)
    table = ClassTable("masks", header.classes, header.colours)
    with BagReader(args.bag) as bag:
        found = recording.read(bag, names, table, args.pictures)
        whole = figures.as_json(found, score(found) if found.labelled else None)
        args.out.mkdir(parents=True, exist_ok=True)
        write_json(args.out / "report.json", whole)
        page.write(args.out / "report.html", bag, names, found, whole)
    print(summary(whole))
    print(f"Written: {args.out / 'report.json'}, {args.out / 'report.html'}")
    return 0 if whole["unaccounted"] == 0 else 1


def summary(whole: dict[str, Any]) -> str:
    """The most telling of the figures, as lines."""
    engine, age = (whole["latency"][name].steady for name in ("engine", "age"))
    lines = [
        str(whole["account"]),
        f"engine p50 {engine.p50:.1f}, p99 {engine.p99:.1f} ms; stamp to mask p50 {age.p50:.1f}, "
        f"p99 {age.p99:.1f} ms; key frames {100 * whole['key_share']:.0f} %",
    ]
    if (scores := whole["accuracy"]) is not None:
        lines.append(
            f"mIoU {100 * scores.own.miou:.1f} %; as seen at publish time "
            f"{100 * scores.miou_at_publish:.1f} %; streaming {100 * scores.miou_streaming:.1f} %"
        )
    return "\n".join([*lines, *whole["notes"]])
