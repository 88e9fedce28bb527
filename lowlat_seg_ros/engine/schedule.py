"""Pure decisions of the scheduler: when to start afresh and when a frame becomes the key frame."""

from __future__ import annotations

from lowlat_seg_ros.config import EngineConfig
from lowlat_seg_ros.engine.deadline import Level
from lowlat_seg_ros.frames import Frame, ResetReason


def needs_reset(
    previous: Frame | None, frame: Frame, config: EngineConfig, *, after_sh: bool = False
) -> ResetReason | None:
    """Why ``frame`` cannot use features of the frames before it, or None if it can.

    A stamp equal to the previous one is no jump (see :func:`repeats`).
    ``after_sh``: the previous frame ran Sh in the foreground. The gap after it is then that
    frame's own time, not the camera's silence; starting afresh for it would never end on a
    machine whose Sh takes longer than ``max_gap_ms``.
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
    if 0 < config.max_gap_ms < elapsed_ms and not after_sh:
        return ResetReason.GAP
    return None


def repeats(previous: Frame | None, frame: Frame) -> bool:
    """Whether ``frame`` has the stamp of the frame before it.

    The first such frame becomes the key frame: which of both images is the stamp's cannot be told.
    Its mask is made as usual, without Sh in the foreground, and those that follow it are ordinary,
    as a clock that stands still (paused, or a camera's without one) says nothing.
    """
    return previous is not None and frame.stamp_ns == previous.stamp_ns


def effective_threshold(calibrated: float, config: EngineConfig) -> float:
    """The deviation threshold in force: the setting, or ``calibrated`` while it is negative."""
    return config.deviation_threshold if config.deviation_threshold >= 0 else calibrated


def selects(age_frames: int, every: int, config: EngineConfig) -> bool:
    """Whether the selector runs: on each ``every``-th frame after the key frame, and on one that
    becomes the key frame for its age."""
    return age_frames % every == 0 or 0 < config.max_key_interval <= age_frames


def fills_idle_time(last_error: str, level: Level, config: EngineConfig) -> bool:
    """Whether frames become the key frame when Sh is idle, and then alone (``when_free``).

    Not while load is shed at Sh's cost, nor where a budget says how many frames may; nor after a
    failure of Sh, whose message is ``last_error``: else each frame would be handed to a Sh that
    fails, and its features carried on from carried ones. A frame that deviates tries again.
    """
    budgeted = config.key_frame_budget > 0 or config.slow_track_budget > 0
    fills = config.key_frame_policy == "when_free" and not budgeted
    return fills and level.slow_share >= 1 and not last_error


def is_key(deviation: float, threshold: float, age_frames: int, config: EngineConfig) -> bool:
    """Whether a frame becomes the key frame (paper Sec. 3.2), ``age_frames`` after the last one.

    A deviation that is not a number says nothing about the frame, so the safe answer is yes.
    """
    if 0 < config.max_key_interval <= age_frames:
        return True
    return not deviation <= threshold
