"""One frame on its way through the engine: what was decided, computed and answered."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from lowlat_seg_ros.engine.key_frame import KeyFrame, Seen
from lowlat_seg_ros.engine.preprocess import Geometry
from lowlat_seg_ros.engine.runner import Runner
from lowlat_seg_ros.engine.schedule import Level
from lowlat_seg_ros.engine.timing import Stopwatch
from lowlat_seg_ros.frames import (
    Deadline,
    Frame,
    Look,
    MaskKind,
    Provenance,
    ResetReason,
    StageTiming,
)


@dataclass(frozen=True, eq=False)
class Features:
    """What a mask is made from; tensors are at the network's size and on its device.

    ``low`` is F_l (1, Cl, H/8, W/8), ``source`` what Sh begins with, and ``luma`` the frame's own.
    ``logits`` are (1, classes, r*H/8, r*W/8). ``high`` is F_h (1, Ch, H/8, W/8), exact or
    propagated, None for a degraded mask, and ``seen`` the frame that Sh has seen for it.
    ``reduced`` is the predictor's reduction of F_l and ``weights`` (1, K*K, H/8, W/8) W(k,t), None
    where the predictor did not run. ``trust`` (1, 1, r*H/8, r*W/8) says how far the mask relies on
    the propagated features, None without a gate.
    """

    low: Tensor
    source: Tensor
    luma: np.ndarray | None
    logits: Tensor
    high: Tensor | None = None
    seen: Seen | None = None
    reduced: Tensor | None = None
    weights: Tensor | None = None
    trust: Tensor | None = None

    def provenance(
        self, frame: Frame, index: int, key: KeyFrame | None, epoch: int, reset: ResetReason | None
    ) -> Provenance:
        """Where the mask comes from; ``reset``: why the ``index``-th frame began its epoch."""
        if key is not None and self.high is not None:
            kind, age_ms = MaskKind.PROPAGATED, (frame.stamp_ns - key.stamp_ns) / 1e6
            return Provenance(kind, key.stamp_ns, index - key.index, age_ms, key.exact, epoch)
        exact = self.high is not None
        kind = MaskKind.FULL if exact else MaskKind.DEGRADED
        return Provenance(kind, frame.stamp_ns, 0, 0.0, exact, epoch, reset)


@dataclass(frozen=True, eq=False)
class Arrival:
    """What was decided when a frame came in; ``duplicate``: its stamp is the one before's."""

    index: int
    level: Level
    geometry: Geometry
    duplicate: bool


@dataclass(frozen=True, eq=False)
class Judged:
    """What is thought of a mask: a ``look`` at its image, and its ``expected`` accuracy, or NaN.

    The logits are divided by ``temperature`` before they give the confidence of each pixel.
    """

    look: Look
    expected: float = math.nan
    temperature: float = 1.0


@dataclass(frozen=True, eq=False)
class Step:
    """A frame whose mask is out, for :meth:`Engine.finish`.

    ``mask`` is uint8 (H, W) class ids, and ``timing`` that of the stages up to it. What comes below
    ``deadline`` is the engine's.
    """

    frame: Frame
    mask: np.ndarray
    provenance: Provenance
    timing: StageTiming
    deadline: Deadline
    arrival: Arrival
    features: Features
    key: KeyFrame | None  # that the mask was made with, of the same geometry
    watch: Stopwatch
    judged: Judged | None = None  # where the mask itself depends on it

    def as_key_frame(self, net: Runner, selector_reduced: Tensor | None) -> KeyFrame:
        """The frame as key frame, with what its mask did not need."""
        features = self.features
        reduced = net.reduce(features.low) if features.reduced is None else features.reduced
        reduced = net.clone(reduced)
        if selector_reduced is None:
            selector_reduced = net.selector_reduce(features.low)
        return KeyFrame(
            source=net.clone(features.source),
            reduced=reduced,
            remembered=net.remember(reduced),
            selector_reduced=net.clone(selector_reduced),
            high=None if features.high is None else net.clone(features.high),
            geometry=self.arrival.geometry,
            stamp_ns=self.frame.stamp_ns,
            index=self.arrival.index,
            epoch=self.provenance.epoch,
            exact=self.provenance.kind is MaskKind.FULL,
            seen=features.seen,
            luma=features.luma,
            frame_id=self.frame.frame_id,
        )
