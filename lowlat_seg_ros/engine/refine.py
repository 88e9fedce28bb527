"""One job of the slow track: Sh on a key frame, and where its result goes (rules 4 to 6)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor

from lowlat_seg_ros.engine.cache import KeyFrame, KeyFrameCache
from lowlat_seg_ros.engine.device import serial
from lowlat_seg_ros.engine.rescale import resampled
from lowlat_seg_ros.engine.runner import Runner
from lowlat_seg_ros.frames import Outcome

Pause = Callable[[], None]


class Cancelled(Exception):
    """The job's result is no longer wanted: the engine was reset or closed."""


class NonFiniteError(ArithmeticError):
    """Sh gave features that hold NaN or infinity."""


def exact_features(network: Runner, source: Tensor, pause: Pause = lambda: None) -> Tensor:
    """Sh: its source -> F_h, checked; raises :class:`NonFiniteError` and whatever Sh raises."""
    high = network.higher(source, pause)
    if not torch.isfinite(high).all():
        raise NonFiniteError("Sh gave features that are not finite; check the weights")
    return high


class Refiner:
    """Computes a key frame's exact F_h and puts it where it is still of use."""

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
        with self._net.turn():
            high = exact_features(self._net, key.source, checked_pause)
            answers = self._net.answers(high)
            seen = key.seen_with(None if answers is None else self._net.keep(answers))
            return self._place(dataclasses.replace(key, high=high, seen=seen))

    def _place(self, done: KeyFrame) -> Outcome:
        while True:
            current, epoch = self._cache.snapshot()
            if current is None or done.epoch != epoch:
                return Outcome.STALE
            if current.index != done.index:
                return self._carry(done, current)
            # Of another size if load was shed meanwhile: then no more than better provisional ones.
            fitted = resampled(done, current.geometry)
            exact = fitted is done
            self._net.settle()
            # Refused only if the foreground moved on in this instant; then look again.
            if self._cache.replace(
                current,
                dataclasses.replace(
                    current,
                    high=fitted.high,
                    exact=exact,
                    seen=fitted.seen,
                ),
            ):
                return Outcome.REFINED if exact else Outcome.CARRIED

    def _carry(self, done: KeyFrame, current: KeyFrame) -> Outcome:
        """Use an older key frame's exact features as better provisional ones of ``current``."""
        if self._late_refinement == "drop" or current.exact:
            return Outcome.LATE
        key = resampled(done, current.geometry)
        high = key.high
        assert high is not None  # Sh's, as set in __call__
        if self._late_refinement == "propagate":
            self._net.after_frames()  # ``current`` is newer than this turn
            weights = self._net.kernels(key.remembered, current.reduced)
            with serial():
                high = self._net.keep(self._net.propagate(high, weights))
        self._net.settle()
        new = dataclasses.replace(current, high=high, seen=key.seen)
        if self._cache.replace(current, new):
            return Outcome.CARRIED
        return Outcome.LATE if self._cache.snapshot()[1] == done.epoch else Outcome.STALE
