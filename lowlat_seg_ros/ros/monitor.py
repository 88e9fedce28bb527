"""What is remembered of a camera stream: times, rates, pace, and what was logged."""

from __future__ import annotations

import dataclasses
import math
import statistics
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from lowlat_seg_ros.engine.timing import Percentiles, PercentileTracker
from lowlat_seg_ros.frames import Deadline, Ledger, NodeTiming, StageTiming
from lowlat_seg_ros.ros.doctor import Finding, Severity
from lowlat_seg_ros.ros.plausibility import StampMonitor, StampState

#: Frames over which the pace is measured, and as few as say something.
PACE_WINDOW, ENOUGH = 60, 20

#: Share of the time that a size which fits may need, by the number of its pixels.
ROOMY = 0.9

#: The network says little about images that are not as high as this.
LEAST_HEIGHT = 96

#: Times between images whose median is the camera's own period; a camera that is silent for so many
#: periods has stopped, however slow it is.
INTERVALS, MISSED = 5, 3


@dataclass(frozen=True)
class StreamTimes:
    """Times of a camera stream at one moment.

    The first three are on the ROS clock, and None before the first image or mask; the age is
    negative where the stamp is ahead of the clock. ``silent_ms`` is the time since the newest
    image, or before the first since the start. ``period_ms`` is the time between two of the newest
    images, in the median, 0 before the second one. ``delayed_ms`` is how long now every frame took
    too long, 0 if the newest did not. ``processing_ms`` and ``age_ms`` are over the newest masks,
    the age without those whose stamp cannot be true; ``timing`` has none of such a mask (NaN).
    """

    image_age_ms: float | None = None  # now - stamp of the newest image
    since_image_ms: float | None = None  # since an image came in
    since_publish_ms: float | None = None  # since a mask went out
    silent_ms: float = 0.0
    period_ms: float = 0.0
    delayed_ms: float = 0.0
    stages: StageTiming = field(default_factory=StageTiming)  # of the newest mask
    timing: NodeTiming = field(default_factory=NodeTiming)
    deadline: Deadline = field(default_factory=Deadline)
    processing_ms: Percentiles = field(default_factory=Percentiles)
    age_ms: Percentiles = field(default_factory=Percentiles)
    stamps: StampState = field(default_factory=StampState)


@dataclass
class BusyTime:
    """How long images of all cameras have been worked on; their one thread writes it.

    ``began_ns``: when the work at hand began, on a monotonic clock; 0 for none.
    """

    total_ns: int = 0
    began_ns: int = 0

    @contextmanager
    def work(self, began_ns: int) -> Iterator[None]:
        """Entered while an image is worked on."""
        self.began_ns = began_ns
        try:
            yield
        finally:
            self.total_ns += time.perf_counter_ns() - began_ns
            self.began_ns = 0

    def working_ms(self) -> float:
        """For how long the image at hand has been worked on; 0 for none."""
        began_ns = self.began_ns
        return (time.perf_counter_ns() - began_ns) / 1e6 if began_ns else 0.0


