"""A camera stream at one moment: its times, rates, resets and findings, for ``/diagnostics``.

Each reset costs its frame the time of Sh, so that what resets a stream often is found here, too.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from rclpy.node import Node

from lowlat_seg_ros.engine.engine import Engine
from lowlat_seg_ros.engine.slow_track import SlowTrackState
from lowlat_seg_ros.frames import Counters, Ledger, NodeTiming, ResetReason, Segmentation
from lowlat_seg_ros.ros.connections import ImageConnection
from lowlat_seg_ros.ros.doctor import End, Finding, Severity, examine_input, names
from lowlat_seg_ros.ros.monitor import (
    BusyTime,
    Pace,
    PaceMeter,
    RateMeter,
    Rates,
    StreamMonitor,
    StreamTimes,
    patience_ms,
)
from lowlat_seg_ros.ros.outputs import Outputs
from lowlat_seg_ros.ros.params import Settings
from lowlat_seg_ros.ros.plausibility import (
    Clocks,
    ContentMonitor,
    ContentState,
    examine_contents,
    examine_stamps,
)

#: ``/diagnostics`` judge the median over so many of the newest masks: one alone may be an outlier.
ACCURACIES = 5

#: Seconds over which resets are counted.
RESETS_S = 10.0

#: From so many resets on, and this share of the frames, the low latency is gone.
STORM, STORM_SHARE = 3, 0.25

#: What a loop of a bag may cost: the clock and the stamps go back on two topics.
LOOP = 2

#: Those that somebody asked for.
_ASKED = (ResetReason.FIRST_FRAME, ResetReason.REQUESTED, ResetReason.ACTIVATED)


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


#: A camera is slow whose images are so many times farther apart than a limit: one that is about as
#: slow as that is not said to be now slow, now not.
SLOW = 1.2


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
    slow = worst is ResetReason.GAP and 0 < max_gap_ms < SLOW * period_ms
    storm = resets.count >= STORM and resets.share >= STORM_SHARE and not slow
    reasons = ", ".join(f"{reason.value} {count}" for reason, count in resets.by_reason.items())
    cause = _reset_cause(worst, publishers)
    if slow:
        cause = (
            f"an image comes every {period_ms / 1e3:.1f} s, which advanced.max_gap_ms, "
            f"{max_gap_ms:g}, takes for a gap; set it to {math.ceil(period_ms / 50) * 100:.1f}"
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


@dataclass(frozen=True)
class StreamState:
    """A camera stream at one moment; ``camera`` is its name, empty if there is but one.

    The doctor's findings on the image topic come worst first, apart from those on the outputs, and
    from ``image_findings`` on what the images are like. ``load`` is the share of the time that the
    images of all cameras need, ``working_ms`` how long the image at hand, of any camera, has been
    worked on, during which no other one is taken. ``complaint``: why the newest image without a
    mask has none. ``expected_accuracy``: of the newest masks, in the median.
    """

    camera: str
    topic: str
    publishers: int
    ledger: Ledger
    times: StreamTimes
    rates: Rates
    counters: Counters
    slow_track: SlowTrackState
    threshold: float = 0.0
    findings: tuple[Finding, ...] = ()
    output_findings: tuple[Finding, ...] = ()
    image_findings: tuple[Finding, ...] = ()
    contents: ContentState = field(default_factory=ContentState)
    resets: Resets = field(default_factory=Resets)
    pace: Pace = field(default_factory=Pace)
    load: float = 0.0
    working_ms: float = 0.0
    complaint: str = ""
    expected_accuracy: float = math.nan


class StreamWatch:
    """Watches one camera's stream: the image callback writes, diagnostics read.

    ``camera`` is its name where there are several; ``busy`` is that of all. ``video``: the images
    come in a video, whose encoder leaves the sensor's noise out.
    """

    def __init__(
        self,
        node: Node,
        camera: str,
        busy: BusyTime,
        images: ImageConnection,
        outputs: Outputs,
        engine: Engine,
        *,
        video: bool,
    ) -> None:
        self._node, self._camera, self._busy = node, camera, busy
        self._images, self._outputs, self._engine = images, outputs, engine
        self._video, self._complaint = video, ""
        self._monitor = StreamMonitor(lambda: node.get_clock().now().nanoseconds)
        self._resets, self._rates = ResetMeter(time.monotonic()), RateMeter(time.monotonic())
        self._image_bytes, self._image_size = 0, (0, 0)  # of the newest image
        self._restart()

    def start(self) -> None:
        """Images come from now on; those of before say nothing of them."""
        self._restart()
        self._monitor.start()

    def _restart(self) -> None:
        self._contents, self._pace = ContentMonitor(), PaceMeter()
        self._accuracies = deque[float](maxlen=ACCURACIES)  # expected, of the newest masks

    def image(self, stamp_ns: int, size_bytes: int, superseded: int, arrived_ns: int) -> None:
        """An image came at ``arrived_ns`` of the node's clock, and some before it did not."""
        self._image_bytes = size_bytes
        self._monitor.image(stamp_ns, superseded, arrived_ns)

    def published(
        self, result: Segmentation, timing: NodeTiming, began_ns: int, limit_ms: float
    ) -> None:
        """A mask went out; see :meth:`StreamMonitor.published`."""
        self._monitor.published(result.timing, timing, result.deadline, began_ns, limit_ms)
        self._accuracies.append(result.expected_accuracy)

    def seen(self, image: np.ndarray, result: Segmentation) -> None:
        """What ``image``, uint8 (H, W, 3) RGB, shows; called when all is published."""
        self._image_size = image.shape[:2]
        if result.look is not None:  # as the engine's results have it
            self._contents.image(image, result.look)

    def refused(self, why: str) -> None:
        """The newest image gave no mask, or failed after it."""
        self._complaint = why

    def done(self, began_ns: int, superseded: int) -> None:
        """The work on an image ends; so many before it were superseded."""
        self._pace.frame(began_ns, time.perf_counter_ns(), superseded)

    def state(self, now_s: float, ledger: Ledger, settings: Settings) -> StreamState:
        """The stream at this moment; rates are since the last call."""
        times, counters = self._monitor.times(), self._engine.counters
        working_ms = self._busy.working_ms()  # meanwhile no image is taken, of any camera
        rates = self._rates.update(ledger, now_s, self._busy.total_ns / 1e9 + working_ms / 1e3)
        resets, contents = self._resets.update(counters, now_s), self._contents.state
        images = dataclasses.replace(
            self._images.look(),
            begun=times.since_image_ms is not None,
            silent_ms=max(times.silent_ms - working_ms, 0.0),
            timeout_ms=patience_ms(settings.node.camera_timeout_ms, times.period_ms),
            missing=rates.superseded,
            received=rates.received,
            busy_share=rates.busy_share,
            image_bytes=self._image_bytes,
        )
        max_gap_ms = settings.engine.max_gap_ms
        image_findings = self._examine(times, resets, contents, images.fitting, max_gap_ms)
        begun = all(self._image_size)
        height = self._engine.inference_size(self._image_size)[0] if begun else 0
        accuracies = self._accuracies.copy()
        return StreamState(
            self._camera,
            self._images.topic,
            self._images.publishers,
            ledger,
            times,
            rates,
            counters,
            self._engine.slow_track(),
            self._engine.threshold,
            findings=tuple(examine_input(images, settings.node.max_lost_share)),
            output_findings=tuple(self._outputs.findings()),
            image_findings=tuple(image_findings),
            contents=contents,
            resets=resets,
            pace=self._pace.pace(height),
            working_ms=working_ms,
            complaint=self._complaint,
            expected_accuracy=statistics.median(accuracies) if accuracies else math.nan,
        )

    def _examine(
        self,
        times: StreamTimes,
        resets: Resets,
        contents: ContentState,
        publishers: Sequence[End],
        max_gap_ms: float,
    ) -> list[Finding]:
        """What is wrong with the images themselves."""
        simulated = bool(self._node.get_clock().ros_time_is_active)
        clocks = Clocks(time.time_ns(), simulated, self._node.count_publishers("/clock") > 0)
        return [
            *examine_resets(
                resets,
                publishers,
                simulated=simulated,
                period_ms=times.period_ms,
                max_gap_ms=max_gap_ms,
            ),
            *examine_stamps(times.stamps, clocks),
            *examine_contents(contents, video=self._video),
        ]
