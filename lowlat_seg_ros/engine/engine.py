"""The frame loop: low-latency scheduling of Sl, Sh and propagation (paper Sec. 3.4)."""

from __future__ import annotations

import dataclasses
import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from lowlat_seg_ros.config import ConfigError, EngineConfig
from lowlat_seg_ros.engine import rescale, resize, schedule
from lowlat_seg_ros.engine.cache import KeyFrame, KeyFrameCache
from lowlat_seg_ros.engine.deadline import Level, LoadShedder
from lowlat_seg_ros.engine.device import apart, serial, use_threads
from lowlat_seg_ros.engine.latency import Clock, Stopwatch
from lowlat_seg_ros.engine.ledger import Ledger, OnRefinement
from lowlat_seg_ros.engine.refine import Refiner
from lowlat_seg_ros.engine.runner import runners
from lowlat_seg_ros.engine.shared import ThreadedSlowTrack
from lowlat_seg_ros.engine.steering import KeyFrameBudget
from lowlat_seg_ros.engine.threads import ForegroundThreads
from lowlat_seg_ros.engine.tracks import Tracks, Work
from lowlat_seg_ros.engine.virtual import Delay, VirtualSlowTrack
from lowlat_seg_ros.engine.worker import Refine, SlowTrack, SlowTrackState
from lowlat_seg_ros.frames import (
    Counters,
    Frame,
    MaskKind,
    Provenance,
    ResetReason,
    Segmentation,
    Selection,
)
from lowlat_seg_ros.network import inference
from lowlat_seg_ros.network.checkpoint import DEFAULT_CHECKPOINT, Header
from lowlat_seg_ros.network.device import resolve_device
from lowlat_seg_ros.network.segmenter import Segmenter

Publish = Callable[[Segmentation], None]
SlowTrackFactory = Callable[[Refine, Ledger, EngineConfig], SlowTrack]


@dataclass(frozen=True, eq=False)
class _Turn:
    """One frame and what was settled when it came in."""

    frame: Frame
    index: int
    level: Level
    geometry: resize.Geometry
    key: KeyFrame | None  # of the same geometry
    epoch: int
    duplicate: bool  # the first frame in a row with the stamp of the one before
    confidence: bool


