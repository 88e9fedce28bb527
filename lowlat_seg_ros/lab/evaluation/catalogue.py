"""The names of all methods that are compared, and what they are; without loading torch.

CONTRIBUTING.md says how to add a method.
"""

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

#: The method that all others are compared with.
MAIN = "adaptive_low_latency"

#: What methods are compared for, in the order of the tables: key and heading.
GROUPS = {
    "per_frame": "null hypotheses: one network on every frame",
    "table_1": "Table 1: features carried on, a key frame every fifth",
    "table_2": "Table 2: ways to carry features",
    "schedules": "Fig. 5: schedules of key frames",
    "low_latency": "low latency: Sh in the background",
}


@dataclass(frozen=True)
class Spec:
    name: str
    kind: str  # how it is built: a case of MethodFactory.build
    group: str  # what it is for, see GROUPS
    help: str
    schedule: str = ""  # fixed, threshold or adaptive
    interval: int = 0  # mean frames from key frame to key frame
    delay_frames: int = 0  # how long Sh takes in the background
    weights: bool = False  # whether it has a weights file of its own, which is named after it


#: All but those of kind ``own_network`` share the base network; fused is with AdaptNet.
WITH_WEIGHTS = (
    *(
        Spec(name, "own_network", "per_frame", text, weights=True)
        for name, text in (
            ("single_frame_trained", "single_frame with an Sl trained for it alone"),
            ("single_frame_wide", "the same, as wide as the fast track's cost allows"),
            ("ddrnet23_slim", "a real-time network on every frame"),
            ("sh_small", "Sh's network on a small image, at the cost of the fast track"),
        )
    ),
    *(
        Spec(name, "carried", group, text, "fixed", INTERVAL, weights=True)
        for name, group, text in (
            ("clockwork", "table_1", "F_h of the key frame as it is, fused"),
            ("dff", "table_1", "F_h warped along learned flow, fused"),
            ("adaptive_equal", "table_1",
             "the paper's own, trained with exactly as many steps as the others"),
            ("clockwork_no_fuse", "table_2", "clockwork without AdaptNet"),
            ("dff_no_fuse", "table_2", "dff without AdaptNet, as published"),
            ("unified", "table_2", "one learned kernel everywhere"),
            ("unified_fused", "table_2", "the same, fused"),
            ("image_difference", "table_2", "kernels from differences of the images"),
            ("image_difference_fused", "table_2", "the same, fused"),
            ("adaptive_no_fuse", "table_2", "predicted kernels without AdaptNet"),
        )
    ),
    Spec("grfp", "grfp", "table_1", "full network and gated recurrent warp on every frame",
         weights=True),
)  # fmt: skip

PER_FRAME = tuple(
    Spec(name, name, "per_frame", text)
    for name, text in (
        ("full", "Sl, Sh and classifier on every frame"),
        ("full_os16", "the same weights at output stride 16"),
        ("full_half", "the same network on a half-size image"),
        ("single_frame", "Sl, AdaptNet and the auxiliary classifier alone"),
    )
)

_ADAPTIVE_HELP = "the paper's propagation, every fifth frame a key frame"
ADAPTIVE = Spec("adaptive", "keyed", "table_1", _ADAPTIVE_HELP, "fixed", INTERVAL)

SCHEDULES = tuple(
    Spec(f"schedule_{kind}_{n}", "keyed", "schedules", f"adaptive, {text.format(n)}", kind, n)
    for kind, text in (
        ("fixed", "a key frame every {}"),
        ("threshold", "key frames by the change of F_l, {} frames on average"),
        ("adaptive", "key frames by the selector, {} frames on average"),
    )
    for n in INTERVALS
    if (kind, n) != ("fixed", INTERVAL)  # that is the method ``adaptive``
)


def catalogue(delay_frames: int) -> tuple[Spec, ...]:
    """All methods, in the order of the tables; ``delay_frames`` is the main one's Sh delay."""
    low_latency = [(MAIN, f"the engine; Sh takes {delay_frames} frames", delay_frames)]
    low_latency += [(f"{MAIN}_{n}", f"the same with {n}", n) for n in DELAYS if n != delay_frames]
    specs = [*PER_FRAME, *WITH_WEIGHTS, ADAPTIVE, *SCHEDULES]
    specs += [
        Spec(name, "low_latency", "low_latency", text, delay_frames=delay)
        for name, text, delay in low_latency
    ]
    return tuple(sorted(specs, key=lambda spec: list(GROUPS).index(spec.group)))


def choose(patterns: str, specs: tuple[Spec, ...]) -> list[Spec]:
    """The specs that ``patterns`` name: ``all``, or names with ``*`` and ``?``, comma-separated.

    Raises ``ConfigError`` for a pattern that fits none.
    """
    words = [word.strip() for word in patterns.split(",") if word.strip()]
    for word in words:
        if word != "all" and not any(fnmatchcase(spec.name, word) for spec in specs):
            names = ", ".join(spec.name for spec in specs)
            raise ConfigError(f"--methods has {word!r}, which fits no method; known: {names}")
    chosen = [s for s in specs if any(w == "all" or fnmatchcase(s.name, w) for w in words)]
    if not chosen:
        raise ConfigError("--methods is empty; give all, or names separated by commas")
    return chosen
