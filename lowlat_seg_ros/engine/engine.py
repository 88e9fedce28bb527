"""The frame loop: low-latency scheduling of Sl, Sh and propagation (paper Sec. 3.4).

:meth:`Engine.segment` makes the mask (Sec. 3.3, and Sh on a first frame); :meth:`Engine.finish` is
what comes after it, the selector (Sec. 3.2) and the choice of key frames. The scheduling rules that
comments name are listed in docs/method.md.
"""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from lowlat_seg_ros.config import ConfigError, EngineConfig
from lowlat_seg_ros.engine import cpu_threads, preprocess
from lowlat_seg_ros.engine.beside import Beside
from lowlat_seg_ros.engine.counters import LiveCounters, OnRefinement, failed
from lowlat_seg_ros.engine.key_frame import (
    HighLevel,
    KeyFrame,
    KeyFrameCache,
    Refiner,
    exact_features,
)
from lowlat_seg_ros.engine.postprocess import leave_out
from lowlat_seg_ros.engine.runner import Clock, Stopwatch, runners
from lowlat_seg_ros.engine.schedule import StreamSchedule
from lowlat_seg_ros.engine.slow_track import SlowTrackState, ThreadedSlowTrack
from lowlat_seg_ros.engine.step import Arrival, Features, Judge, Promotion, Step
from lowlat_seg_ros.engine.virtual_slow_track import Delay, SlowTrackFactory, VirtualSlowTrack
from lowlat_seg_ros.frames import (
    Counters,
    Deadline,
    Frame,
    MaskKind,
    Provenance,
    ResetReason,
    Segmentation,
    Selection,
)
from lowlat_seg_ros.network import inference
from lowlat_seg_ros.network.checkpoint import DEFAULT_CHECKPOINT, Header
from lowlat_seg_ros.network.inference import resolve_device
from lowlat_seg_ros.network.layers import num_threads, single_threaded
from lowlat_seg_ros.network.segmenter import Segmenter

#: What was found about the threads of each network.
_TRIALS: WeakKeyDictionary[Segmenter, cpu_threads.Trials] = WeakKeyDictionary()


