"""Whether stamps of images can be true, and how often a stream is reset; with the likely cause.

Ages and latencies hold only what these stamps say, so those of stamps that cannot be true are left
out of every statistic. Each reset costs its frame the time of Sh. Nothing here knows the middleware
or a clock.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum

from lowlat_seg_ros.frames import Counters, ResetReason
from lowlat_seg_ros.ros.doctor import End, Finding, Severity, names

#: An image that comes so long after its stamp was not taken then: no camera link is so slow.
OLD_MS = 2000.0

#: A clock of a bag or a simulator may be behind the images by a few of its steps, no more.
AHEAD_MS = 250.0

#: Of the newest ``WINDOW`` images so many with one fault are said: one alone may be a bag's loop.
WINDOW, MANY = 10, 3

#: Stamps so close to the system's clock are of it, where /clock says another time.
SYSTEM_NS = 60 * 1_000_000_000

#: Stamps before this (2001-09-09) are no dates but the time since something was switched on.
EPOCH_NS = 1_000_000_000 * 1_000_000_000

#: Seconds over which resets are counted.
RESETS_S = 10.0

#: From so many resets on, and this share of the frames, the low latency is gone.
STORM, STORM_SHARE = 3, 0.25

#: What a loop of a bag may cost: the clock and the stamps go back on two topics.
LOOP = 2

#: Those that somebody asked for.
_ASKED = (ResetReason.FIRST_FRAME, ResetReason.REQUESTED, ResetReason.ACTIVATED)


class StampFault(Enum):
    ZERO = "zero"
    NO_CLOCK = "no clock"  # the node's clock stands at zero
    AHEAD = "ahead"
    OLD = "old"
    REPEATED = "repeated"


@dataclass(frozen=True)
class StampState:
    """Of the newest images: ``skew_ms`` is the newest one's arrival minus its stamp, negative where
    the stamp is ahead of the clock. ``fault`` is what is wrong with many of them, if anything.
    """

    skew_ms: float = 0.0
    stamp_ns: int = 0
    fault: StampFault | None = None


@dataclass(frozen=True)
class Clocks:
    """What the node goes by: simulated time or the system's, which is ``system_ns`` now."""

    system_ns: int
    simulated: bool = False
    published: bool = False  # somebody publishes /clock


class StampMonitor:
    """Written by the image callback, read by any thread."""

    def __init__(self) -> None:
        self._newest: deque[StampFault | None] = deque(maxlen=WINDOW)
        self._last: tuple[int, float] | None = None  # stamp and skew of the newest image

    def image(self, stamp_ns: int, arrived_ns: int) -> bool:
        """An image came at ``arrived_ns`` of the node's clock; whether its stamp can be true."""
        skew_ms = (arrived_ns - stamp_ns) / 1e6
        before, self._last = self._last, (stamp_ns, skew_ms)
        fault = judge(stamp_ns, arrived_ns)
        repeated = before is not None and before[0] == stamp_ns
        unknown = fault in (StampFault.ZERO, StampFault.NO_CLOCK)
        self._newest.append(StampFault.REPEATED if repeated and not unknown else fault)
        return fault is None

    def state(self) -> StampState:
        last, faults = self._last, Counter(self._newest.copy())
        skew_ms, stamp = (0.0, 0) if last is None else (last[1], last[0])
        del faults[None]
        fault, count = faults.most_common(1)[0] if faults else (None, 0)
        return StampState(skew_ms, stamp, fault if count >= MANY else None)


def judge(stamp_ns: int, arrived_ns: int) -> StampFault | None:
    """What is wrong with the stamp of an image that came at ``arrived_ns``; None if nothing is."""
    if arrived_ns == 0:
        return StampFault.NO_CLOCK
    skew_ms = (arrived_ns - stamp_ns) / 1e6
    if -AHEAD_MS <= skew_ms <= OLD_MS:
        return None
    if stamp_ns == 0:
        return StampFault.ZERO
    return StampFault.AHEAD if skew_ms < 0 else StampFault.OLD


#: Of the faults whose cause is known at once.
_SENTENCES = {
    StampFault.ZERO: "the images' stamps are zero: the camera's driver does not set them; let it "
    "write the time of exposure into header.stamp, as ages, gaps and order are known by nothing "
    "else",
    StampFault.NO_CLOCK: "images come, but no time on /clock though use_sim_time is true; play the "
    "bag with --clock, start the simulation, or set use_sim_time to false",
    StampFault.REPEATED: "images bear the stamp of the one before: the clock that stamps them "
    "stands still, or the driver sends one image several times; see whether the simulation is "
    "paused",
}


def examine_stamps(state: StampState, clocks: Clocks) -> list[Finding]:
    """What is wrong with the stamps of the newest images, with the likely cause and its fix."""
    fault, off = state.fault, duration(abs(state.skew_ms))
    if fault is None:
        return []
    if fault is StampFault.AHEAD:
        text = f"the images' stamps are {off} ahead of the node's clock: {_cause(state, clocks)}"
    elif fault is StampFault.OLD:
        text = f"the images come {off} after their stamps: {_cause(state, clocks)}"
    else:
        text = _SENTENCES[fault]
    return [Finding(Severity.WARN, text, f"stamps {fault.value}")]


