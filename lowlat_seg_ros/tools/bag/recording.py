"""What a bag says of a run: images as they came, labels, and masks as they were published."""

from __future__ import annotations

from collections import defaultdict, deque
from dataclasses import dataclass
from typing import Any

import numpy as np

from lowlat_seg_ros.frames import Counters, NodeTiming, Segmentation
from lowlat_seg_ros.images import Ledger
from lowlat_seg_ros.lab.data.sequence import DataError
from lowlat_seg_ros.labels import ClassTable
from lowlat_seg_ros.messages import (
    COMPRESSED,
    IMAGE,
    REPORT,
    STATISTICS,
    record_of,
    segmentation,
    stamp_ns,
)
from lowlat_seg_ros.tools.bag.messages import to_ids
from lowlat_seg_ros.tools.bag.storage import BagReader
from lowlat_seg_ros.tools.bag.topics import Topics

#: The mask where nobody asks for one.
NO_MASK = np.zeros((0, 0), np.uint8)


@dataclass(frozen=True, eq=False)
class Arrival:
    """An image: its stamp, when it was recorded, and its label, uint8 (H, W), where it has one."""

    stamp_ns: int
    arrived_ns: int
    label: np.ndarray | None


@dataclass(frozen=True, eq=False)
class Published:
    """A mask, for image ``index`` of the bag, and what its report says.

    The mask itself has no pixels, shape (0, 0), where nobody asks for it: see :class:`Recording`.
    """

    index: int
    published_ns: int
    segmentation: Segmentation
    timing: NodeTiming


@dataclass(frozen=True, eq=False)
class Recording:
    """``arrivals`` and ``published`` in the order in which they were recorded.

    ``table``: the classes of the masks. ``counters`` and ``ledger`` are the newest; None where the
    bag has none, and ``notes`` says so. ``labelled``: there are labels of the same classes; if
    there are labels of others, ``notes`` says so. ``shown``: the images that pictures are made of.
    Without labels only their masks are in memory, as hours fit into a bag.
    """

    arrivals: tuple[Arrival, ...]
    published: tuple[Published, ...]
    table: ClassTable
    counters: Counters | None
    ledger: Ledger | None
    labelled: bool
    shown: tuple[int, ...]
    facts: dict[str, Any]
    notes: tuple[str, ...] = ()


def read(bag: BagReader, topics: Topics, table: ClassTable, pictures: int) -> Recording:
    """The whole run; ``table`` where the bag does not say its own.

    At most ``pictures`` images are to be shown, evenly spaced. DataError if a topic is missing, or
    if there is no mask.
    """
    bag.require(topics.image, (IMAGE, COMPRESSED), "--image-topic")
    bag.require(topics.mask, (IMAGE,), "--mask-topic")
    bag.require(topics.report, (REPORT,), "--report-topic")
    facts = bag.facts
    if "mask_classes" in facts:
        table = _table(facts["mask_classes"], facts["mask_colours"])
    labelled = bag.topics.get(topics.label) == IMAGE
    notes = []
    if labelled and facts.get("classes", list(table.names)) != list(table.names):
        labelled = False
        notes.append("The labels have other classes than the masks, so masks are not scored.")
    labels = _by_stamp(bag, topics.label) if labelled else {}
    arrivals = []
    for raw in bag.raw([topics.image]):
        stamp = stamp_ns(bag.decode(raw).header.stamp)
        arrivals.append(Arrival(stamp, raw.time_ns, labels.get(stamp)))
    count = len(arrivals)
    shown = sorted({round(i) for i in np.linspace(0, count - 1, min(pictures, count))})
    stored = range(count) if labelled else shown
    published = _published(bag, topics, arrivals, set(stored))
    if not published:
        raise DataError(
            f"{bag.path} has no mask with a frame report for its images on {topics.image}; "
            "record both, or give the topic of the images that were segmented"
        )
    counters, ledger = _counts(bag, topics)
    if ledger is None:
        notes.append(
            f"The bag has no statistics on {topics.statistics}, so it is not known why an image "
            "has no mask; record that topic as well."
        )
    return Recording(
        tuple(arrivals), tuple(published), table, counters, ledger, labelled, tuple(shown), facts,
        tuple(notes),
    )  # fmt: skip


def _table(names: list[str], colours: list[list[int]]) -> ClassTable:
    return ClassTable("masks", tuple(names), tuple((r, g, b) for r, g, b in colours))


def _by_stamp(bag: BagReader, topic: str) -> dict[int, np.ndarray]:
    messages = (bag.decode(raw) for raw in bag.raw([topic]))
    return {stamp_ns(message.header.stamp): to_ids(message) for message in messages}


def _counts(bag: BagReader, topics: Topics) -> tuple[Counters | None, Ledger | None]:
    """What was counted, by the offline replay or in the newest message; None if it was not."""
    if "ledger" in bag.facts:
        return Counters(**bag.facts["counters"]), Ledger(**bag.facts["ledger"])
    newest = deque(bag.raw([topics.statistics]), maxlen=1)
    if not newest or newest[0].kind != STATISTICS:
        return None, None
    statistics = bag.decode(newest[0])
    return record_of(Counters, statistics.counters), record_of(Ledger, statistics.ledger)


def _published(
    bag: BagReader, topics: Topics, arrivals: list[Arrival], stored: set[int]
) -> list[Published]:
    """Masks of the images ``arrivals`` that have a report.

    Pixels are stored of those whose index is in ``stored`` alone.

    Where a looped bag was recorded, stamps come again and again: a mask is of the newest such image
    before it, and goes with the report that is nearest to it.
    """
    reports = defaultdict[int, list[tuple[int, Any]]](list)
    for raw in bag.raw([topics.report]):
        report = bag.decode(raw)
        reports[stamp_ns(report.header.stamp)].append((raw.time_ns, report))
    indices = defaultdict[int, list[int]](list)
    for index, arrival in enumerate(arrivals):
        indices[arrival.stamp_ns].append(index)
    found = []
    for raw in bag.raw([topics.mask]):
        message, now_ns = bag.decode(raw), raw.time_ns
        stamp = stamp_ns(message.header.stamp)
        if stamp in reports and stamp in indices:
            same = indices[stamp]
            before = [index for index in same if arrivals[index].arrived_ns <= now_ns]
            _, report = min(reports[stamp], key=lambda pair: abs(pair[0] - now_ns))
            # A recorder may get a mask before its image.
            index = before[-1] if before else same[0]
            mask = to_ids(message)
            result = segmentation(report, mask if index in stored else NO_MASK)
            found.append(Published(index, now_ns, result, record_of(NodeTiming, report)))
    return found
