"""The ways from a frame to logits: full, fast and degraded (rules 1, 2 and 6 of the scheduling)."""

from __future__ import annotations

import dataclasses
import logging
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from lowlat_seg_ros.engine import resize
from lowlat_seg_ros.engine.cache import KeyFrame, Seen
from lowlat_seg_ros.engine.device import serial, threads
from lowlat_seg_ros.engine.latency import Stopwatch
from lowlat_seg_ros.engine.ledger import Ledger
from lowlat_seg_ros.engine.refine import exact_features
from lowlat_seg_ros.engine.runner import Runner
from lowlat_seg_ros.engine.threads import ForegroundThreads
from lowlat_seg_ros.frames import Frame, MaskKind

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Work:
    """What one frame's mask is made from, kept until the frame is done with.

    ``logits`` (1, classes, H/8, W/8) at the network's size; ``low`` F_l; ``source`` what Sh begins
    with; ``high`` F_h, exact or propagated, None for a degraded mask; ``reduced`` the predictor's
    reduction of F_l and ``weights`` W(k,t), None where the predictor did not run. ``trust``
    (1, 1, r*H/8, r*W/8): how far the mask stands on the propagated features, None without a gate.
    ``luma`` is the frame's, and ``seen`` the frame that Sh has seen for ``high``, see
    :class:`~.cache.Seen`.
    """

    kind: MaskKind
    logits: Tensor
    low: Tensor
    source: Tensor
    high: Tensor | None
    seen: Seen | None
    reduced: Tensor | None = None
    weights: Tensor | None = None
    trust: Tensor | None = None
    luma: np.ndarray | None = None


class Tracks:
    """Runs the network's parts for one frame, in the order of the paper."""

    def __init__(self, network: Runner, ledger: Ledger, team: ForegroundThreads) -> None:
        """``team``: the frames' CPU threads."""
        self._net = network
        self._ledger = ledger
        self._team = team

    def run(
        self,
        frame: Frame,
        index: int,
        geometry: resize.Geometry,
        key: KeyFrame | None,
        watch: Stopwatch,
    ) -> Work:
        """Logits of ``frame``, the ``index``-th, by the best track that ``key`` allows.

        Raises what the network raises, except in Sh.
        """
        with watch.stage("preprocess_ms"):
            image, luma = self._net.image(frame.image, geometry)
        with watch.stage("lower_ms"):
            low = self._net.lower(image, self._team.relieve)  # F_l (1, Cl, H/8, W/8)
        source, now = self._net.source(image, low), Seen(frame.stamp_ns, index, luma)
        if key is None:
            return self._full(now, low, source, watch)
        if key.high is None:
            return self._degraded(now, low, source, watch)
        return self._fast(now, low, source, key, key.high, watch)

    def _full(self, now: Seen, low: Tensor, source: Tensor, watch: Stopwatch) -> Work:
        """The first frame of an epoch: Sh in the foreground, and F_h alone is classified."""
        try:
            with watch.stage("higher_ms"), threads(self._team.full()):
                high = exact_features(self._net, source, self._team.relieve)
        except Exception as error:
            # Whatever Sh raises must not stop masks; it is logged and reported in the counters.
            message = f"Sh failed in the foreground: {type(error).__name__}: {error}"
            logger.warning("%s; the mask comes from Sl and AdaptNet alone", message)
            self._ledger.failure(message)
            return self._degraded(now, low, source, watch)
        with watch.stage("fusion_ms"):
            logits = self._net.classify_high(high)
            answers = self._net.answers(high)
        answers = None if answers is None else self._net.keep(answers)
        seen = dataclasses.replace(now, answers=answers)
        return Work(MaskKind.FULL, logits, low, source, high, seen, luma=now.luma)

    def _degraded(self, now: Seen, low: Tensor, source: Tensor, watch: Stopwatch) -> Work:
        """No Sh has succeeded in this epoch: Sl and AdaptNet alone."""
        with watch.stage("fusion_ms"):
            logits = self._net.classify_low(low)
        return Work(MaskKind.DEGRADED, logits, low, source, None, None, luma=now.luma)

    def _fast(
        self,
        now: Seen,
        low: Tensor,
        source: Tensor,
        key: KeyFrame,
        key_high: Tensor,
        watch: Stopwatch,
    ) -> Work:
        """Every other frame: kernel predictor, propagation, AdaptNet, fusion, classifier."""
        with watch.stage("predictor_ms"):
            reduced = self._net.reduce(low)
            weights = self._net.kernels(key.remembered, reduced)  # W(k,t)
        with watch.stage("propagation_ms"), serial():
            high = self._net.propagate(key_high, weights)  # Eq. (1)
            seen = key.seen_with(None) if key.seen is None else key.seen
            motion = self._net.motion(seen.luma, now.luma)
            answers = residual = None
            if motion is not None and seen.answers is not None:
                answers, residual = self._net.warp(seen.answers, motion.flow), motion.residual
        with watch.stage("fusion_ms"):
            age_s = seen.age_s(now.stamp_ns, now.index)
            evidence = self._net.evidence(key.reduced, reduced, age_s, residual)
            logits, trust = self._net.fuse(high, low, evidence, answers)
        kind = MaskKind.PROPAGATED
        return Work(kind, logits, low, source, high, seen, reduced, weights, trust, now.luma)

    def key_frame(
        self,
        work: Work,
        frame: Frame,
        geometry: resize.Geometry,
        index: int,
        epoch: int,
        *,
        exact: bool = False,
        selector_reduced: Tensor | None = None,
    ) -> KeyFrame:
        """``frame`` as key frame, with what its mask did not need."""
        net, reduced = self._net, work.reduced
        reduced = net.keep(net.reduce(work.low) if reduced is None else reduced)
        if selector_reduced is None:
            selector_reduced = net.selector_reduce(work.low)
        return KeyFrame(
            source=net.keep(work.source),
            reduced=reduced,
            remembered=net.remember(reduced),
            selector_reduced=net.keep(selector_reduced),
            high=None if work.high is None else net.keep(work.high),
            geometry=geometry,
            stamp_ns=frame.stamp_ns,
            index=index,
            epoch=epoch,
            exact=exact,
            seen=work.seen,
            luma=work.luma,
            frame_id=frame.frame_id,
        )
