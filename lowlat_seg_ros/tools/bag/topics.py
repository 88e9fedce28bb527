"""Names of the topics in a bag; each stands once."""

from __future__ import annotations

import argparse
from dataclasses import dataclass

#: As the launch file has them.
CAMERA = "/camera/image_raw"
NODE = "/segmentation_node"
#: Class ids that are true, beside the camera's images.
LABEL = "/camera/label"
CLOCK = "/clock"
#: What the node publishes, by the names of its own topics.
MASK, REPORT, CONFIDENCE = (f"{NODE}/{name}" for name in ("mask", "frame_report", "confidence"))


@dataclass(frozen=True)
class Topics:
    """Where a bag has a camera's images, their labels, and what the node made of them."""

    image: str = CAMERA
    label: str = LABEL
    mask: str = MASK
    report: str = REPORT
    confidence: str = CONFIDENCE


def configure(parser: argparse.ArgumentParser, *names: str) -> None:
    """Add an option for each of the :class:`Topics` in ``names``."""
    about = {
        "image": "of the camera's images",
        "label": "of the labels",
        "mask": "of the masks",
        "report": "of the frame reports",
        "confidence": "of the confidence of masks, mono8",
    }
    for name in names:
        parser.add_argument(
            f"--{name}-topic",
            default=getattr(Topics, name),
            metavar="TOPIC",
            help=f"{about[name]} (default %(default)s)",
        )


def chosen(args: argparse.Namespace) -> Topics:
    """The topics given, and the default ones of those that could not be."""
    given = {name.removesuffix("_topic"): v for name, v in vars(args).items() if "_topic" in name}
    return Topics(**given)
