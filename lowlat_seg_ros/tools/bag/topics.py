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
MASK, REPORT, STATISTICS, CONFIDENCE = (
    f"{NODE}/{name}" for name in ("mask", "frame_report", "statistics", "confidence")
)


@dataclass(frozen=True)
class Topics:
    """Where a bag has a camera's images, their labels, and what the node made of them."""

    image: str = CAMERA
    label: str = LABEL
    mask: str = MASK
    report: str = REPORT
    statistics: str = STATISTICS
    confidence: str = CONFIDENCE

    @classmethod
    def of(cls, args: argparse.Namespace) -> Topics:
        """The topics that ``args`` name, as ``--image-topic``, and the default ones elsewhere."""
        return cls(**{
            name.removesuffix("_topic"): topic
            for name, topic in vars(args).items()
            if name.endswith("_topic")
        })  # fmt: skip