class StreamMonitor:
    """Written by the image callback, read by any thread; ``ros_now_ns`` is the node's clock."""

    def __init__(self, ros_now_ns: Callable[[], int]) -> None:
        self._ros_now_ns = ros_now_ns
        self._processing, self._age = PercentileTracker(), PercentileTracker()
        self._clock_began_ns = 0  # a simulated clock stands at 0 before it is set
        self._started_ns = self._now_ns()
        self._image: tuple[int, int] | None = None  # stamp, and when it came in
        self._intervals = deque[float](maxlen=INTERVALS)  # between images, ms
        self._stamps, self._plausible = StampMonitor(), True
        # When the newest mask went out, and its times.
        self._published: tuple[int, StreamTimes] | None = None
        self._late_since_ns: int | None = None  # monotonic

    def _now_ns(self) -> int:
        now_ns = self._ros_now_ns()
        self._clock_began_ns = self._clock_began_ns or now_ns
        return now_ns

    def start(self) -> None:
        self._started_ns, self._image = self._now_ns(), None
        self._stamps = StampMonitor()
        self._intervals.clear()

    def image(self, stamp_ns: int, superseded: int = 0, arrived_ns: int | None = None) -> None:
        """An image came in, now or at ``arrived_ns``, and ``superseded`` before it did not."""
        now_ns = self._now_ns() if arrived_ns is None else arrived_ns
        # A simulated clock stands at 0 before it is set, and goes back where a bag loops.
        if self._image is not None and 0 < self._image[1] < now_ns:
            self._intervals.append(since_ms(self._image[1], now_ns) / (1 + superseded))
        self._image = stamp_ns, now_ns
        self._plausible = self._stamps.image(stamp_ns, now_ns)

    def published(
        self,
        stages: StageTiming,
        timing: NodeTiming,
        deadline: Deadline,
        began_ns: int,
        max_processing_ms: float,
    ) -> None:
        """A mask went out; its image callback began at ``began_ns`` on a monotonic clock."""
        self._processing.add(timing.processing_ms)
        if self._plausible and timing.age_ms >= 0:
            self._age.add(timing.age_ms)
        else:
            timing = dataclasses.replace(timing, age_ms=math.nan)
        if 0 < max_processing_ms < timing.processing_ms:
            self._late_since_ns = self._late_since_ns or began_ns
        else:
            self._late_since_ns = None
        late_ms = (began_ns - self._late_since_ns) / 1e6 if self._late_since_ns else 0.0
        delayed_ms = late_ms + timing.processing_ms if self._late_since_ns else 0.0
        newest = StreamTimes(delayed_ms=delayed_ms, stages=stages, timing=timing, deadline=deadline)
        self._published = self._ros_now_ns(), newest

    def times(self) -> StreamTimes:
        now, image, published = self._now_ns(), self._image, self._published
        processing_ms, age_ms = self._processing.percentiles(), self._age.percentiles()
        if image is None:
            silent_ms = since_ms(self._started_ns or self._clock_began_ns, now)
            return StreamTimes(silent_ms=silent_ms, processing_ms=processing_ms, age_ms=age_ms)
        stamps = self._stamps.state()
        at_ns, newest = published or (now, StreamTimes())
        intervals = self._intervals.copy()
        silent_ms = since_ms(image[1] or self._clock_began_ns, now)
        return dataclasses.replace(
            newest,
            image_age_ms=(now - image[0]) / 1e6,
            since_image_ms=silent_ms,
            since_publish_ms=since_ms(at_ns, now) if published else None,
            silent_ms=silent_ms,
            period_ms=statistics.median(intervals) if intervals else 0.0,
            processing_ms=processing_ms,
            age_ms=age_ms,
            stamps=stamps,
        )


@dataclass(frozen=True)
class Rates:
    """What went through since the last message; ``refused`` counts rejected and failed.

    ``busy_share`` is the share of that time in which images were worked on, of any camera.
    """

    input_hz: float = 0.0
    output_hz: float = 0.0
    refused: int = 0
    received: int = 0
    superseded: int = 0
    busy_share: float = 0.0


class RateMeter:
    """Differences between the ledgers and busy times of successive calls."""

    def __init__(self, now_s: float) -> None:
        self._ledger, self._at_s, self._busy_s = Ledger(), now_s, 0.0

    def update(self, ledger: Ledger, now_s: float, busy_s: float = 0.0) -> Rates:
        """Rates since the last call; ``now_s`` is monotonic, ``busy_s`` the busy time in all."""
        old, elapsed_s = self._ledger, now_s - self._at_s
        busy_share = (busy_s - self._busy_s) / elapsed_s
        self._ledger, self._at_s, self._busy_s = ledger, now_s, busy_s
        refused = ledger.rejected + ledger.failed - old.rejected - old.failed
        received, published = ledger.received - old.received, ledger.published - old.published
        superseded = ledger.superseded - old.superseded
        return Rates(
            received / elapsed_s, published / elapsed_s, refused, received, superseded, busy_share
        )


