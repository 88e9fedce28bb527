"""Streaming accuracy against timelines worked out by hand."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest

from lowlat_seg_ros.frames import (
    Counters,
    Frame,
    MaskKind,
    Provenance,
    ResetReason,
    Segmentation,
    StageTiming,
)
from lowlat_seg_ros.lab.data.clip import Clip
from lowlat_seg_ros.lab.data.sequence import LabelledFrame
from lowlat_seg_ros.lab.evaluation.comparison import assumed, measured, stream
from lowlat_seg_ros.labels import ClassTable

CLASSES = 8


@dataclass
class Oracle:
    """Answers each frame, whose pixels all hold its class, with that class; notes what it saw."""

    timing: StageTiming = field(default_factory=StageTiming)
    seen: list[int] = field(default_factory=list)
    resets: int = 0
    counters: Counters = field(default_factory=Counters)

    def process(self, frame: Frame) -> Segmentation:
        mask = frame.image[..., 0].copy()
        self.seen.append(int(mask[0, 0]))
        source = Provenance(MaskKind.FULL, frame.stamp_ns, 0, 0.0, True, 0)
        return Segmentation(mask, frame.stamp_ns, "", source, self.timing)

    def reset(self, reason: ResetReason = ResetReason.REQUESTED) -> None:
        self.resets += 1


def numbered(drives: str) -> Clip:
    """A frame every 100 ms, the n-th one all of class n."""
    table = ClassTable("numbers", tuple("abcdefgh"), ((0, 0, 0),) * CLASSES)
    frames = [
        LabelledFrame(
            np.full((2, 2, 3), n, np.uint8), np.full((2, 2), n, np.uint8), n * 100_000_000, str(n)
        )
        for n in range(len(drives))
    ]
    return Clip("numbers", table, 10.0, tuple(frames), tuple(drives))


def right(clip: Clip, oracle: Oracle, milliseconds: float) -> float:
    """Share of arrivals that find the mask of their own class; each class occurs once."""
    steps: list[int] = []
    result = stream(oracle, clip, assumed(milliseconds), steps.append)
    assert sum(steps) == len(clip)
    return result


@pytest.mark.parametrize(("latency_ms", "share"), [(0.0, 1.0), (60.0, 0.0)])
def test_any_latency_shows_the_frame_before(latency_ms: float, share: float) -> None:
    oracle = Oracle()
    assert right(numbered("aaaaaa"), oracle, latency_ms) == share
    assert oracle.seen == [0, 1, 2, 3, 4, 5]


def test_a_slow_method_skips_to_the_newest_frame() -> None:
    oracle = Oracle()
    right(numbered("aaaaaaaa"), oracle, 250.0)
    # Done at 250, 500 and 750 ms; the newest frames by then are 2, 5 and 7.
    assert oracle.seen == [0, 2, 5, 7]


def test_each_drive_begins_without_a_mask() -> None:
    oracle = Oracle()
    assert right(numbered("aaabbb"), oracle, 0.0) == 1.0
    assert oracle.resets == 1
    late = Oracle()
    stream(late, numbered("aaabbb"), assumed(1000.0), lambda n: None)
    assert late.seen == [0, 2, 3, 5]  # what a drive leaves unfinished does not reach the next


def test_still_scenes_forgive_latency_but_not_the_start() -> None:
    clip = numbered("aaaa")
    still = Clip("still", clip.table, 10.0, (clip.frames[0],) * 4, clip.drives)
    shifted = [
        LabelledFrame(f.image, f.label, n * 100_000_000, str(n)) for n, f in enumerate(still.frames)
    ]
    still = Clip("still", clip.table, 10.0, tuple(shifted), clip.drives)
    assert right(still, Oracle(), 50.0) == pytest.approx(3 / 4)  # the first arrival finds none


def test_measured_costs_count_the_selector_after_the_mask() -> None:
    timing = StageTiming(latency_ms=80.0, selector_ms=40.0)
    assert measured()(timing) == (80.0, 120.0)
    assert measured(speed=2.0)(timing) == (40.0, 60.0)
    oracle = Oracle(timing)
    stream(oracle, numbered("aaaaaaa"), measured(), lambda n: None)
    # Free at 120, 240, 360, 480 and 600 ms, when frames 1, 2, 3, 4 and 6 are the newest.
    assert oracle.seen == [0, 1, 2, 3, 4, 6]
