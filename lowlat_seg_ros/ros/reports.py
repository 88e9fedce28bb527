"""Records of the engine and of the node as messages of this package."""

from __future__ import annotations

import dataclasses
from typing import Any

from builtin_interfaces.msg import Time
from std_msgs.msg import Header

from lowlat_seg_ros import msg as messages
from lowlat_seg_ros.frames import NO_TRUST, NodeTiming, Refinement, Segmentation
from lowlat_seg_ros.images.ledger import Ledger


def frame_report(
    header: Header, result: Segmentation, timing: NodeTiming, ledger: Ledger
) -> messages.FrameReport:
    """What ``~/frame_report`` says of one published mask."""
    source, chosen = result.provenance, result.selection
    verdict = {} if chosen is None else {"selected": True, **vars(chosen)}
    return messages.FrameReport(
        header=header,
        kind=getattr(messages.FrameReport, source.kind.name),
        key_stamp=time_message(source.key_stamp_ns),
        key_age_frames=source.key_age_frames,
        key_age_ms=source.key_age_ms,
        exact=source.exact,
        trust=NO_TRUST if result.trust is None else result.trust,
        epoch=source.epoch,
        reset_reason=source.reset.value if source.reset else "",
        timing=_mirror(messages.StageTiming, result.timing),
        deadline=_mirror(messages.Deadline, result.deadline),
        counters=_mirror(messages.Counters, result.counters),
        ledger=_mirror(messages.Ledger, ledger),
        **vars(timing),
        **verdict,
    )


def refinement_report(refinement: Refinement) -> messages.KeyFrameRefinement:
    """What ``~/key_frame_refinement`` says of one job of the slow track."""
    stamp, outcome = time_message(refinement.stamp_ns), refinement.outcome
    return messages.KeyFrameRefinement(
        header=Header(stamp=stamp, frame_id=refinement.frame_id),
        epoch=refinement.epoch,
        outcome=getattr(messages.KeyFrameRefinement, outcome.value.upper()),
        applied=outcome.applied,
        wait_ms=refinement.wait_ms,
        compute_ms=refinement.compute_ms,
        error=refinement.error,
    )


def stamp_ns(time: Time) -> int:
    """A message's stamp in integer nanoseconds."""
    return time.sec * 1_000_000_000 + time.nanosec


def time_message(ns: int) -> Time:
    """Integer nanoseconds as a message's stamp."""
    sec, nanosec = divmod(ns, 1_000_000_000)
    return Time(sec=sec, nanosec=nanosec)


def _mirror(kind: Any, record: Any) -> Any:
    """A message of type ``kind`` with the fields of the dataclass ``record``, which it mirrors."""
    return kind(**{i.name: getattr(record, i.name) for i in dataclasses.fields(record)})
