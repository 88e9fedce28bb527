"""The key frame at another size of the network's input, when shedding load changes that size.

Who may change what, with both tracks at work: only the foreground changes the size of the current
key frame, here, and before it computes on it. A record is immutable and of one size throughout;
the slow track reads the current one, fits its result to that record's size and swaps it in by
compare-and-swap, which is refused if the foreground has changed the size meanwhile. So no record
ever mixes sizes, and what comes late for its size is fitted or dropped, and counted either way.
"""

from __future__ import annotations

import dataclasses

from lowlat_seg_ros.engine.cache import KeyFrame, KeyFrameCache, Seen
from lowlat_seg_ros.engine.resize import Geometry, resample, resample_luma


def resampled(key: KeyFrame, geometry: Geometry) -> KeyFrame:
    """``key`` at ``geometry``, provisional; ``key`` itself where it has that size already.

    Its reductions, and what is made of them, are resampled, not computed anew: neither is what the
    frame would have given at this size, and this is the cheaper.
    """
    old = key.geometry
    if old == geometry:
        return key
    return dataclasses.replace(
        key,
        source=resample(key.source, old, geometry),
        reduced=resample(key.reduced, old, geometry),
        remembered=resample(key.remembered, old, geometry),
        selector_reduced=resample(key.selector_reduced, old, geometry),
        high=None if key.high is None else resample(key.high, old, geometry),
        luma=None if key.luma is None else resample_luma(key.luma, old, geometry),
        seen=None if key.seen is None else _resampled(key.seen, old, geometry),
        geometry=geometry,
        exact=False,
        resampled=True,
    )


def _resampled(seen: Seen, old: Geometry, new: Geometry) -> Seen:
    luma, answers = seen.luma, seen.answers
    return dataclasses.replace(
        seen,
        luma=None if luma is None else resample_luma(luma, old, new),
        answers=None if answers is None else resample(answers, old, new),
    )


def at_size(cache: KeyFrameCache, geometry: Geometry) -> tuple[KeyFrame | None, int]:
    """The current key frame, of size ``geometry`` from now on, and the epoch (foreground only)."""
    while True:
        key, epoch = cache.snapshot()
        if key is None or key.geometry == geometry:
            return key, epoch
        new = resampled(key, geometry)
        # Refused only if Sh delivered or a reset came in this instant; then look again.
        if cache.replace(key, new):
            return new, epoch
