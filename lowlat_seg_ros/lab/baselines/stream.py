"""What all methods that run in the foreground alone have in common: frame in, mask out."""

from __future__ import annotations

import dataclasses
import time
from abc import ABC, abstractmethod

import numpy as np
import torch
from torch import Tensor

from lowlat_seg_ros.config import EngineConfig
from lowlat_seg_ros.engine import resize, schedule
from lowlat_seg_ros.engine.device import use_threads
from lowlat_seg_ros.engine.engine import Publish
from lowlat_seg_ros.engine.latency import Clock, Stopwatch
from lowlat_seg_ros.engine.runner import runners
from lowlat_seg_ros.frames import (
    Counters,
    Frame,
    MaskKind,
    Provenance,
    ResetReason,
    Segmentation,
)
from lowlat_seg_ros.network.segmenter import Segmenter


class Stream(ABC):
    """``process`` and ``reset`` as the engine's; a method says what becomes of one image.

    It resets itself where the engine does (size, frame id, time, gap), and may use all cores, as
    nothing runs beside it. What the network raises comes through. ``segmenter`` prepares images;
    ``runner`` runs its parts as the engine's frames do.
    """

    def __init__(
        self,
        segmenter: Segmenter,
        config: EngineConfig = EngineConfig(),  # noqa: B008 - frozen
        *,
        clock: Clock = time.perf_counter_ns,
    ) -> None:
        self.segmenter = segmenter
        self.runner, _ = runners(segmenter)
        self._config, self._clock = config, clock
        self._previous: Frame | None = None
        self._key: tuple[int, int] | None = None  # stamp and index of the key frame
        self.key_age_s = 0.0  # of the key frame, by stamps, while a frame is segmented
        self._reset: ResetReason | None = ResetReason.FIRST_FRAME
        self.counters = Counters()

    @abstractmethod
    def step(self, image: Tensor, key_age: int | None, watch: Stopwatch) -> tuple[Tensor, MaskKind]:
        """Segment a normalised image (1, 3, H, W), ``key_age`` frames after the key frame.

        ``key_age`` is None on the first frame after :meth:`forget`. Returns logits
        (1, classes, r*H/8, r*W/8) and how they were obtained; FULL makes the frame the key frame.
        """

    @abstractmethod
    def forget(self) -> None:
        """Drop what is kept of earlier frames."""

    @torch.inference_mode()
    def process(self, frame: Frame, publish: Publish | None = None) -> Segmentation:
        """Segment ``frame``; raises ``FrameError`` for a frame of impossible size."""
        use_threads(self._config.foreground_threads)
        reason = schedule.needs_reset(self._previous, frame, self._config)
        if reason is not None and self._key is not None:
            self.reset(reason)
        with self.runner.turn():
            watch, index = self.runner.stopwatch(self._clock), self.counters.frames
            with watch.stage("preprocess_ms"):
                geometry = resize.plan(frame.image.shape[:2], self._config.inference_height)
                # A method may keep it with its key frame.
                image = self.runner.keep(self.runner.image(frame.image, geometry)[0])
            age = None if self._key is None else index - self._key[1]
            key_stamp_ns = frame.stamp_ns if self._key is None else self._key[0]
            self.key_age_s = (frame.stamp_ns - key_stamp_ns) / 1e9
            logits, kind = self.step(image, age, watch)
            with watch.stage("postprocess_ms"):
                mask = self.runner.mask(logits, geometry)
            watch.mask_out()
            result = self._record(frame, mask, kind, watch)
        if publish is not None:
            publish(result)
        return result

    def _record(
        self, frame: Frame, mask: np.ndarray, kind: MaskKind, watch: Stopwatch
    ) -> Segmentation:
        index, keys, resets = (
            self.counters.frames,
            self.counters.key_frames,
            self.counters.resets,
        )
        if self._key is None or kind is not MaskKind.PROPAGATED:
            self._key = (frame.stamp_ns, index)
        stamp_ns, key_index = self._key
        age_ms = (frame.stamp_ns - stamp_ns) / 1e6
        exact = kind is not MaskKind.DEGRADED
        provenance = Provenance(
            kind, stamp_ns, index - key_index, age_ms, exact, resets, self._reset
        )
        keys += kind is MaskKind.FULL
        self.counters = Counters(frames=index + 1, key_frames=keys, resets=resets)
        self._previous, self._reset = frame, None
        return Segmentation(
            mask, frame.stamp_ns, frame.frame_id, provenance, watch.timing(), self.counters
        )

    def reset(self, reason: ResetReason = ResetReason.REQUESTED) -> None:
        """Forget all features: the next frame begins a new epoch."""
        self.forget()
        self._key, self._reset = None, reason
        self.counters = dataclasses.replace(self.counters, resets=self.counters.resets + 1)
