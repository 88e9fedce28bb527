"""The current key frame: an immutable record that is swapped whole, and how Sh's result enters it.

Who may change what, while both tracks work: only the foreground changes the size of the current
key frame, before it computes on it. The slow track reads the current record, fits its result to
that record's size and swaps it in by compare-and-swap, which is refused if the foreground has
changed the record meanwhile. So no record ever mixes sizes or epochs, and a result that comes late
is carried, fitted or dropped, and counted either way.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lowlat_seg_ros.engine.preprocess import Geometry, resample, resample_luma
from lowlat_seg_ros.engine.runner import Runner
from lowlat_seg_ros.frames import Outcome, ResetReason
from lowlat_seg_ros.network.layers import single_threaded

#: Seconds between frames that are assumed where stamps stand still: 15 Hz.
NOMINAL_PERIOD_S = 1 / 15

#: Called between slices of Sh; may wait for the foreground, or raise :class:`Cancelled`.
Pause = Callable[[], None]


@dataclass(frozen=True, eq=False)
class HighLevel:
    """What Sh has made of a frame, which has this stamp and number among those of the engine.

    ``features`` are what Eq. (1) carries, F_h (1, Ch, H/8, W/8) or means of 2x2 of its cells, Sh's
    own or carried on since. Where answers are carried by optical flow (``fine_carry``), ``answers``
    (1, classes, r*H/8, r*W/8) are the full network's and ``luma``, uint8 (H/2, W/2), is that
    frame's: both stay until Sh has seen a newer one.
    """

    features: Tensor
    stamp_ns: int
    index: int
    luma: np.ndarray | None = None
    answers: Tensor | None = None

    def age_s(self, stamp_ns: int, index: int) -> float:
        """Seconds from that frame to a later one, by the count of frames if stamps stand still."""
        elapsed_s = (stamp_ns - self.stamp_ns) / 1e9
        return elapsed_s if elapsed_s > 0 else (index - self.index) * NOMINAL_PERIOD_S


@dataclass(frozen=True, eq=False)
class KeyFrame:
    """All that later frames need of a key frame k.

    ``source`` is what Sh begins with: F_l (1, Cl, H/8, W/8), or the normalised image (1, 3, H, W)
    where Sl is an encoder of its own; ``reduced`` (1, width, H/s, W/s) is the kernel predictor's
    reduction of F_l, and ``remembered``, of that shape, the key frame's half of the predictor;
    ``selector_reduced`` (1, width, H/8, W/8) is the selector's reduction: each computed once. s is
    the ``stride``, 8 or 16, which the features of ``high`` have, too. ``high`` is Sh's of this
    frame when ``exact``, that of an older one, propagated, while provisional, and None if no Sh has
    succeeded in this epoch yet. ``geometry`` is the size that all of them have: the frame's own, or
    where ``resampled`` another one that the stream changed to. ``index`` numbers the frame among
    those of the engine, and ``luma`` is its own, see :class:`HighLevel`.
    """

    source: Tensor
    reduced: Tensor
    remembered: Tensor
    selector_reduced: Tensor
    high: HighLevel | None
    geometry: Geometry
    stamp_ns: int
    index: int
    epoch: int
    exact: bool
    resampled: bool = False
    frame_id: str = ""
    luma: np.ndarray | None = None
    stride: int = 8


def resampled(key: KeyFrame, geometry: Geometry) -> KeyFrame:
    """``key`` at ``geometry``, provisional; ``key`` itself where it has that size already.

    Everything is resampled rather than computed again: neither is what the frame would have given
    at this size, and this is cheaper.
    """
    old, high = key.geometry, key.high
    if old == geometry:
        return key

    def fit(features: Tensor, stride: int | None = None) -> Tensor:
        return resample(features, old, geometry, stride)

    def fit_luma(luma: np.ndarray | None) -> np.ndarray | None:
        return None if luma is None else resample_luma(luma, old, geometry)

    if high is not None:
        high = dataclasses.replace(
            high,
            features=fit(high.features, key.stride),
            luma=fit_luma(high.luma),
            answers=None if high.answers is None else fit(high.answers),
        )
    return dataclasses.replace(
        key,
        source=fit(key.source),
        reduced=fit(key.reduced, key.stride),
        remembered=fit(key.remembered, key.stride),
        selector_reduced=fit(key.selector_reduced),
        high=high,
        luma=fit_luma(key.luma),
        geometry=geometry,
        exact=False,
        resampled=True,
    )


class KeyFrameCache:
    """Owner of the current key frame and of the epoch; compare-and-swap is the only way to write.

    Both tracks read a record and compute on it without a lock. Whoever replaces it names the record
    that its work was based on, and is refused if that is no longer the current one.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._current: KeyFrame | None = None
        self._epoch, self._reason = 0, ResetReason.FIRST_FRAME

    def snapshot(self) -> tuple[KeyFrame | None, int]:
        """The current key frame, None at the start of an epoch, and the epoch."""
        with self._lock:
            return self._current, self._epoch

    def replace(self, expected: KeyFrame | None, new: KeyFrame) -> bool:
        """Make ``new`` current if ``expected`` still is and no reset came in between."""
        with self._lock:
            if self._current is not expected or new.epoch != self._epoch:
                return False
            self._current = new
            return True

    def begin_epoch(self, reason: ResetReason = ResetReason.REQUESTED) -> None:
        """Forget the key frame; nothing computed before this call is accepted any more."""
        with self._lock:
            self._current = None
            self._epoch, self._reason = self._epoch + 1, reason

    def at_size(self, geometry: Geometry) -> tuple[KeyFrame | None, int, ResetReason]:
        """The current key frame, of size ``geometry`` from now on, the epoch, and why it began.

        Called by the foreground alone.
        """
        while True:
            with self._lock:
                key, epoch, reason = self._current, self._epoch, self._reason
            if key is None or key.geometry == geometry:
                return key, epoch, reason
            new = resampled(key, geometry)
            # Refused only if Sh delivered or a reset came in this instant; then look again.
            if self.replace(key, new):
                return new, epoch, reason


