"""The figures of one run over a clip: latency, key frames, accuracy; as records and as JSON."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lowlat_seg_ros.engine.timing import Percentiles, PercentileTracker
from lowlat_seg_ros.frames import Counters
from lowlat_seg_ros.lab.evaluation.metrics import Confusion, Consistency
from lowlat_seg_ros.lab.evaluation.record import Account, Answer

#: Frames of a VC_n window (anchor of the field: VC8).
CONSISTENCY_FRAMES = 8


@dataclass(frozen=True)
class Latency:
    """Milliseconds. ``first`` is the first frame's, which runs the whole network by design;
    ``steady`` summarises all frames after it.
    """

    first: float
    steady: Percentiles

    @classmethod
    def of(cls, milliseconds: Sequence[float]) -> Latency:
        """Of at least one frame, in order."""
        tracker = PercentileTracker(window=max(1, len(milliseconds)))
        for value in milliseconds[1:]:
            tracker.add(value)
        return cls(milliseconds[0], tracker.percentiles())


@dataclass(frozen=True)
class Accuracy:
    """Scores in [0, 1] over the ``frames`` that have a mask, NaN where nothing could be scored.

    ``vc8``: steadiness over 8 consecutive frames, see :class:`~.metrics.Consistency`; a frame
    without a mask ends a window.
    """

    frames: int
    miou: float
    pixel_accuracy: float
    class_accuracy: float
    vc8: float
    iou: dict[str, float]


def accuracy(
    labels: Sequence[np.ndarray], masks: Iterable[tuple[int, np.ndarray]], classes: Sequence[str]
) -> Accuracy:
    """Score ``masks``, pairs of a frame's index and its uint8 (H, W) mask, against ``labels``."""
    confusion, consistency = Confusion(len(classes)), Consistency(CONSISTENCY_FRAMES)
    frames, previous = 0, -1
    for index, mask in masks:
        if index != previous + 1:
            consistency.reset()
        confusion.update(labels[index], mask)
        consistency.update(labels[index], mask)
        frames, previous = frames + 1, index
    iou = dict(zip(classes, confusion.iou.tolist(), strict=True))
    return Accuracy(
        frames, confusion.miou, confusion.pixel_accuracy, confusion.class_accuracy,
        consistency.value, iou,
    )  # fmt: skip


@dataclass(frozen=True)
class Summary:
    """One run: ``engine`` from frame in to mask out, ``published`` and ``received`` from the
    frame's stamp on. ``key_share`` is key frames per mask.
    """

    account: Account
    engine: Latency
    published: Latency
    received: Latency
    key_frames: int
    key_share: float
    accuracy: Accuracy
    counters: Counters


def summarise(
    account: Account,
    answers: Sequence[Answer],
    labels: Sequence[np.ndarray],
    classes: Sequence[str],
) -> Summary:
    """The figures of ``answers`` (one or more, in order); ``labels``: those of the whole clip."""
    counters = answers[-1].segmentation.counters
    return Summary(
        account,
        Latency.of([answer.segmentation.timing.latency_ms for answer in answers]),
        Latency.of([answer.published_ms for answer in answers]),
        Latency.of([answer.received_ms for answer in answers]),
        counters.key_frames,
        counters.key_frames / len(answers),
        accuracy(labels, [(a.index, a.segmentation.mask) for a in answers], classes),
        counters,
    )


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write ``content`` (records, mappings, lists, numbers) as JSON, where NaN becomes null.

    Six decimals are kept. A reader finds what was there before or all of it, never a part.
    """
    text = json.dumps(plain(content), indent=2, allow_nan=False) + "\n"
    part = path.with_name(f"{path.name}.part")
    part.write_text(text)
    os.replace(part, path)


def plain(value: Any) -> Any:
    """Records as mappings, and numbers as :func:`write_json` writes them."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    if isinstance(value, dict):
        return {name: plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return None if math.isnan(value) else round(value, 6)
    return value
