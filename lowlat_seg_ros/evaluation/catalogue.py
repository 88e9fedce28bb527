"""The names of all methods that are compared, and what they are; without loading torch."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase

from lowlat_seg_ros.config import ConfigError

#: Frames between key frames in the comparison of propagation (paper Table 2).
INTERVAL = 5

#: Intervals at which schedules are compared (paper Fig. 5).
INTERVALS = range(2, 11)

#: Frames that Sh takes, for ``adaptive_low_latency``.
DELAYS = (1, 2, 4, 8, 16)


@dataclass(frozen=True)
class Spec:
    """One method: ``kind`` says how it is built, the rest with what.

    ``schedule``: fixed, threshold or adaptive, at mean ``interval`` frames. ``delay_frames``: how
    long Sh takes in the background. ``weights``: whether it has a weights file of its own, which
    is named after it.
    """

    name: str
    kind: str
    help: str
    schedule: str = ""
    interval: int = 0
    delay_frames: int = 0
    weights: bool = False


def _with_weights(name: str, text: str) -> Spec:
    return Spec(name, "carried", text, "fixed", INTERVAL, weights=True)


#: All but those of kind ``own_network`` share the base network; fused is with AdaptNet (Table 1).
WITH_WEIGHTS = (
    Spec(
        "single_frame_trained",
        "own_network",
        "single_frame with an Sl trained for it alone",
        weights=True,
    ),
    Spec(
        "single_frame_wide",
        "own_network",
        "the same, as wide as the fast track's cost allows",
        weights=True,
    ),
    Spec("ddrnet23_slim", "own_network", "a real-time network on every frame", weights=True),
    _with_weights("clockwork", "F_h of the key frame as it is, fused"),
    _with_weights("clockwork_no_fuse", "the same without AdaptNet (Table 2)"),
    _with_weights("dff", "F_h warped along learned flow, fused"),
    _with_weights("dff_no_fuse", "the same without AdaptNet, as published (Table 2)"),
    Spec("grfp", "grfp", "full network and gated recurrent warp on every frame", weights=True),
    _with_weights("unified", "one learned kernel everywhere (Table 2)"),
    _with_weights("unified_fused", "the same, fused"),
    _with_weights("image_difference", "kernels from differences of the images (Table 2)"),
    _with_weights("image_difference_fused", "the same, fused"),
    _with_weights("adaptive_no_fuse", "predicted kernels without AdaptNet (Table 2)"),
)

PER_FRAME = (
    Spec("full", "full", "Sl, Sh and classifier on every frame"),
    Spec("full_os16", "full_os16", "the same weights at output stride 16"),
    Spec("full_half", "full_half", "the same network on a half-size image"),
    Spec("single_frame", "single_frame", "Sl, AdaptNet and the auxiliary classifier alone"),
)


def catalogue(delay_frames: int) -> tuple[Spec, ...]:
    """All methods, in the order of the table; ``delay_frames`` is the Sh delay of the main one."""
    fixed = [
        Spec(f"schedule_fixed_{n}", "keyed", f"adaptive, a key frame every {n}", "fixed", n)
        for n in INTERVALS
        if n != INTERVAL  # that is the method ``adaptive``
    ]
    measured = [
        Spec(f"schedule_{kind}_{n}", "keyed", f"adaptive, {text}, {n} frames on average", kind, n)
        for kind, text in (
            ("threshold", "key frames by the change of F_l"),
            ("adaptive", "key frames by the selector"),
        )
        for n in INTERVALS
    ]
    main = "adaptive_low_latency"
    delayed = [
        Spec(f"{main}_{n}", "low_latency", f"the same with {n}", delay_frames=n)
        for n in DELAYS
        if n != delay_frames
    ]
    return (
        *PER_FRAME,
        *WITH_WEIGHTS,
        Spec("adaptive", "keyed", "the paper's propagation, every fifth frame a key frame", "fixed",
             INTERVAL),
        *fixed,
        *measured,
        Spec(main, "low_latency", f"the engine; Sh takes {delay_frames} frames",
             delay_frames=delay_frames),
        *delayed,
    )  # fmt: skip


def choose(patterns: str, specs: tuple[Spec, ...]) -> list[Spec]:
    """The specs that ``patterns`` name: ``all``, or names with ``*`` and ``?``, comma-separated.

    Raises ``ConfigError`` for a pattern that fits none.
    """
    wanted = [word.strip() for word in patterns.split(",") if word.strip()]
    for word in wanted:
        if word != "all" and not any(fnmatchcase(spec.name, word) for spec in specs):
            names = ", ".join(spec.name for spec in specs)
            raise ConfigError(f"--methods has {word!r}, which fits no method; known: {names}")
    chosen = [s for s in specs if any(w == "all" or fnmatchcase(s.name, w) for w in wanted)]
    if not chosen:
        raise ConfigError("--methods is empty; give all, or names separated by commas")
    return chosen