def patience_ms(timeout_ms: float, period_ms: float) -> float:
    """How long no image may come; 0 for ever, which ``timeout_ms`` is then as well.

    A slow camera has the time of its own ``period_ms``. Before two images have come that is not
    known (0), and may be as long as the ``timeout_ms``.
    """
    return max(timeout_ms, MISSED * (period_ms or timeout_ms)) if timeout_ms > 0 else 0.0


def since_ms(then_ns: int, now_ns: int) -> float:
    """Milliseconds between two times of the ROS clock; 0 if it was set back in between."""
    return max(now_ns - then_ns, 0) / 1e6


@dataclass(frozen=True)
class Pace:
    """What a frame takes, in the median, and the time between two images; 0 until both are known.

    ``takes_ms`` runs from the begin of its handling to its end, pictures of the mask included.
    ``height`` is that of the network's input.
    """

    takes_ms: float = 0.0
    period_ms: float = 0.0
    height: int = 0

    @property
    def load(self) -> float:
        """Share of the time that the camera's images need, above 1 if they need more."""
        return self.takes_ms / self.period_ms if self.period_ms else 0.0


class PaceMeter:
    """Over the newest frames of a camera; one thread writes, any may read."""

    def __init__(self) -> None:
        # When it began, images sent before it, what it took.
        self._frames: deque[tuple[int, int, float]] = deque(maxlen=PACE_WINDOW)

    def frame(self, began_ns: int, ended_ns: int, superseded: int) -> None:
        """A frame was worked on, on a monotonic clock; ``superseded`` images before it were not."""
        sent = self._frames[-1][1] + 1 + superseded if self._frames else 0
        self._frames.append((began_ns, sent, (ended_ns - began_ns) / 1e6))

    def pace(self, height: int) -> Pace:
        """How things stand now, with a network's input of this ``height``."""
        frames = self._frames.copy()
        if len(frames) < ENOUGH:
            return Pace()
        (began_ns, first, _), (ended_ns, last, _) = frames[0], frames[-1]
        takes_ms = statistics.median(took_ms for _, _, took_ms in frames)
        return Pace(takes_ms, (ended_ns - began_ns) / 1e6 / (last - first), height)


def examine_pace(pace: Pace, load: float) -> list[Finding]:
    """What to do where images come faster than frames are done.

    ``load``: share of the time that all cameras need together, which take turns.
    """
    if load <= 1.0 or not pace.period_ms:  # it is the others' load, while this one's is not known
        return []
    # The time goes with the pixels, nearly; whole cells of the network's features.
    fits = math.floor(pace.height * math.sqrt(ROOMY / load) / 8) * 8
    rate_hz = math.floor(10 * ROOMY * 1e3 / pace.period_ms / load) / 10
    slower = f"let the camera send at most {rate_hz:.1f} images a second"
    way = f"set inference_height, now {pace.height}, to {fits} or less, or {slower}"
    others = "" if load == pace.load else ", and the other cameras need the same thread"
    text = (
        f"images come every {pace.period_ms:.0f} ms but a frame takes {pace.takes_ms:.0f} ms "
        f"(median){others}, so that some are left out; {way if fits >= LEAST_HEIGHT else slower}"
    )
    return [Finding(Severity.WARN, text, "pace")]


class Throttle:
    """Passes on the first text of a kind, and then at most one every ``period_s`` seconds.

    Kinds must be few (enum members, exception types), since each is remembered.
    """

    def __init__(self, write: Callable[[str], None], clock: Callable[[], float] = time.monotonic):
        self._write = write
        self._clock = clock
        self._last: dict[Hashable, float] = {}
        self._left_out: dict[Hashable, int] = {}

    def __call__(self, kind: Hashable, text: str, period_s: float) -> None:
        """Write ``text``, unless one of its ``kind`` was written less than ``period_s`` ago."""
        now = self._clock()
        if kind in self._last and now - self._last[kind] < period_s:
            self._left_out[kind] = self._left_out.get(kind, 0) + 1
            return
        left_out = self._left_out.pop(kind, 0)
        self._last[kind] = now
        self._write(text + (f" ({left_out} more like this since)" if left_out else ""))
