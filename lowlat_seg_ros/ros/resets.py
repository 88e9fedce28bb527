"""How often a stream begins anew, and why: each reset costs its frame the time of Sh."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from lowlat_seg_ros.frames import Counters, ResetReason
from lowlat_seg_ros.ros.doctor import End, Finding, Severity, names

#: Seconds over which resets are counted.
WINDOW_S = 10.0

#: From so many resets on, and this share of the frames, the low latency is gone.
STORM, STORM_SHARE = 3, 0.25

#: What a loop of a bag may cost: the clock and the stamps go back on two topics.
LOOP = 2

#: Those that nobody asked for.
_REASONS = [
    reason
    for reason in ResetReason
    if reason not in (ResetReason.FIRST_FRAME, ResetReason.REQUESTED, ResetReason.ACTIVATED)
]


@dataclass(frozen=True)
class Resets:
    """The newest ``seconds``: masks, and those of them that began an epoch, by reason."""

    seconds: float = 0.0
    frames: int = 0
    by_reason: dict[ResetReason, int] = field(default_factory=dict)

    @property
    def count(self) -> int:
        """All of them."""
        return sum(self.by_reason.values())

    @property
    def share(self) -> float:
        """Of the masks."""
        return self.count / max(self.frames, 1)


class ResetMeter:
    """Remembers the counters of the newest ``WINDOW_S``; used by one thread."""

    def __init__(self, now_s: float) -> None:
        self._seen = deque([(now_s, Counters())])

    def update(self, counters: Counters, now_s: float) -> Resets:
        """What the newest seconds were like, with ``counters`` as they are at ``now_s``."""
        self._seen.append((now_s, counters))
        while self._seen[1][0] <= now_s - WINDOW_S:
            self._seen.popleft()
        began_s, old = self._seen[0]
        counted = {
            reason: getattr(counters, name) - getattr(old, name)
            for reason in _REASONS
            for name in [f"resets_{reason.value}"]
        }
        by_reason = {reason: count for reason, count in counted.items() if count}
        return Resets(now_s - began_s, counters.frames - old.frames, by_reason)


def examine_resets(
    resets: Resets, publishers: Sequence[End], *, simulated: bool = False
) -> list[Finding]:
    """What makes the stream begin anew, and what ends it; ``publishers`` are those of its images.

    ``simulated``: the node goes by /clock, so that a bag may be played in a loop.
    """
    back = resets.by_reason.get(ResetReason.TIME_JUMPED_BACK, 0)
    # One pause or change of settings of the camera is no fault; a clock that goes back is one.
    if resets.count <= (LOOP if simulated and resets.count == back else 1 - bool(back)):
        return []
    storm = resets.count >= STORM and resets.share >= STORM_SHARE
    reasons = ", ".join(f"{reason.value} {count}" for reason, count in resets.by_reason.items())
    worst = max(resets.by_reason, key=lambda reason: resets.by_reason[reason])
    text = (
        f"{resets.count} of {resets.frames} frames within {resets.seconds:.0f} s began anew, with "
        f"Sh in the foreground ({reasons}): {_cause(worst, publishers)}"
    )
    severity = Severity.ERROR if storm else Severity.WARN
    return [Finding(severity, text, f"resets {worst.value}")]


def _cause(reason: ResetReason, publishers: Sequence[End]) -> str:
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