class Cancelled(Exception):
    """Nobody needs the job's result any more: the engine was reset or closed."""


class NonFiniteError(ArithmeticError):
    """Sh gave features that hold NaN or infinity."""


def exact_features(network: Runner, source: Tensor, pause: Pause = lambda: None) -> Tensor:
    """Sh: its source -> F_h, checked; raises :class:`NonFiniteError` and whatever Sh raises."""
    high = network.higher(source, pause)
    if not torch.isfinite(high).all():
        raise NonFiniteError(
            "Sh gave features that are not finite; set precision to fp32, or use other weights "
            "(checkpoint)"
        )
    return high


#: Runs the job of one key frame and says where it ended, as :class:`Refiner` does.
Refine = Callable[[KeyFrame, Pause], Outcome]


class Refiner:
    """One job of the slow track: Sh on a key frame, and the result put where it is still of use."""

    def __init__(self, network: Runner, cache: KeyFrameCache, late_refinement: str) -> None:
        self._net = network
        self._cache = cache
        self._late_refinement = late_refinement

    def __call__(self, key: KeyFrame, pause: Pause) -> Outcome:
        """Run the job of ``key``; ``pause`` is called between slices and may wait or raise.

        Raises :class:`Cancelled` as soon as a reset made the job pointless, and what Sh raises.
        """

        def checked_pause() -> None:
            pause()
            if self._cache.snapshot()[1] != key.epoch:
                raise Cancelled

        checked_pause()
        with self._net.frame_context():
            features = exact_features(self._net, key.source, checked_pause)
            answers = self._net.answers(features)
            cells = self._net.carried_cells(features)
            high = HighLevel(cells, key.stamp_ns, key.index, key.luma, answers)
            done = dataclasses.replace(key, high=high)
            while True:
                current, epoch = self._cache.snapshot()
                if current is None or epoch != key.epoch:
                    return Outcome.STALE
                if current.index != key.index:
                    return self._carry(done, current)
                # If load was shed meanwhile it has another size: then these are no more than
                # better provisional features.
                fitted = resampled(done, current.geometry)
                exact = fitted is done
                new = dataclasses.replace(current, high=fitted.high, exact=exact)
                self._net.synchronize()
                # Refused only if the foreground replaced it in this instant; then look again.
                if self._cache.replace(current, new):
                    return Outcome.REFINED if exact else Outcome.CARRIED

    def _carry(self, done: KeyFrame, current: KeyFrame) -> Outcome:
        """Late features are carried from the key frame ``done``, which ``current`` has replaced.

        They are dropped (LATE) where ``current`` is exact already, or the policy is ``drop``.
        """
        if self._late_refinement == "drop" or current.exact:
            return Outcome.LATE
        resized = resampled(done, current.geometry)
        high = resized.high
        assert high is not None  # it is Sh's
        if self._late_refinement == "propagate":
            self._net.after_frames()  # ``current`` is newer than this job's start
            weights = self._net.kernels(resized.remembered, current.reduced)
            with single_threaded():
                features = self._net.clone(self._net.propagate(high.features, weights))
            high = dataclasses.replace(high, features=features)
        self._net.synchronize()
        new = dataclasses.replace(current, high=high)
        if self._cache.replace(current, new):
            return Outcome.CARRIED
        return Outcome.LATE if self._cache.snapshot()[1] == done.epoch else Outcome.STALE