class Engine:
    """Segments a stream of frames, each at the cost of the fast track.

    :meth:`process` does one frame; :meth:`segment` and :meth:`finish` are its two halves, between
    which the mask can be published. They are called by one thread at a time, everything else by
    any. ``threshold`` is the calibrated deviation (fraction of pixels) above which a frame becomes
    the key frame. ``segmenter`` must be in eval mode on its device. Engines may share it, with one
    :class:`~.slow_track.SharedSlowTrack`, where one thread processes the frames of all and finishes
    each before the next one's ``segment``. ``on_refinement`` is called with what became of each key
    frame that Sh was to refine, by the thread that ends the job.
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
        self._net, slow_net = runners(segmenter, config.runtime)
        self._trained_height = segmenter.trained_height
        self._judge = Judge(segmenter.accuracy_model)
        self._config, self._clock = config, clock
        self._schedule = StreamSchedule(threshold, config)
        trials = _TRIALS.setdefault(segmenter, {})
        self._threads = cpu_threads.ForegroundThreads(config, trials=trials)
        self._beside = Beside()
        self._counters = LiveCounters(on_refinement)
        self._cache = KeyFrameCache()
        self._lock = threading.Lock()  # of resets, and of who is in the foreground
        self._foreground_thread: threading.Thread | None = None
        self._open: Step | None = None  # the step that is not finished yet
        self._closed = False
        refine = Refiner(slow_net, self._cache, config.late_refinement)
        self._slow = slow_track(refine, self._counters, config)
        self._promotion = Promotion(self._net, self._cache, self._counters, self._slow)

    @classmethod
    def from_checkpoint(
        cls,
        path: str | Path = DEFAULT_CHECKPOINT,
        config: EngineConfig = EngineConfig(),  # noqa: B008 - frozen
        device: str = "auto",
    ) -> Engine:
        """Load weights; raises ``CheckpointError`` for the file, ``ConfigError`` for the device."""
        load = partial(
            inference.load, path, resolve_device(device), config.precision, config.runtime
        )
        # The thread's pool ends with it.
        segmenter, header = cpu_threads.run_in_temporary_thread(load)
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
        track = partial(VirtualSlowTrack, delay=Delay(delay_frames, delay_ms))
        clock = clock or time.perf_counter_ns
        engine = cls(segmenter, config, threshold=threshold, clock=clock, slow_track=track)
        engine._threads.ignore_others()
        return engine

    def process(
        self,
        frame: Frame,
        *,
        confidence: bool = False,
        mask_at_network_size: bool = False,
    ) -> Segmentation:
        """:meth:`segment` and :meth:`finish` in one, for those who publish nothing in between."""
        step = self.segment(frame, mask_at_network_size=mask_at_network_size)
        return self.finish(step, confidence=confidence)

    def segment(
        self, frame: Frame, *, waited_ms: float = 0.0, mask_at_network_size: bool = False
    ) -> Step:
        """The mask of ``frame``; never waits for Sh, except on the first frame of an epoch.

        ``waited_ms`` is how long ago the frame came in; it counts for the deadline.
        ``mask_at_network_size`` asks for the size that ``inference_height`` gives, also while load
        is shed, instead of the frame's. Pass the step to :meth:`finish` in any case: Sh waits until
        then, and a frame whose step is dropped cannot become the key frame. Raises ``FrameError``
        for a frame of impossible size, ``RuntimeError`` after :meth:`close` or while another thread
        is in the foreground, and what the network raises; the next frame works as usual.
        """
        if self._closed:
            raise RuntimeError("the engine is closed; make a new one")
        net = self._net
        with self._foreground(), self._threads.until_mask(starved=self._slow.starved()):
            arrival = self._begin(frame, mask_at_network_size)
            with net.frame_context():
                watch = net.stopwatch(self._clock)
                with watch.stage("preprocess_ms"):
                    key, epoch, reason = self._cache.at_size(arrival.geometry)
                    self._settle(key)
                    image, luma = net.image(frame.image, arrival.geometry)  # (1, 3, H, W)
                # Optical flow needs nothing of Sl: it begins on another core, where one is free.
                carried = self._carry_answers(key, luma)
                with watch.stage("lower_ms"):
                    low = net.lower(image, self._threads.relieve)  # Sl: F_l (1, Cl, H/8, W/8)
                source = net.source(image, low)
                if key is None or key.high is None:
                    # First frame in the foreground: Sh runs here, but never on a later frame.
                    high = self._run_sh(arrival, source, luma, watch) if key is None else None
                    with watch.stage("fusion_ms"):
                        logits = self._classify(high, low)
                    features = Features(low, source, luma, logits, high)
                else:
                    # Never wait for Sh: F_h of the key frame is taken as it is, exact or not.
                    with watch.stage("predictor_ms"):
                        reduced = net.reduce(low)
                        weights = net.kernels(key.remembered, reduced)  # W(k,t) (1, K*K, h, w)
                    with watch.stage("propagation_ms"), single_threaded():
                        # Eq. (1): F_h (1, Ch, h, w), at 1/8, or at 1/16 where cells are coarse
                        propagated = net.propagate(key.high.features, weights)
                        answers, residual = carried()
                    with watch.stage("fusion_ms"):
                        age_s = key.high.age_s(frame.stamp_ns, arrival.index)
                        # F_l of the key frame stands for that of the frame that Sh saw: with the
                        # latter the clip's mIoU changes by 0.02 points at most.
                        evidence = net.evidence(key.reduced, reduced, age_s, residual)
                        logits, trust = net.fuse(propagated, low, reduced, evidence, answers)
                    high = dataclasses.replace(key.high, features=propagated)
                    features = Features(low, source, luma, logits, high, reduced, weights, trust)
                judged, least = None, arrival.config.confidence_threshold
                with watch.stage("postprocess_ms"):
                    mask = net.mask(logits, arrival.geometry)  # uint8 (H, W)
                    if least > 0:
                        judged = self._judge(arrival, features, confidence=True)
                        assert judged.confidence is not None
                        leave_out(mask, judged.confidence, least)
                watch.mask_out()
            reset = reason if key is None else None
            provenance = features.provenance(arrival, key, epoch, reset)
            timing = watch.timing()
            deadline = self._account(frame, provenance, waited_ms + timing.latency_ms)
            self._open = step = Step(
                mask, provenance, timing, deadline, arrival, features, key, watch, judged
            )
            return step

    def finish(self, step: Step, *, confidence: bool = False) -> Segmentation:
        """What comes after the mask of ``step``: selector, promotion to key frame, the record.

        ``confidence`` asks for the record's. Raises ``RuntimeError`` for a step that is finished
        already, or that is not the newest one.
        """
        if step is not self._open:
            raise RuntimeError("the step is finished, or a newer frame came; finish each step once")
        key, features, net = step.key, step.features, self._net
        config, promotion = step.arrival.config, self._promotion
        threshold = self._schedule.threshold
        with self._foreground(last=True), self._threads.after_mask(), net.frame_context():
            selection, is_key = None, False
            if key is None:
                # Sh has run on it, so it is not submitted. If Sh failed, the next frame is instead.
                is_key = promotion.promote(step, submit=False)
            elif features.high is None:
                # Not every frame: they would supersede each other, and F_h would never arrive.
                is_key = self._counters.snapshot().pending == 0 and promotion.promote(step)
            elif promotion.selector_is_due(step, key, config):
                with step.watch.stage("selector_ms"):
                    reduced = net.selector_reduce(features.low)
                    deviation = net.deviation(key.selector_reduced, reduced)  # devS(k,t)
                chosen = promotion.is_chosen(step, key, deviation, threshold, config)
                is_key = chosen and promotion.promote(step, reduced)
                self._counters.count(duplicates=int(is_key and step.arrival.duplicate))
                selection = Selection(deviation, threshold, is_key)
            self._schedule.finish(is_key, config)
            judged = step.judged or self._judge(step.arrival, features, confidence=confidence)
            return Segmentation(
                mask=step.mask,
                stamp_ns=step.arrival.frame.stamp_ns,
                frame_id=step.arrival.frame.frame_id,
                provenance=step.provenance,
                timing=step.watch.timing(),
                counters=self._counters.snapshot(),
                selection=selection,
                deadline=step.deadline,
                confidence=judged.confidence if confidence else None,
                trust=None if features.trust is None else float(features.trust.mean()),
                look=judged.look,
                expected_accuracy=judged.expected,
            )

    def reset(self, reason: ResetReason = ResetReason.REQUESTED) -> None:
        """Forget all features: the next frame begins a new epoch, with a full mask."""
        with self._lock:
            self._cache.begin_epoch(reason)
            self._slow.cancel()
            self._counters.reset(reason)

    def force_key_frame(self) -> None:
        """Make the next frame the key frame, whatever the selector says.

        Its mask is made as usual: Sh runs in the background. A full frame serves as well.
        """
        self._promotion.forced.set()

    def reconfigure(self, config: EngineConfig) -> None:
        """Adopt dynamic settings from the next frame on; raises ``ConfigError`` for any other."""
        for item in dataclasses.fields(EngineConfig):
            old, new = getattr(self._config, item.name), getattr(config, item.name)
            if old != new and not item.metadata["rule"].dynamic:
                raise ConfigError(f"{item.name} is {old!r} until a new engine is made, not {new!r}")
        self._config = config

    def inference_size(self, image: tuple[int, int]) -> tuple[int, int]:
        """Height and width at which an image of this height and width is segmented, unpadded."""
        height = self._config.inference_height
        return preprocess.plan(image, height, trained_height=self._trained_height).scaled

    @property
    def config(self) -> EngineConfig:
        return self._config

    @property
    def threshold(self) -> float:
        """The deviation threshold of the newest frame, steered if there is a budget."""
        return self._schedule.threshold

    @property
    def counters(self) -> Counters:
        return self._counters.snapshot()

    def slow_track(self) -> SlowTrackState:
        return self._slow.state()

    def close(self, timeout_s: float = 5.0) -> bool:
        """Stop the background worker, at the next slice of Sh if it runs.

        False if it did not end in time: its thread was abandoned and cannot keep the process alive.
        """
        self._closed = True
        self._beside.close()
        return self._slow.close(timeout_s)

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def _foreground(self, *, last: bool = False) -> Iterator[None]:
        """Entered by each half of a frame; one thread is in the foreground until the ``last``."""
        me = threading.current_thread()
        with self._lock:
            other = self._foreground_thread or me
            if other is not me and other.is_alive():
                raise RuntimeError(
                    "another thread's frame is not finished; process frames in one thread"
                )
            self._foreground_thread = me
        self._open, done = None, False
        try:
            with torch.inference_mode():
                yield
            done = not last
        finally:
            if not done:
                self._slow.end_frame()
                with self._lock:
                    self._foreground_thread = None

    def _settle(self, key: KeyFrame | None) -> None:
        """Give a frame without Sh a core of its own, and a helper on another one, where it can."""
        net, threads = self._net, self._threads
        net.helper, net.shares = None, False
        if key is not None:
            on_its_own = threads.settle()
            if net.can_run_beside and threads.leave_a_core:
                net.helper = partial(self._beside.start, urgent=threads.raised)
                net.shares = on_its_own

    def _carry_answers(
        self, key: KeyFrame | None, luma: np.ndarray | None
    ) -> Callable[[], tuple[Tensor | None, Tensor | None]]:
        """Carry the key frame's answers to the frame with this ``luma``; call for the result.

        That is the answers and the residual of the flow, None where the network carries none.
        """
        if key is None or key.high is None or luma is None:
            return lambda: (None, None)
        work = partial(self._net.carry_answers, key.high.answers, key.high.luma, luma)
        return work if self._net.helper is None else self._net.helper(work)

    def _begin(self, frame: Frame, mask_at_network_size: bool) -> Arrival:
        """Decide what the frame's geometry and level are, and whether it begins a new epoch."""
        config = self._config  # read once: another thread may replace it at any moment
        level, reason, duplicate = self._schedule.begin(frame, config)
        geometry = preprocess.plan(
            frame.image.shape[:2],
            config.inference_height,
            level.scale,
            trained_height=self._trained_height,
            mask_at_network_size=mask_at_network_size,
        )
        self._threads.at_height(geometry.padded[0])
        if reason is not None and self._cache.snapshot()[0] is not None:
            self.reset(reason)
        # Set by this thread alone, so that a change of the setting cannot undo the level's.
        self._slow.set_min_share(min(config.slow_track_min_share, level.slow_share))
        # The frames counter is written by this thread alone, so it numbers the frame.
        index = self._counters.snapshot().frames
        self._slow.begin_frame(index, frame.stamp_ns)
        return Arrival(frame, index, level, geometry, duplicate, config)

    def _run_sh(
        self, arrival: Arrival, source: Tensor, luma: np.ndarray | None, watch: Stopwatch
    ) -> HighLevel | None:
        """Sh in the foreground; None if it fails, which never stops masks.

        That one comes from Sl and AdaptNet alone, and so do those that follow until one succeeds.
        """
        with watch.stage("higher_ms"), num_threads(self._threads.full()):
            try:
                features = exact_features(self._net, source, self._threads.relieve)
                answers = self._net.answers(features)
                cells = self._net.carried_cells(features)
            except Exception as error:
                message = failed("in the foreground", error, self._counters)
                self._slow.ran_in_foreground(message)
                return None
            self._slow.ran_in_foreground("")
        return HighLevel(cells, arrival.frame.stamp_ns, arrival.index, luma, answers)

    def _classify(self, high: HighLevel | None, low: Tensor) -> Tensor:
        """The logits of a frame that nothing is carried to: the full network's, if Sh ran."""
        if high is None:
            return self._net.classify_low(low)
        if high.answers is not None:
            return high.answers.contiguous()
        return self._net.classify_high(high.features)

    def _account(self, frame: Frame, provenance: Provenance, latency_ms: float) -> Deadline:
        ran_sh = provenance.reset is not None
        deadline = self._schedule.mask_out(frame, latency_ms, ran_sh=ran_sh)
        self._counters.count(
            frames=1,
            degraded=int(provenance.kind is MaskKind.DEGRADED),
            missed=int(deadline.missed),
            shed=int(deadline.level > 0),
        )
        return deadline
