"""How good the masks of a recording are, for the frame they are of and when they were published."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass

import numpy as np

from lowlat_seg_ros.frames import IGNORE_LABEL
from lowlat_seg_ros.lab.data.sequence import DataError
from lowlat_seg_ros.lab.evaluation.metrics import Confusion
from lowlat_seg_ros.lab.evaluation.summary import Accuracy, accuracy
from lowlat_seg_ros.tools.bag.recording import Recording


@dataclass(frozen=True)
class Scores:
    """Scores in [0, 1], NaN where nothing could be scored.

    ``own``: masks, as they were published, against the labels of their own frames.
    ``miou_at_publish``: each mask against the label of the newest frame that had come by the time
    it was published: what the world looked like when a consumer got it. ``miou_streaming``: at each
    frame's arrival, the newest mask published by then against that frame's label, and nothing
    before the first one (Li, Wang, Ramanan, ECCV 2020), so that dropped frames count as well.
    """

    own: Accuracy
    miou_at_publish: float
    miou_streaming: float


def score(recording: Recording) -> Scores:
    """Score all masks; DataError where labels and masks do not fit together."""
    labels = [arrival.label for arrival in recording.arrivals]
    classes = recording.table.names
    try:
        own = accuracy(
            [label if label is not None else np.zeros((0, 0), np.uint8) for label in labels],
            [(p.index, p.segmentation.mask) for p in recording.published
             if labels[p.index] is not None],
            classes,
        )  # fmt: skip
        return Scores(own, _at_publish(recording).miou, _streaming(recording).miou)
    except ValueError as error:
        raise DataError(
            f"the labels do not fit the masks: {error}; give the topic of labels in the classes "
            f"{', '.join(classes)}"
        ) from error


def _at_publish(recording: Recording) -> Confusion:
    confusion = Confusion(len(recording.table))
    arrived = [arrival.arrived_ns for arrival in recording.arrivals]
    for published in recording.published:
        newest = bisect_right(arrived, published.published_ns) - 1
        # A recorder may get a mask before its image; the frame seen is not older than its own.
        label = recording.arrivals[max(newest, published.index)].label
        if label is not None:
            confusion.update(label, _sized(published.segmentation.mask, label))
    return confusion


def _streaming(recording: Recording) -> Confusion:
    confusion = Confusion(len(recording.table))
    times = [published.published_ns for published in recording.published]
    for arrival in recording.arrivals:
        if arrival.label is None:
            continue
        newest = bisect_right(times, arrival.arrived_ns) - 1
        mask = recording.published[newest].segmentation.mask if newest >= 0 else None
        confusion.update(arrival.label, _sized(mask, arrival.label))
    return confusion


def _sized(mask: np.ndarray | None, label: np.ndarray) -> np.ndarray:
    """``mask``, or nothing in all pixels where there is none or the camera's size has changed."""
    if mask is None or mask.shape != label.shape:
        return np.full_like(label, IGNORE_LABEL)
    return mask
