"""The full network on every frame: the reference for accuracy, and what the engine saves."""

from __future__ import annotations

import time

import torch

from lowlat_seg_ros.config import EngineConfig
from lowlat_seg_ros.engine import resize
from lowlat_seg_ros.engine.device import use_threads
from lowlat_seg_ros.engine.engine import Publish
from lowlat_seg_ros.engine.latency import Clock, Stopwatch
from lowlat_seg_ros.frames import (
    Counters,
    Frame,
    MaskKind,
    Provenance,
    ResetReason,
    Segmentation,
)
from lowlat_seg_ros.network.segmenter import Segmenter


class FullEngine:
    """Sl, Sh and the classifier on F_h for each frame; ``process`` and ``reset`` as the engine's.

    It may use all cores, as nothing runs beside it. What Sh raises comes through.
    """

    def __init__(
        self,
        segmenter: Segmenter,
        config: EngineConfig = EngineConfig(),  # noqa: B008 - frozen
        *,
        clock: Clock = time.perf_counter_ns,
    ) -> None:
        self._net = segmenter
        self._config = config
        self._clock = clock
        self._reset: ResetReason | None = ResetReason.FIRST_FRAME
        self._epoch = 0
        self.counters = Counters()

    @torch.inference_mode()
    def process(self, frame: Frame, publish: Publish | None = None) -> Segmentation:
        """Segment ``frame`` by itself; every mask is a key frame's own, of kind FULL."""
        use_threads(self._config.foreground_threads)
        watch = Stopwatch(self._clock)
        with watch.stage("preprocess_ms"):
            geometry = resize.plan(frame.image.shape[:2], self._config.inference_height)
            image = resize.network_input(frame.image, geometry, self._net)
        with watch.stage("lower_ms"):
            low = self._net.lower(image)
        with watch.stage("higher_ms"):
            high = self._net.higher(low)
        with watch.stage("fusion_ms"):
            logits = self._net.classify_high(high)
        with watch.stage("postprocess_ms"):
            mask = resize.mask_of(logits, geometry)
        watch.mask_out()
        frames = self.counters.frames + 1
        self.counters = Counters(frames=frames, key_frames=frames, resets=self._epoch)
        provenance = Provenance(
            MaskKind.FULL, frame.stamp_ns, 0, 0.0, True, self._epoch, self._reset
        )
        self._reset = None
        result = Segmentation(
            mask, frame.stamp_ns, frame.frame_id, provenance, watch.timing(), self.counters
        )
        if publish is not None:
            publish(result)
        return result

    def reset(self, reason: ResetReason = ResetReason.REQUESTED) -> None:
        """Begin a new epoch; frames do not depend on one another, so masks do not change."""
        self._epoch += 1
        self._reset = reason
