"""``FrameReport`` messages of a bag from the engine's records, and of bag or node back to records.

Those for bags are the same as those of :mod:`lowlat_seg_ros.ros.reports`, which need ROS; a test
compares the two.
"""

from __future__ import annotations

import dataclasses
from typing import Any, TypeVar

import numpy as np

from lowlat_seg_ros.frames import (
    NO_TRUST,
    Counters,
    Deadline,
    MaskKind,
    NodeTiming,
    Provenance,
    ResetReason,
    Segmentation,
    Selection,
    StageTiming,
)
from lowlat_seg_ros.images.ledger import Ledger
from lowlat_seg_ros.tools.bag.messages import PACKAGE, REPORT, Messages, stamp_ns

Record = TypeVar("Record")

#: In the order of the message's constants.
_KINDS = list(MaskKind)


def message_of(
    make: Messages, header: Any, result: Segmentation, timing: NodeTiming, ledger: Ledger
) -> Any:
    """What ``~/frame_report`` says of one published mask."""
    source, chosen = result.provenance, result.selection
    verdict = {} if chosen is None else {"selected": True, **vars(chosen)}
    return make.make(
        REPORT,
        header=header,
        kind=_KINDS.index(source.kind),
        key_stamp=make.time(source.key_stamp_ns),
        key_age_frames=source.key_age_frames,
        key_age_ms=source.key_age_ms,
        exact=source.exact,
        trust=NO_TRUST if result.trust is None else result.trust,
        epoch=source.epoch,
        reset_reason=source.reset.value if source.reset else "",
        timing=_mirror(make, "StageTiming", result.timing),
        deadline=_mirror(make, "Deadline", result.deadline),
        counters=_mirror(make, "Counters", result.counters),
        ledger=_mirror(make, "Ledger", ledger),
        **vars(timing),
        **verdict,
    )


def segmentation(report: Any, mask: np.ndarray) -> Segmentation:
    """The engine's record behind a ``FrameReport``, with its ``mask``, uint8 (H, W)."""
    return Segmentation(
        mask,
        stamp_ns(report.header.stamp),
        report.header.frame_id,
        Provenance(
            _KINDS[report.kind],
            stamp_ns(report.key_stamp),
            report.key_age_frames,
            report.key_age_ms,
            report.exact,
            report.epoch,
            ResetReason(report.reset_reason) if report.reset_reason else None,
        ),
        record_of(StageTiming, report.timing),
        record_of(Counters, report.counters),
        record_of(Selection, report) if report.selected else None,
        record_of(Deadline, report.deadline),
        trust=None if report.trust == NO_TRUST else report.trust,
    )


def record_of(kind: type[Record], message: Any) -> Record:
    """The record ``kind`` from the ``message`` that has its fields."""
    names = (item.name for item in dataclasses.fields(kind))  # type: ignore[arg-type]
    return kind(**{name: getattr(message, name) for name in names})


def _mirror(make: Messages, name: str, record: Any) -> Any:
    return make.make(f"{PACKAGE}/msg/{name}", **dataclasses.asdict(record))
