"""Whether a camera's images are plausible: their stamps, and what they show.

Each finding names the likely cause and its fix. Stamps that cannot be true are left out of every
statistic of ages and latencies, since those hold only what stamps say. What an image shows is
judged after its mask is out, on a grid of pixels, in a fraction of a millisecond: a network is
confident of its answer to black, too. Nothing here knows the middleware or a clock.
"""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass
from enum import Enum

import cv2
import numpy as np

from lowlat_seg_ros.frames import Look
from lowlat_seg_ros.network.expected_accuracy import COLUMNS, ROWS
from lowlat_seg_ros.ros.doctor import Finding, Severity

#: An image that comes so long after its stamp was not taken then: no camera link is so slow.
OLD_MS = 2000.0

#: A clock of a bag or a simulator may be behind the images by a few of its steps, no more.
AHEAD_MS = 250.0

#: Of the newest ``STAMPS`` images so many with one fault are said: one alone may be a bag's loop.
STAMPS, MANY = 10, 3

#: Stamps so close to the system's clock are of it, where /clock says another time.
SYSTEM_NS = 60 * 1_000_000_000

#: Seconds by which clocks differ from UTC that run right, but count otherwise (since 2017).
SCALES = {37: "TAI, as PTP does", 18: "GPS time"}

#: Time zones are up to so many hours from UTC.
ZONES = 14

#: Stamps before this (2001-09-09) are no dates but the time since something was switched on.
EPOCH_NS = 1_000_000_000 * 1_000_000_000

#: Images with a smaller side are not judged, px.
LEAST = 16

#: A kind is said when ``ENTER`` of the newest ``WINDOW`` images are of it, until no more than
#: ``LEAVE`` are: a lens cap at night, whose noise is sometimes above a limit, does not flap.
WINDOW, ENTER, LEAVE = 15, 10, 2

#: Of 8 bits: no brighter is black, no darker is saturated, no farther from the median is the same.
BLACK, WHITE, SAME = 16, 250, 4

#: Share of the grid that must be so; the rest may be hot pixels, a lamp or the time of day.
ALMOST_ALL = 0.97

#: Standard deviation of two values, one of them of the rest: 255 * sqrt(0.97 * 0.03), and a little.
MOST_CONTRAST = 45.0

#: Images in a row without any change that are said to be frozen: no sensor is without noise.
FROZEN = 10

#: The same of a video, whose encoder leaves out noise: while nothing moves, all pictures between
#: two of its key frames may be alike.
FROZEN_VIDEO = 600

#: Correlation of pixels so many columns apart below which images are noise: pictures have 0.5 and
#: more, also of foliage or gravel, while demosaicing and JPEG correlate only nearer neighbours. A
#: fence or a chart repeats itself: its pixels are opposites at one distance, or alike at another.
LAGS, NOISE = (4, 6), 0.2

#: Share of the rows that have one colour: at the lower end, where a transfer ended too soon, and
#: in all, as where every second row is lost. Columns are treated as rows in all.
END, HALF = 1 / 8, 0.45

#: Rows and columns that have had one colour in so many images in a row are no longer said: they
#: show the vehicle's hood, a mask, or the edge of a lens. Where transfers end varies.
OWN = 300


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
        self._newest: deque[StampFault | None] = deque(maxlen=STAMPS)
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
    off_s = abs(state.skew_ms) / 1e3
    for seconds, scale in SCALES.items():
        if abs(off_s - seconds) < 1:
            return (
                f"the camera's clock runs, but by {scale}, {seconds} s apart from UTC; have its "
                "driver add the offset, or PTP hand it on (ptp4l's utc_offset, phc2sys -O)"
            )
    text = "the clocks of camera and node differ; synchronise them (chrony or PTP)"
    if state.skew_ms >= 0:
        text += ", or play a bag with --clock and set use_sim_time to true"
    hours = round(off_s / 3600)
    if 1 <= hours <= ZONES and abs(off_s - 3600 * hours) < SYSTEM_NS / 1e9:
        text += "; as these are whole hours, see whether the driver stamps in local time, not UTC"
    return text


