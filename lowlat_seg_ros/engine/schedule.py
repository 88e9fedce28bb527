"""Pure decisions of the scheduler: resets, key frames, and what load is shed.

docs/method.md lists the rules by name. Nothing here knows a clock, a thread or a tensor.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

from lowlat_seg_ros.config import EngineConfig
from lowlat_seg_ros.frames import Deadline, Frame, ResetReason

#: ms by which a gap may be longer where Sh ran in the foreground before it.
SH_GAP_MS = 30_000.0


def needs_reset(
    previous: Frame | None, frame: Frame, config: EngineConfig, *, after_sh: bool = False
) -> ResetReason | None:
    """Why ``frame`` cannot use features of the frames before it, or None if it can.

    A stamp equal to the previous one is no jump (see :func:`repeats`).
    ``after_sh``: the previous frame ran Sh in the foreground. The gap after it is then that
    frame's own time, not the camera's silence; a reset for it would repeat for ever on a machine
    whose Sh takes longer than ``max_gap_ms``. It may be :data:`SH_GAP_MS` longer.
    """
    if previous is None:
        return ResetReason.FIRST_FRAME
    if frame.image.shape != previous.image.shape:
        return ResetReason.SIZE_CHANGED
    if frame.encoding != previous.encoding:
        return ResetReason.ENCODING_CHANGED
    if frame.frame_id != previous.frame_id:
        return ResetReason.FRAME_ID_CHANGED
    elapsed_ms = (frame.stamp_ns - previous.stamp_ns) / 1e6
    if elapsed_ms < 0:
        return ResetReason.TIME_JUMPED_BACK
    limit_ms = config.max_gap_ms + (SH_GAP_MS if after_sh else 0.0)
    if config.max_gap_ms > 0 and elapsed_ms > limit_ms:
        return ResetReason.GAP
    return None


def repeats(previous: Frame | None, frame: Frame) -> bool:
    """Whether ``frame`` has the stamp of the frame before it.

    The first such frame becomes the key frame, because nobody can tell which of both images the
    stamp belongs to. Its mask is made as usual, without Sh in the foreground. Those that follow it
    are ordinary: a clock that stands still (paused, or a camera without one) says nothing.
    """
    return previous is not None and frame.stamp_ns == previous.stamp_ns


def effective_threshold(calibrated: float, config: EngineConfig) -> float:
    """The deviation threshold in force: the setting, or ``calibrated`` while it is negative."""
    return config.deviation_threshold if config.deviation_threshold >= 0 else calibrated


def selects(age_frames: int, every: int, config: EngineConfig) -> bool:
    """Whether the selector runs: on each ``every``-th frame after the key frame, and on one that
    becomes the key frame for its age."""
    return age_frames % every == 0 or 0 < config.max_key_interval <= age_frames


#: After a failure of Sh idle time is filled no more often than by each so-many-th frame.
RETRY_FRAMES = 30


def fills_idle_time(last_error: str, age_frames: int, level: Level, config: EngineConfig) -> bool:
    """Whether a frame becomes the key frame when Sh is idle, and only then (``when_free``).

    Not while load is shed at Sh's cost, nor where ``key_frame_budget`` limits key frames. After a
    failure of Sh, whose message is ``last_error``, only when the key frame is ``RETRY_FRAMES`` old:
    otherwise each frame would be handed to a Sh that fails, and its features would be carried from
    carried ones. A frame that deviates retries sooner; in a static scene none does.
    """
    fills = config.key_frame_policy == "when_free" and config.key_frame_budget <= 0
    may_work = not last_error or age_frames >= RETRY_FRAMES
    return fills and level.slow_share >= 1 and may_work


def is_key(deviation: float, threshold: float, age_frames: int, config: EngineConfig) -> bool:
    """Whether a frame becomes the key frame (paper Sec. 3.2), ``age_frames`` after the last one.

    A deviation that is not a number says nothing about the frame, so the safe answer is yes.
    """
    if 0 < config.max_key_interval <= age_frames:
        return True
    return not deviation <= threshold


#: Bounds of a steered threshold: fractions of pixels. Above HIGH no frame becomes the key frame.
LOW, HIGH = 1e-3, 1.0
#: A factor of 3 takes some 50 frames at a share of 0.1; the threshold then ripples by a tenth.
GAIN = 0.2


class KeyFrameBudget:
    """Steers the threshold so that ``key_frame_budget`` of the frames become the key frame.

    After each frame the logarithm of the threshold moves up by ``GAIN`` if it became the key frame,
    and down by ``GAIN * target`` in any case. Whatever the deviations are, as long as they lie
    between ``LOW`` and ``HIGH``, the share of key frames among n then differs from the target by no
    more than ``(ln(HIGH / LOW) + 2 * GAIN) / (GAIN * n)``: the steps add up to where the threshold
    is now, and it cannot leave its bounds by more than a step (Gibbs and Candes, "Adaptive
    Conformal Inference Under Distribution Shift", NeurIPS 2021, Proposition 4.1). In a scene where
    less than ``LOW`` changes, fewer frames become the key frame than asked for.
    """

    def __init__(self) -> None:
        self._log: float | None = None  # of the steered threshold; None without a budget

    def threshold(self, fixed: float, target: float) -> float:
        """The next frame's threshold: ``fixed`` where ``target``, the share to reach, is 0.

        Otherwise it is the steered one, which starts at ``fixed``.
        """
        if target <= 0:
            self._log = None
            return fixed
        if self._log is None:
            self._log = math.log(min(max(fixed, LOW), HIGH))
        return min(max(math.exp(self._log), LOW), HIGH)

    def observe(self, is_key: bool, target: float) -> None:
        if self._log is not None:
            log = self._log + GAIN * (is_key - target)
            self._log = min(max(log, math.log(LOW) - GAIN), math.log(HIGH) + GAIN)


@dataclass(frozen=True)
class Level:
    """One level of shedding load, with its description for diagnostics.

    ``selector_every``: the selector runs on every so-many-th frame after the key frame.
    ``pictures``: whether the node makes overlays and colour masks. ``slow_share``: upper bound of
    ``EngineConfig.slow_track_min_share``. ``scale``: of the sides of the network's input.
    """

    doc: str
    selector_every: int = 1
    pictures: bool = True
    slow_share: float = 1.0
    scale: float = 1.0


#: Each level sheds what those before it do, and more. Masks do not drift without end on any: a key
#: frame is chosen two frames later at most, max_key_interval is exact to the frame, and Sh has a
#: share, because with none its exact features might not arrive while the load lasts.
LEVELS = (
    Level("nothing is shed"),
    Level("the selector runs on every third frame", 3),
    Level("also no overlay or colour mask, and Sh has 5 % of a busy time at most", 3, False, 0.05),
    Level("also the network runs at 3/4 of its width and height", 3, False, 0.05, 3 / 4),
    Level("also the network runs at 1/2 of its width and height", 3, False, 0.05, 1 / 2),
)

#: One level up after so many late masks among the newest UP_WINDOW of the present level: one slow
#: frame (a full one, say) sheds nothing.
UP_MISSES = 3
UP_WINDOW = 10
#: One level down after so many frames in a row that would fit there too. If they do not fit after
#: all, UP_MISSES of them are late, so that trying costs at most one late mask in ten.
DOWN_FRAMES = 30
#: A frame is taken to cost this much more a level further down, where its size stays the same.
MARGIN = 1.25


class LoadShedder:
    """Chooses the level by the latencies of masks; used by one thread.

    The latency that counts runs from a frame's arrival on this machine to its mask: the time that
    it waited for the engine, and the engine's own. The engine's time alone would not do: what comes
    after a mask (selector, pictures) delays the next one, by that wait. The age since the image's
    stamp would not do either: exposure and transport cannot be shed, and the stamp is of the
    camera's clock, of a bag or of a simulation.
    """

    def __init__(self) -> None:
        self._limit_ms = 0.0
        self._level = 0
        self._late: deque[bool] = deque(maxlen=UP_WINDOW)
        self._roomy = 0  # frames in a row that would fit one level down

    def begin(self, limit_ms: float) -> Level:
        """The level of the next frame; ``limit_ms`` is the deadline from now on, 0 for none.

        A change of the limit clears what was seen.
        """
        if limit_ms != self._limit_ms:
            self._limit_ms = limit_ms
            self._go_to(self._level if limit_ms > 0 else 0)
        return LEVELS[self._level]

    def mask_out(self, latency_ms: float) -> Deadline:
        missed = 0 < self._limit_ms < latency_ms
        result = Deadline(self._level, latency_ms, missed)
        if self._limit_ms > 0:
            self._late.append(missed)
            fits_below = latency_ms * growth(self._level) <= self._limit_ms
            self._roomy = self._roomy + 1 if fits_below else 0
            if sum(self._late) >= UP_MISSES and self._level < len(LEVELS) - 1:
                self._go_to(self._level + 1)
            elif self._roomy >= DOWN_FRAMES and self._level > 0:
                self._go_to(self._level - 1)
        return result

    def _go_to(self, level: int) -> None:
        self._level, self._roomy = level, 0
        self._late.clear()


def growth(level: int) -> float:
    """How many times longer a frame may take one level below ``level``: as its pixels grow."""
    if level == 0:
        return MARGIN
    return max(MARGIN, (LEVELS[level - 1].scale / LEVELS[level].scale) ** 2)


class StreamSchedule:
    """What the decisions on one stream's frames depend on; used by the thread they are in.

    Each frame goes through :meth:`begin`, :meth:`mask_out` and :meth:`finish`; one that fails may
    end before any of them. ``threshold`` is that of the newest frame.
    """

    def __init__(self, calibrated: float, config: EngineConfig) -> None:
        self.threshold = effective_threshold(calibrated, config)
        self._calibrated = calibrated
        self._budget, self._shedder = KeyFrameBudget(), LoadShedder()
        self._previous: Frame | None = None
        self._previous_ran_sh = self._clock_stands = False

    def begin(self, frame: Frame, config: EngineConfig) -> tuple[Level, ResetReason | None, bool]:
        """A frame came in: its level, why it begins an epoch, and whether its stamp is repeated."""
        fixed = effective_threshold(self._calibrated, config)
        self.threshold = self._budget.threshold(fixed, config.key_frame_budget)
        level = self._shedder.begin(config.max_latency_ms)
        reason = needs_reset(self._previous, frame, config, after_sh=self._previous_ran_sh)
        duplicate = repeats(self._previous, frame) and not self._clock_stands
        return level, reason, duplicate

    def mask_out(self, frame: Frame, latency_ms: float, *, ran_sh: bool) -> Deadline:
        """Its mask is out; ``ran_sh``: Sh ran in the foreground."""
        self._clock_stands = repeats(self._previous, frame)
        self._previous, self._previous_ran_sh = frame, ran_sh
        return self._shedder.mask_out(latency_ms)

    def finish(self, is_key: bool, config: EngineConfig) -> None:
        self._budget.observe(is_key, config.key_frame_budget)
