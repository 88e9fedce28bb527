"""Records as messages."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

pytest.importorskip("lowlat_seg_ros.msg", reason="needs the built messages")

from std_msgs.msg import Header

from lowlat_seg_ros import msg as messages
from lowlat_seg_ros.frames import (
    Counters,
    Deadline,
    Ledger,
    MaskKind,
    NodeTiming,
    Outcome,
    Provenance,
    Refinement,
    ResetReason,
    Segmentation,
    Selection,
    StageTiming,
)
from lowlat_seg_ros.messages import record_of, stamp_ns
from lowlat_seg_ros.ros.outputs import MESSAGES

PROVENANCE = Provenance(MaskKind.PROPAGATED, 1_250_000_000, 4, 400.0, True, 2, None, 650.0)


def report(**fields: object) -> messages.FrameReport:
    result = Segmentation(np.zeros((2, 2), np.uint8), 0, "", PROVENANCE, StageTiming())
    result = dataclasses.replace(result, **fields)  # type: ignore[arg-type]
    return MESSAGES.frame_report(Header(frame_id="cam"), result, TIMING)


TIMING = NodeTiming(5.0, 1.0, 2.0, 3.0, 4.0)


@pytest.mark.parametrize("kind", MaskKind)
def test_kind(kind: MaskKind) -> None:
    found = report(provenance=dataclasses.replace(PROVENANCE, kind=kind)).kind
    assert found == getattr(messages.FrameReport, kind.name)


def test_provenance_and_times_are_carried_over() -> None:
    found = report(timing=StageTiming(lower_ms=8.5))
    assert (found.header.frame_id, found.key_age_frames, found.key_age_ms) == ("cam", 4, 400.0)
    assert (found.exact, found.epoch, found.reset_reason) == (True, 2, "")
    assert found.features_age_ms == 650.0
    assert (found.key_stamp.sec, found.key_stamp.nanosec) == (1, 250_000_000)
    assert (found.convert_ms, found.publish_ms, found.processing_ms, found.age_ms) == (1, 2, 3, 4)
    assert found.wait_ms == 5
    assert found.timing.lower_ms == 8.5


def test_statistics_are_those_of_the_records() -> None:
    counters, ledger = Counters(*range(23), "Sh failed"), Ledger(9, 4, 3, 1, 1, 5)
    found = MESSAGES.statistics(MESSAGES.header(7, "front"), counters, ledger)
    assert (stamp_ns(found.header.stamp), found.header.frame_id) == (7, "front")
    assert record_of(Counters, found.counters) == counters
    assert record_of(Ledger, found.ledger) == ledger


def test_deadline_is_carried_over() -> None:
    found = report(deadline=Deadline(3, 120.5, True)).deadline
    assert (found.level, found.latency_ms, found.missed) == (3, 120.5, True)


def test_reset_reason_is_named() -> None:
    begun = dataclasses.replace(PROVENANCE, reset=ResetReason.GAP)
    assert report(provenance=begun).reset_reason == "gap"


def test_selection_is_there_once_the_selector_has_run() -> None:
    assert not report().selected
    found = report(selection=Selection(0.25, 0.125, True))
    assert (found.selected, found.deviation, found.threshold) == (True, 0.25, 0.125)
    assert found.is_key


@pytest.mark.parametrize("outcome", Outcome)
def test_refinement(outcome: Outcome) -> None:
    found = MESSAGES.refinement_report(
        Refinement(1_250_000_000, "cam", 2, outcome, 3.5, 80.0, "no memory")
    )
    assert (stamp_ns(found.header.stamp), found.header.frame_id) == (1_250_000_000, "cam")
    assert found.outcome == getattr(messages.KeyFrameRefinement, outcome.value.upper())
    assert found.applied is (outcome in (Outcome.REFINED, Outcome.CARRIED))
    assert (found.epoch, found.wait_ms, found.compute_ms) == (2, 3.5, 80.0)
    assert found.error == "no memory"


@pytest.mark.parametrize("ns", [0, 1, 999_999_999, 1_000_000_000, 1_700_000_000_123_456_789])
def test_stamps_are_kept_to_the_nanosecond(ns: int) -> None:
    assert stamp_ns(MESSAGES.time(ns)) == ns