def _cause(state: StampState, clocks: Clocks) -> str:
    if clocks.simulated:
        if abs(clocks.system_ns - state.stamp_ns) < SYSTEM_NS:
            return "they are of the system's clock, not of /clock; set use_sim_time to false"
        return (
            "/clock is not the clock that stamped them; play the bag with --clock, and let one bag "
            "or simulator alone publish /clock"
        )
    if clocks.published:
        return (
            "somebody publishes /clock, which this node does not go by; if the images are of that "
            "bag or simulation, set use_sim_time to true, else synchronise the clocks of camera "
            "and node (chrony or PTP)"
        )
    if state.stamp_ns < EPOCH_NS:
        return (
            "they are no dates, so the driver counts from its own start; let it stamp by the "
            "system's clock, or with a bag or simulation publish /clock and set use_sim_time to "
            "true"
        )
    synchronise = "the clocks of camera and node differ; synchronise them (chrony or PTP)"
    if state.skew_ms < 0:
        return synchronise
    return f"{synchronise}, or play a bag with --clock and set use_sim_time to true"


def duration(ms: float) -> str:
    seconds = ms / 1e3
    for unit, size in (("days", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.1f} s"


@dataclass(frozen=True)
class Resets:
    """The newest ``seconds``: masks, and those of them that began an epoch, by reason."""

    seconds: float = 0.0
    frames: int = 0
    by_reason: dict[ResetReason, int] = field(default_factory=dict)

    @property
    def count(self) -> int:
        return sum(self.by_reason.values())

    @property
    def share(self) -> float:
        return self.count / max(self.frames, 1)


class ResetMeter:
    """Remembers the counters of the newest ``RESETS_S``; used by one thread."""

    def __init__(self, now_s: float) -> None:
        self._seen = deque([(now_s, Counters())])

    def update(self, counters: Counters, now_s: float) -> Resets:
        """What the newest seconds were like, with ``counters`` as they are at ``now_s``."""
        self._seen.append((now_s, counters))
        while self._seen[1][0] <= now_s - RESETS_S:
            self._seen.popleft()
        began_s, old = self._seen[0]
        by_reason = {}
        for reason in (reason for reason in ResetReason if reason not in _ASKED):
            name = f"resets_{reason.value}"
            if count := getattr(counters, name) - getattr(old, name):
                by_reason[reason] = count
        return Resets(now_s - began_s, counters.frames - old.frames, by_reason)


def examine_resets(
    resets: Resets,
    publishers: Sequence[End],
    *,
    simulated: bool = False,
    period_ms: float = 0.0,
    max_gap_ms: float = 0.0,
) -> list[Finding]:
    """What resets the stream, and what ends it; ``publishers`` are those of its images.

    ``simulated``: the node goes by /clock, so that a bag may be played in a loop. ``period_ms`` is
    the time between two images: one of about ``max_gap_ms`` makes gaps of a slow camera's images,
    which is no fault of the camera.
    """
    back = resets.by_reason.get(ResetReason.TIME_JUMPED_BACK, 0)
    # One pause or change of settings of the camera is no fault; a clock that goes back is one.
    if resets.count <= (LOOP if simulated and resets.count == back else 1 - bool(back)):
        return []
    worst = max(resets.by_reason, key=lambda reason: resets.by_reason[reason])
    slow = worst is ResetReason.GAP and 0 < max_gap_ms < 2 * period_ms
    storm = resets.count >= STORM and resets.share >= STORM_SHARE and not slow
    reasons = ", ".join(f"{reason.value} {count}" for reason, count in resets.by_reason.items())
    cause = _reset_cause(worst, publishers)
    if slow:
        cause = (
            f"an image comes every {period_ms / 1e3:.1f} s, which advanced.max_gap_ms, "
            f"{max_gap_ms:g}, takes for a gap; set it to {math.ceil(period_ms / 50) * 100}"
        )
    text = (
        f"{resets.count} of {resets.frames} frames within {resets.seconds:.0f} s were resets, with "
        f"Sh in the foreground ({reasons}): {cause}"
    )
    severity = Severity.ERROR if storm else Severity.WARN
    return [Finding(severity, text, f"resets {worst.value}")]


def _reset_cause(reason: ResetReason, publishers: Sequence[End]) -> str:
    if len(publishers) > 1:
        return (
            f"images of several publishers take turns, {names(publishers)}; stop all but one, or "
            "give each a topic of its own (parameter cameras)"
        )
    if reason is ResetReason.GAP:
        return (
            "stamps are further apart than advanced.max_gap_ms; where the camera is as slow as "
            "that, set it to twice the time between two images, else look for lost images and for "
            "a clock that jumps (chrony or PTP)"
        )
    if reason is ResetReason.TIME_JUMPED_BACK:
        return (
            "stamps or the clock go back; a bag in a loop needs --clock and use_sim_time, a camera "
            "a clock that nobody sets meanwhile (chrony or PTP)"
        )
    what = reason.value.removesuffix("_changed").replace("_", " ")
    return f"the images' {what} changes; let the camera's driver keep to one"