class Engine:
    """Segments a stream of frames, each at the cost of the fast track.

    ``process`` is called by one thread at a time; everything else may be called from any thread.
    ``threshold`` is the calibrated deviation (fraction of pixels) above which a frame becomes the
    key frame. ``segmenter`` must be in eval mode on its device; engines may share it, with one
    :class:`~.shared.SharedSlowTrack`, where one thread calls the ``process`` of all.
    ``on_refinement`` is told what became of each key frame that Sh was to refine, by the thread
    that knows.
    """

    def __init__(
        self,
        segmenter: Segmenter,
        config: EngineConfig = EngineConfig(),  # noqa: B008 - frozen
        *,
        threshold: float,
        clock: Clock = time.perf_counter_ns,
        slow_track: SlowTrackFactory = ThreadedSlowTrack,
        on_refinement: OnRefinement | None = None,
    ) -> None:
        if segmenter.training:
            raise ValueError("the segmenter is in training mode; call its eval() first")
        self.header: Header | None = None
        self._net, slow_net = runners(segmenter)
        self._config = config
        self._calibrated_threshold = threshold
        self._clock = clock
        self._ledger = Ledger(on_refinement)
        self._cache = KeyFrameCache()
        self._shedder = LoadShedder()
        self._previous: Frame | None = None
        self._previous_ran_sh = False
        self._clock_stands = False
        self._forced = threading.Event()
        self._budget = KeyFrameBudget()
        self._threshold = schedule.effective_threshold(threshold, config)
        self._epoch_reason = ResetReason.FIRST_FRAME
        self._reset_lock = threading.Lock()
        self._in_process = threading.Lock()
        self._closed = False
        self._threads = ForegroundThreads(config)
        self._tracks = Tracks(self._net, self._ledger, self._threads)
        refine = Refiner(slow_net, self._cache, config.late_refinement)
        self._slow = slow_track(refine, self._ledger, config)

    @classmethod
    def from_checkpoint(
        cls,
        path: str | Path = DEFAULT_CHECKPOINT,
        config: EngineConfig = EngineConfig(),  # noqa: B008 - frozen
        device: str = "auto",
    ) -> Engine:
        """Load weights; raises ``CheckpointError`` for the file, ``ConfigError`` for the device."""
        load = partial(inference.load, path, resolve_device(device), config.precision)
        segmenter, header = apart(load)  # lest it leave a team that is not the frames' own
        engine = cls(segmenter, config, threshold=header.threshold)
        engine.header = header
        return engine

    @classmethod
    def deterministic(
        cls,
        segmenter: Segmenter,
        config: EngineConfig = EngineConfig(),  # noqa: B008 - frozen
        *,
        threshold: float,
        delay_frames: int | None = None,
        delay_ms: float | None = None,
        clock: Clock | None = None,
    ) -> Engine:
        """An engine whose Sh takes ``delay_frames`` frames or ``delay_ms`` of the frames' stamps.

        Its masks are the same on every run; for measuring accuracy. With a deadline they depend on
        how long frames take, so ``clock`` must say; raises ``ConfigError`` if there is none.
        """
        if config.max_latency_ms > 0 and clock is None:
            raise ConfigError(
                f"max_latency_ms is {config.max_latency_ms}, so the masks would depend on the "
                "machine's speed; set it to 0 or give the engine a clock"
            )
        delay = Delay(delay_frames, delay_ms)
        track = partial(VirtualSlowTrack, delay=delay)
        clock = clock or time.perf_counter_ns
        engine = cls(segmenter, config, threshold=threshold, clock=clock, slow_track=track)
        engine._threads.ignore_others()
        return engine

    def process(
        self,
        frame: Frame,
        publish: Publish | None = None,
        *,
        waited_ms: float = 0.0,
        confidence: bool = False,
        mask_at_network_size: bool = False,
    ) -> Segmentation:
        """Segment ``frame``; never waits for Sh, except on the first frame of an epoch.

        ``publish`` is called as soon as the mask is out, with ``selection`` None; the selector runs
        after it, and the returned record is complete. What ``publish`` raises comes through, after
        the selector has run. ``waited_ms`` is how long ago the frame came in; it counts for the
        deadline. ``confidence`` asks for the record's; it is made after ``publish``, too.
        ``mask_at_network_size`` asks for both at the size that ``inference_height`` gives, also
        while load is shed, instead of the frame's. Raises
        ``FrameError`` for a frame of impossible size, ``RuntimeError`` after :meth:`close` or when
        called by two threads at once; the next frame works as usual.
        """
        with self._foreground():
            level = self._shedder.begin(self._config.max_latency_ms)
            size = frame.image.shape[:2]
            geometry = resize.plan(
                size,
                self._config.inference_height,
                level.scale,
                mask_at_network_size=mask_at_network_size,
            )
            reason = schedule.needs_reset(
                self._previous, frame, self._config, after_sh=self._previous_ran_sh
            )
            if reason is not None and self._cache.snapshot()[0] is not None:
                self.reset(reason)
            # Only this thread writes the frames counter, so it numbers the frame.
            before = self._ledger.counters
            index = before.frames
            # Written by this thread alone, so a change of the setting cannot undo the level's.
            self._slow.set_min_share(min(self._config.slow_track_min_share, level.slow_share))
            fixed = schedule.effective_threshold(self._calibrated_threshold, self._config)
            self._threshold = self._budget.threshold(fixed, self._config)
            duplicate = schedule.repeats(self._previous, frame) and not self._clock_stands
            with self._slow.frame(index, frame.stamp_ns), self._net.turn():
                busy = self._slow.state().running
                watch = self._net.stopwatch(self._clock)
                with watch.stage("preprocess_ms"):
                    key, epoch = rescale.at_size(self._cache, geometry)
                turn = _Turn(frame, index, level, geometry, key, epoch, duplicate, confidence)
                result = self._segment(turn, watch, waited_ms, publish)
                is_key = result.counters.key_frames > before.key_frames
                self._budget.observe(is_key, busy, self._config)
                return result

    def _segment(
        self, turn: _Turn, watch: Stopwatch, waited_ms: float, publish: Publish | None
    ) -> Segmentation:
        frame = turn.frame
        work = self._tracks.run(frame, turn.index, turn.geometry, turn.key, watch)
        with watch.stage("postprocess_ms"):
            mask = self._net.mask(work.logits, turn.geometry)
        watch.mask_out()
        self._threads.mask_out()

        timing = watch.timing()
        deadline = self._shedder.mask_out(waited_ms + timing.latency_ms)
        self._clock_stands = schedule.repeats(self._previous, frame)
        self._previous, self._previous_ran_sh = frame, turn.key is None
        self._ledger.count(
            frames=1,
            degraded=int(work.kind is MaskKind.DEGRADED),
            missed=int(deadline.missed),
            shed=int(deadline.level > 0),
        )
        provenance = self._provenance(turn, work.kind)
        counters = self._ledger.counters
        result = Segmentation(
            mask, frame.stamp_ns, frame.frame_id, provenance, timing, counters, deadline=deadline
        )
        try:
            if publish is not None:
                publish(result)
        finally:
            selection = self._after_mask(turn, work, watch)
        confidence = resize.confidence_of(work.logits, turn.geometry) if turn.confidence else None
        return dataclasses.replace(
            result,
            timing=watch.timing(),
            counters=self._ledger.counters,
            selection=selection,
            confidence=confidence,
            trust=None if work.trust is None else float(work.trust.mean()),
        )

    def reset(self, reason: ResetReason = ResetReason.REQUESTED) -> None:
        """Forget all features: the next frame begins a new epoch, with a full mask."""
        with self._reset_lock:
            self._cache.begin_epoch()
            self._epoch_reason = reason
            self._slow.cancel()
            self._ledger.reset(reason)

    def force_key_frame(self) -> None:
        """Make the next frame the key frame, whatever the selector says.

        Its mask is made as usual: Sh runs in the background. A full frame serves as well.
        """
        self._forced.set()

    def reconfigure(self, config: EngineConfig) -> None:
        """Take over dynamic settings from the next frame on; raises ConfigError for any other."""
        for item in dataclasses.fields(EngineConfig):
            old, new = getattr(self._config, item.name), getattr(config, item.name)
            if old != new and not item.metadata["dynamic"]:
                raise ConfigError(
                    f"{item.name} is {old!r} until the engine is made anew, not {new!r}"
                )
        self._config = config

    @property
    def config(self) -> EngineConfig:
        """The settings in force."""
        return self._config

    @property
    def threshold(self) -> float:
        """The deviation threshold of the newest frame, steered if there is a budget."""
        return self._threshold

    @property
    def counters(self) -> Counters:
        """A consistent snapshot."""
        return self._ledger.counters

    def slow_track(self) -> SlowTrackState:
        """What the background worker is doing."""
        return self._slow.state()

    def close(self, timeout_s: float = 5.0) -> bool:
        """Stop the background worker, at the next block of Sh if it runs.

        False if it did not end in time: its thread was abandoned and cannot keep the process alive.
        """
        self._closed = True
        return self._slow.close(timeout_s)

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def _foreground(self) -> Iterator[None]:
        if self._closed:
            raise RuntimeError("the engine is closed; make a new one")
        if not self._in_process.acquire(blocking=False):
            raise RuntimeError("process() runs in another thread; call it from one at a time")
        try:
            # Costs nothing, and the caller may be another thread than last time.
            use_threads(self._threads.count(starved=self._slow.starved()))
            with self._threads.priority(), torch.inference_mode():
                yield
        finally:
            self._in_process.release()

    def _provenance(self, turn: _Turn, kind: MaskKind) -> Provenance:
        frame, key = turn.frame, turn.key
        reset = self._epoch_reason if key is None else None
        if key is None or kind is not MaskKind.PROPAGATED:
            exact = kind is MaskKind.FULL
            return Provenance(kind, frame.stamp_ns, 0, 0.0, exact, turn.epoch, reset)
        age_ms = (frame.stamp_ns - key.stamp_ns) / 1e6
        age_frames = turn.index - key.index
        return Provenance(kind, key.stamp_ns, age_frames, age_ms, key.exact, turn.epoch)

    def _after_mask(self, turn: _Turn, work: Work, watch: Stopwatch) -> Selection | None:
        """What does not change this frame's mask: the selector, and taking over as key frame."""
        key = turn.key
        as_key = partial(
            self._tracks.key_frame, work, turn.frame, turn.geometry, turn.index, turn.epoch
        )
        if key is None:
            # After a failure of Sh this has no F_h yet; a later frame tries again.
            self._take_over(None, as_key(exact=work.high is not None), submit=False)
            return None
        if work.high is None:
            # Not every frame: Sh would be superseded again and again and F_h never arrive.
            if self._ledger.counters.pending == 0:
                self._take_over(key, as_key(), submit=True)
            return None
        age_frames, every = turn.index - key.index, turn.level.selector_every
        # Resampled features are a makeshift: the first frame of the new size replaces them.
        must = key.resampled or turn.duplicate or self._forced.is_set()
        if not must and not schedule.selects(age_frames, every, self._config):
            return None
        with watch.stage("selector_ms"):
            selector_reduced = self._net.selector_reduce(work.low)
            deviation = self._net.deviation(key.selector_reduced, selector_reduced)
        threshold = self._threshold
        fills = schedule.fills_idle_time(self._slow.state().last_error, turn.level, self._config)
        # A frame that comes while Sh is busy would wait for it, its features carried once more.
        limit = math.inf if fills else threshold
        chosen = schedule.is_key(deviation, limit, age_frames, self._config)
        # Cameras that share the slow track ask for Sh in turn; a newer frame of this one will.
        chosen = must or (chosen and self._slow.admits()) or (fills and self._slow.offers())
        if chosen:
            chosen = self._promote(key, as_key(selector_reduced=selector_reduced), work)
            self._ledger.count(duplicates=int(chosen and turn.duplicate))
        return Selection(deviation, threshold, chosen)

    def _promote(self, key: KeyFrame, new: KeyFrame, work: Work) -> bool:
        """Rule 3: key frame at once, with propagated features; False if a reset came in between."""
        while not self._take_over(key, new, submit=True):
            # Sh has refined the key frame since; what it found is propagated, not lost.
            current, epoch = self._cache.snapshot()
            if current is None or current.high is None or epoch != new.epoch:
                return False
            assert work.weights is not None  # the predictor has run: there was an F_h
            key = current
            with serial():
                high = self._net.keep(self._net.propagate(current.high, work.weights))
            new = dataclasses.replace(new, high=high, seen=current.seen)
        return True

    def _take_over(self, old: KeyFrame | None, new: KeyFrame, *, submit: bool) -> bool:
        if not self._cache.replace(old, new):
            return False
        self._ledger.count(key_frames=1, forced=int(self._forced.is_set()))
        self._forced.clear()
        if submit:
            self._slow.submit(new)
        return True
