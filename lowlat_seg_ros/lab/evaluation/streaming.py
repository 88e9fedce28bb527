"""Streaming accuracy: at each instant, the newest mask that is out by then.

After Li, Wang, Ramanan, "Towards Streaming Perception" (ECCV 2020): frames arrive at the camera's
rate; a method that is busy takes the newest one when it is done and never sees the others; at each
arrival the newest finished mask is scored against the label of the arriving frame. So latency
costs accuracy.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from lowlat_seg_ros.frames import IGNORE_LABEL, StageTiming
from lowlat_seg_ros.lab.evaluation.footage import Footage
from lowlat_seg_ros.lab.evaluation.metrics import Confusion
from lowlat_seg_ros.lab.evaluation.run import Method

#: From the measured stages of a frame to (ms until its mask is out, ms until the next can begin).
Cost = Callable[[StageTiming], tuple[float, float]]


def measured(speed: float = 1.0) -> Cost:
    """What was measured, as on a machine ``speed`` times as fast.

    The selector runs after the mask, but before the next frame.
    """

    def cost(timing: StageTiming) -> tuple[float, float]:
        return timing.latency_ms / speed, (timing.latency_ms + timing.selector_ms) / speed

    return cost


def assumed(milliseconds: float) -> Cost:
    """The same time for every frame, for checking and for other machines."""
    return lambda timing: (milliseconds, milliseconds)


@dataclass(frozen=True)
class Streamed:
    """``miou`` in [0, 1] over all arrivals; ``segmented`` counts the frames that were not skipped.

    An instant before the first mask of a drive counts as missed in all pixels.
    """

    miou: float
    segmented: int


def stream(
    method: Method, footage: Footage, cost: Cost, progress: Callable[[int], object]
) -> Streamed:
    """Play ``footage`` in simulated time; ``progress`` is told of each arrival."""
    confusion, segmented = Confusion(len(footage.table)), 0
    for number, drive in enumerate(footage.ranges()):
        if number > 0:
            method.reset()
        arrivals = [footage.frames[index].stamp_ns / 1e6 for index in drive]
        ready, masks = _emissions(method, footage, drive, arrivals, cost)
        segmented += len(masks)
        for index, now in zip(drive, arrivals, strict=True):
            label = footage.frames[index].label
            newest = bisect_right(ready, now) - 1
            confusion.update(label, masks[newest] if newest >= 0 else _nothing(label))
            progress(1)
    return Streamed(confusion.miou, segmented)


def _emissions(
    method: Method, footage: Footage, drive: range, arrivals: list[float], cost: Cost
) -> tuple[list[float], list[np.ndarray]]:
    """When masks are out, and the masks, of those frames that the method gets to see."""
    ready, masks, free_at, newest = [], [], arrivals[0], 0
    while newest < len(drive):
        begin = max(free_at, arrivals[newest])
        newest = bisect_right(arrivals, begin) - 1
        answer = method.process(footage.frame(drive[newest]))
        until_out, until_free = cost(answer.timing)
        ready.append(begin + until_out)
        masks.append(answer.mask)
        free_at, newest = begin + until_free, newest + 1
    return ready, masks


def _nothing(label: np.ndarray) -> np.ndarray:
    return np.full_like(label, IGNORE_LABEL)