def duration(ms: float) -> str:
    seconds = ms / 1e3
    for unit, size in (("days", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.1f} s"


class Content(Enum):
    """What an image looks like that shows nothing, or not all; and where to look."""

    BLACK = "black; look at lens cap, exposure and cable"
    WHITE = "white, all its pixels saturated; look at exposure and aperture"
    FLAT = "of one colour; look at lens, cable and the driver's format"
    NOISE = "noise: neighbouring pixels have nothing in common; look at gain, cable and encoding"
    PARTIAL = (
        "of one colour in a part of the rows or columns; look for transfers cut short (of the "
        f"vehicle's hood or a mask it is no longer said after {OWN} images)"
    )


@dataclass(frozen=True)
class ContentState:
    """What many of the newest images look like, if they show nothing; ``unchanged`` is the number
    of images in a row that had the pixels of the one before. Brightness and contrast (standard
    deviation) are the newest one's, 0 to 255. ``own`` is the share of rows or columns, whichever is
    larger, that have had one colour for long.
    """

    content: Content | None = None
    unchanged: int = 0
    brightness: float = 0.0
    contrast: float = 0.0
    own: float = 0.0


class ContentMonitor:
    """Written by the image callback, read by any thread."""

    def __init__(self) -> None:
        self._newest: deque[Content | None] = deque(maxlen=WINDOW)
        self._state = ContentState()
        self._rows, self._columns = Lines(1), Lines(0)

    def image(self, image: np.ndarray, seen: Look) -> None:
        """Judge ``image``, uint8 (H, W, 3) RGB, by what the engine has ``seen`` of it."""
        content = self._look(image, seen.grid)
        self._newest.append(content)
        now = self._state.content
        if now is None or self._newest.count(now) <= LEAVE:
            now = next((kind for kind in Content if self._newest.count(kind) >= ENTER), None)
        brightness, contrast = (float(value[1, 0]) for value in cv2.meanStdDev(seen.grid))
        own = max(float(lines.own.mean()) for lines in (self._rows, self._columns))
        self._state = ContentState(now, seen.unchanged, brightness, contrast, own)

    @property
    def state(self) -> ContentState:
        return self._state

    def _look(self, image: np.ndarray, grid: np.ndarray) -> Content | None:
        """What ``image`` looks like, by its ``grid``; None where it shows something."""
        if min(image.shape[:2]) < LEAST:
            return None
        green = np.ascontiguousarray(grid[..., 1])
        rows, columns = self._rows.uniform(green), self._columns.uniform(green)
        # With more contrast than 3 % of extreme values give, no colour can be that of almost all.
        if cv2.meanStdDev(green)[1][0, 0] < MOST_CONTRAST and (blank := _blank(grid)):
            return blank
        own = self._rows.own
        if _partial(green, rows & ~own, columns & ~self._columns.own, own):
            return Content.PARTIAL
        correlated = (abs(_correlation(green, _shifted(image, lag))) for lag in LAGS)
        return Content.NOISE if max(correlated) < NOISE else None


class Lines:
    """The rows (``axis`` 1) or columns (0) that have one colour, and since how many images."""

    def __init__(self, axis: int) -> None:
        self._axis = axis
        self._since = np.zeros(1, int)
        self._value = 0

    @property
    def own(self) -> np.ndarray:
        """bool: those which have had it for ``OWN`` images and more."""
        return self._since >= OWN

    def uniform(self, channel: np.ndarray) -> np.ndarray:
        """bool: those of the next image's ``channel``, uint8 (R, C), with one value, that of the
        last such one."""
        low, high = channel.min(self._axis), channel.max(self._axis)
        one = high - low <= 1
        if self._since.shape != one.shape:
            self._since = np.zeros(one.shape, int)
        if one.any():
            value = int(low[np.flatnonzero(one)[-1]])
            one &= (value - 1 <= low) & (low <= value + 1)
            if abs(value - self._value) > SAME:
                self._since[:] = 0
            self._value = value
        # One odd image among many halves what was counted, and is no new beginning.
        self._since = np.where(one, np.minimum(self._since + 1, 2 * OWN), self._since // 2)
        return one


def _shifted(image: np.ndarray, lag: int) -> np.ndarray:
    """The pixels ``lag`` columns right of those of the grid, of the channel in the middle."""
    height, width = image.shape[:2]
    return image[:: height // ROWS | 1, lag :: width // COLUMNS | 1, 1]


def _blank(grid: np.ndarray) -> Content | None:
    enough = ALMOST_ALL * grid.size
    if np.count_nonzero(grid <= BLACK) >= enough:
        return Content.BLACK
    if np.count_nonzero(grid >= WHITE) >= enough:
        return Content.WHITE
    pixels = grid.shape[0] * grid.shape[1]
    medians = [
        np.partition(channel.ravel(), pixels // 2)[pixels // 2] for channel in cv2.split(grid)
    ]
    alike = np.abs(grid - np.array(medians, np.int16)) <= SAME
    return Content.FLAT if np.count_nonzero(alike) >= enough else None


def _partial(
    green: np.ndarray, rows: np.ndarray, columns: np.ndarray, own_rows: np.ndarray
) -> bool:
    """Whether so many ``rows`` or ``columns`` of a channel have one value that something is lost.

    What has long been so is not among them; ``own_rows`` says which rows have. A saturated upper
    end does not count: it is the sky where the exposure is for the road. Nor do two bars of one
    size, above and below, of a film.
    """
    if green[0].min() >= WHITE:
        rows[: int(np.argmin(rows))] = False
    if max(rows.mean(), columns.mean()) >= HALF:
        return True
    ends = rows | own_rows
    above, below = int(np.argmin(ends)), int(np.argmin(ends[::-1]))  # rows at both ends
    letterboxed = abs(above - below) <= 1
    new = np.count_nonzero(rows[rows.size - below :])
    return new >= END * rows.size and not letterboxed


def _correlation(green: np.ndarray, shifted: np.ndarray) -> float:
    """Of the grid's pixels and those beside them, uint8 (R, C) and (R, C or less)."""
    left = green[:, : shifted.shape[1]] - np.float32(green.mean())
    right = shifted - np.float32(shifted.mean())
    scale = float(np.linalg.norm(left) * np.linalg.norm(right))
    return float(np.vdot(left, right)) / scale if scale else 1.0


def examine_contents(state: ContentState, *, video: bool = False) -> list[Finding]:
    """What is wrong with the newest images; ``video``: they were H.264 or H.265."""
    content, count = state.content, state.unchanged + 1
    if content is not None:
        text = f"the camera's images are {content.value}"
        return [Finding(Severity.WARN, text, f"content {content.name}")]
    if count < (FROZEN_VIDEO if video else FROZEN):
        return []
    text = (
        f"the same pixels for {count} frames under new stamps: the camera or its driver is frozen; "
        "restart it, unless the scene is rendered and stands still"
    )
    return [Finding(Severity.WARN, text, "frozen")]
