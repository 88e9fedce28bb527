"""The records that flow through the product; all frozen, none shared mutable.

Symbols of the paper, used in comments throughout: Sl/Sh lower and higher network, F_l/F_h
low-level and high-level features, k the key frame, t the current frame.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import Enum

import numpy as np

#: Label of pixels without a class, in masks and in ground truth.
IGNORE_LABEL = 255


class FrameError(ValueError):
    """A frame cannot be segmented; the message names the value, the rule and the fix."""


@dataclass(frozen=True)
class Frame:
    """One camera image.

    ``image``: uint8 (H, W, 3), RGB, C-contiguous or strided. ``stamp_ns``: capture time in
    integer nanoseconds. ``frame_id``: the camera's coordinate frame. ``encoding``: what the camera
    sent the image as, by its name; a change means another camera or another setting of it.
    """

    image: np.ndarray
    stamp_ns: int
    frame_id: str = ""
    encoding: str = ""

    def __post_init__(self) -> None:
        shape, dtype = self.image.shape, self.image.dtype
        if dtype != np.uint8 or len(shape) != 3 or shape[2] != 3 or 0 in shape:
            raise FrameError(
                f"image is {dtype} {shape}; it must be uint8 (H, W, 3) RGB, H and W > 0"
            )


class MaskKind(Enum):
    """How the features behind a mask were obtained."""

    FULL = "full"  # Sl and Sh on this very frame, in the foreground (first frame after a reset)
    PROPAGATED = "propagated"  # the fast track: F_h carried over from the key frame
    DEGRADED = "degraded"  # Sl and AdaptNet alone: Sh has not succeeded since the last reset


class ResetReason(Enum):
    """Why the features of earlier frames became unusable, so that a frame begins a new epoch."""

    FIRST_FRAME = "first_frame"
    REQUESTED = "requested"
    SIZE_CHANGED = "size_changed"
    ENCODING_CHANGED = "encoding_changed"
    FRAME_ID_CHANGED = "frame_id_changed"
    TIME_JUMPED_BACK = "time_jumped_back"
    GAP = "gap"
    ACTIVATED = "activated"  # the node was inactive in between


@dataclass(frozen=True)
class Provenance:
    """Where a mask comes from.

    ``key_age_frames`` counts frames since the key frame (0 for a key frame's own full mask);
    ``exact`` is true when the key frame's F_h came from Sh, false while it is provisional.
    ``epoch`` counts resets; ``reset`` says why this frame began a new epoch, if it did.
    ``features_age_ms`` is the time since the frame that Sh itself has seen, which is older than a
    provisional key frame; NaN where the mask owes nothing to Sh.
    """

    kind: MaskKind
    key_stamp_ns: int
    key_age_frames: int
    key_age_ms: float
    exact: bool
    epoch: int
    reset: ResetReason | None = None
    features_age_ms: float = math.nan


@dataclass(frozen=True)
class StageTiming:
    """Milliseconds of each stage of one frame, on a monotonic clock; 0 for a stage not run.

    ``selector_ms`` is spent after the mask is out and is not part of ``latency_ms``.
    """

    preprocess_ms: float = 0.0  # resize, pad, normalise, to the device
    lower_ms: float = 0.0  # Sl
    higher_ms: float = 0.0  # Sh in the foreground: first frames only
    predictor_ms: float = 0.0  # kernel predictor
    propagation_ms: float = 0.0  # spatially variant convolution, Eq. (1)
    fusion_ms: float = 0.0  # AdaptNet, fusion and classifier
    postprocess_ms: float = 0.0  # bilinear to the input size and arg max
    latency_ms: float = 0.0  # frame in to mask out, all of the above and what lies between
    selector_ms: float = 0.0


@dataclass(frozen=True)
class NodeTiming:
    """Milliseconds around the engine's own stages, as ``FrameReport`` has them.

    ``wait_ms`` runs from the message's arrival on this machine to the begin of its handling, on the
    system clock; 0 where the middleware does not say. ``processing_ms`` runs from there to the
    published mask, on a monotonic clock. ``age_ms`` is the published mask's time minus the image's
    stamp, on the ROS clock or the bag's; negative where the stamp is ahead of it.
    """

    wait_ms: float = 0.0
    convert_ms: float = 0.0
    publish_ms: float = 0.0
    processing_ms: float = 0.0
    age_ms: float = 0.0


@dataclass(frozen=True)
class Selection:
    """The selector's verdict on a frame, known after its mask is out (paper Sec. 3.2).

    ``deviation`` is the predicted fraction of pixels whose label differs from the key frame's,
    in [0, 1]. ``is_key`` is true when the frame became the key frame: above the threshold, or
    because Sh was idle (``EngineConfig.key_frame_policy``), or must for another reason.
    """

    deviation: float
    threshold: float
    is_key: bool


@dataclass(frozen=True)
class Deadline:
    """Whether a mask came in time, and with what load shed.

    ``latency_ms`` runs from the frame's arrival on this machine to its mask, the time that it
    waited for the engine included; ``missed`` is true when that is above ``max_latency_ms``.
    ``level`` is the one of ``engine.schedule.LEVELS`` that the frame was segmented under.
    """

    level: int = 0
    latency_ms: float = 0.0
    missed: bool = False


@dataclass(frozen=True)
class Counters:
    """What happened since the engine was made. Every epoch after the first has its reason:
    ``resets`` is the sum of the ``resets_`` below it. Every submitted slow-track job ends in one
    place: ``submitted = refined + carried + superseded + dropped_late + dropped_stale + failed
    + pending``.
    """

    frames: int = 0  # masks returned by process()
    key_frames: int = 0  # frames that became the key frame, first frames included
    forced: int = 0  # key frames asked for by force_key_frame()
    duplicates: int = 0  # key frames because their stamp was the one of the frame before
    resets: int = 0  # epochs begun after the first
    resets_requested: int = 0
    resets_size_changed: int = 0
    resets_encoding_changed: int = 0
    resets_frame_id_changed: int = 0
    resets_time_jumped_back: int = 0
    resets_gap: int = 0
    resets_activated: int = 0
    degraded: int = 0  # masks of kind DEGRADED
    missed: int = 0  # masks that came later than max_latency_ms
    shed: int = 0  # masks made while load was shed, at a level above 0
    submitted: int = 0  # key frames handed to the slow track
    refined: int = 0  # Sh's features applied to their own key frame
    carried: int = 0  # Sh's features of an older key frame, or size, applied to the current one
    superseded: int = 0  # jobs replaced by a newer key frame before Sh began on them
    dropped_late: int = 0  # results for a replaced key frame, dropped: late_refinement, or newer
    dropped_stale: int = 0  # jobs and results from before a reset, or left at the end
    failed: int = 0  # jobs in the background in which Sh raised or gave non-finite features
    pending: int = 0  # waiting or running now
    last_failure: str = ""  # message of the newest failure, in the foreground or the background


@dataclass(frozen=True)
class Ledger:
    """What became of a camera's messages since the start.

    ``received = published + rejected + failed + in_flight``, and ``superseded`` ones never came in.
    """

    received: int = 0
    published: int = 0
    rejected: int = 0
    failed: int = 0
    in_flight: int = 0
    superseded: int = 0

    def __post_init__(self) -> None:
        ends = self.published + self.rejected + self.failed + self.in_flight
        if self.received != ends or min(vars(self).values()) < 0:
            raise ValueError(f"{self} does not balance; book each message in once and out once")


class Outcome(Enum):
    """Where a job of the slow track ended; each value is the counter it is booked under."""

    REFINED = "refined"
    CARRIED = "carried"
    SUPERSEDED = "superseded"
    LATE = "dropped_late"
    STALE = "dropped_stale"
    FAILED = "failed"

    @property
    def applied(self) -> bool:
        return self in (Outcome.REFINED, Outcome.CARRIED)


@dataclass(frozen=True)
class Refinement:
    """What became of one job of the slow track: Sh on the key frame of ``stamp_ns``.

    ``wait_ms`` runs from the frame's becoming the key frame to the begin of Sh, or to the end of a
    job that never began; ``compute_ms`` from there to the end, what Sh yields to frames included.
    ``error`` is the message of a job that failed.
    """

    stamp_ns: int
    frame_id: str
    epoch: int
    outcome: Outcome
    wait_ms: float = 0.0
    compute_ms: float = 0.0
    error: str = ""


@dataclass(frozen=True, eq=False)
class Look:
    """What a cheap look at an image saw.

    ``grid``: some 1,500 of its pixels, uint8 (R, C, 3) RGB. ``unchanged``: number of images in a
    row, under new stamps, that had the pixels of the one before.
    """

    grid: np.ndarray
    unchanged: int = 0


#: Trust in a report where nothing was carried, or the network has no gate.
NO_TRUST = -1.0


@dataclass(frozen=True)
class Segmentation:
    """The result for one frame.

    ``mask``: uint8 (H, W) class ids at the input's size, or the network's if that was asked for.
    ``selection`` is None until the selector has run, and for frames it does not run on (first
    frames, and others while load is shed). ``confidence``: uint8 (H, W), the network's highest
    softmax probability, 255 for 1; None where it was not asked for. ``trust``: the gate's mean over
    the image, 0 for the frame's own answer and 1 for the carried one; None where nothing was
    carried, or the network has no gate. ``look``: at the image; None where nobody looked.
    ``expected_accuracy``: the share of the mask's pixels that are probably right, NaN where the
    checkpoint has no model of it (docs/expected_accuracy.md).
    """

    mask: np.ndarray
    stamp_ns: int
    frame_id: str
    provenance: Provenance
    timing: StageTiming
    counters: Counters = field(default_factory=Counters)
    selection: Selection | None = None
    deadline: Deadline = field(default_factory=Deadline)
    confidence: np.ndarray | None = None
    trust: float | None = None
    look: Look | None = None
    expected_accuracy: float = math.nan
