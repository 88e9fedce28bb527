"""Methods that run in the foreground alone, with the engine's interface: frame in, mask out.

Every method runs its network's parts through the engine's own runner, so on a GPU all of them have
CUDA graphs, the stream of high priority and the asynchronous copies that the product has.
:class:`Stream` is the base; those without key frames stand here, too: the full network, any network
on every frame, and GRFP.
"""

from __future__ import annotations

import dataclasses
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lowlat_seg_ros.config import EngineConfig
from lowlat_seg_ros.engine import preprocess, schedule
from lowlat_seg_ros.engine.cpu_threads import use_threads
from lowlat_seg_ros.engine.own_core import OwnCore
from lowlat_seg_ros.engine.runner import Stopwatch, runners, runtime_of
from lowlat_seg_ros.frames import Counters, Frame, MaskKind, Provenance, ResetReason, Segmentation
from lowlat_seg_ros.lab.baselines.carry import FlowNetwork, half_size, warp
from lowlat_seg_ros.network.segmenter import Segmenter

#: How sharp the cell's answer is to begin with: its logits are this many times a probability.
SHARPNESS = 5.0


@dataclass(frozen=True, eq=False)
class Now:
    """The current frame: its normalised image (1, 3, H, W), luma, and the watch for its stages.

    ``luma`` is uint8 (H/2, W/2), None where the network carries no answers. ``key_age``,
    ``key_age_s``: frames and seconds since the key frame, 0 on the first frame after a reset.
    """

    image: Tensor
    luma: np.ndarray | None
    key_age: int
    key_age_s: float
    watch: Stopwatch


class Stream(ABC):
    """``process`` and ``reset`` as the engine has them; a method says what becomes of one image.

    It resets itself where the engine does (size, frame id, time, gap), and may use all cores, as
    nothing runs beside it. What the network raises comes through. ``segmenter`` prepares images.
    """

    def __init__(
        self,
        segmenter: Segmenter,
        config: EngineConfig = EngineConfig(),  # noqa: B008 - frozen
    ) -> None:
        self.runner, _ = runners(segmenter, config.runtime)
        self.counters = Counters()
        #: Distinguishes the CUDA graphs of this method's own parts from those of other methods.
        self.name: Hashable = object()
        self._config = config
        # Two cores share the layers of OpenVINO's programs, as those of the engine's frames.
        compiled = runtime_of(segmenter, config.runtime) == "openvino"
        self._own_core = OwnCore() if compiled and config.foreground_threads > 1 else None
        self._previous: Frame | None = None
        self._key_at: tuple[int, int] | None = None  # stamp and index of the key frame
        self._reset: ResetReason | None = ResetReason.FIRST_FRAME

    @abstractmethod
    def step(self, now: Now) -> tuple[Tensor, MaskKind]:
        """Logits (1, classes, r*H/8, r*W/8) of a frame, and how they were obtained.

        FULL makes the frame the key frame.
        """

    def forget(self) -> None:  # noqa: B027 - not all keep anything
        """Drop what is kept of earlier frames; by default nothing is."""

    def run(self, part: str, function: Callable[..., Tensor], *inputs: Tensor | None) -> Tensor:
        """``function`` of ``inputs`` by the engine's runner, as a part of this method alone.

        An input that is None stays None whenever the part runs.
        """

        def of_tensors(*tensors: Tensor) -> Tensor:
            rest = iter(tensors)
            return function(*(None if given is None else next(rest) for given in inputs))

        tensors = [given for given in inputs if given is not None]
        # The module itself where that is possible, as OpenVinoRunner compiles modules in 8 bits.
        called = function if len(tensors) == len(inputs) else of_tensors
        return self.runner.run((self.name, part), called, *tensors)

    @torch.inference_mode()
    def process(self, frame: Frame) -> Segmentation:
        """Segment ``frame``; raises ``FrameError`` for one of impossible size."""
        if self._own_core is None:
            return self._segment(frame)
        self.runner.shares = self._own_core.enter()
        try:
            return self._segment(frame)
        finally:
            self._own_core.leave()

    def _segment(self, frame: Frame) -> Segmentation:
        use_threads(self._config.foreground_threads)
        reason = schedule.needs_reset(self._previous, frame, self._config)
        if reason is not None and self._key_at is not None:
            self.reset(reason)
        index, resets = self.counters.frames, self.counters.resets
        with self.runner.frame_context():
            watch = self.runner.stopwatch(time.perf_counter_ns)
            with watch.stage("preprocess_ms"):
                geometry = preprocess.plan(frame.image.shape[:2], self._config.inference_height)
                image, luma = self.runner.image(frame.image, geometry)
            stamp_ns, key_index = self._key_at or (frame.stamp_ns, index)
            key_age_s = (frame.stamp_ns - stamp_ns) / 1e9
            logits, kind = self.step(Now(image, luma, index - key_index, key_age_s, watch))
            with watch.stage("postprocess_ms"):
                mask = self.runner.mask(logits, geometry)
            watch.mask_out()
        if kind is not MaskKind.PROPAGATED:
            stamp_ns, key_index = frame.stamp_ns, index
        source = Provenance(
            kind,
            stamp_ns,
            index - key_index,
            (frame.stamp_ns - stamp_ns) / 1e6,
            exact=kind is not MaskKind.DEGRADED,
            epoch=resets,
            reset=self._reset,
        )
        keys = self.counters.key_frames + (kind is MaskKind.FULL)
        self.counters = Counters(frames=index + 1, key_frames=keys, resets=resets)
        self._key_at, self._previous, self._reset = (stamp_ns, key_index), frame, None
        timing = watch.timing()
        return Segmentation(mask, frame.stamp_ns, frame.frame_id, source, timing, self.counters)

    def reset(self, reason: ResetReason = ResetReason.REQUESTED) -> None:
        """Forget all features: the next frame begins a new epoch."""
        self.forget()
        self._key_at, self._reset = None, reason
        self.counters = dataclasses.replace(self.counters, resets=self.counters.resets + 1)


class FullEngine(Stream):
    """The full network on every frame: the reference for accuracy, and what the engine saves."""

    def step(self, now: Now) -> tuple[Tensor, MaskKind]:
        with now.watch.stage("lower_ms"):
            source = self.runner.source(now.image)
        with now.watch.stage("higher_ms"):
            high = self.runner.higher(source)
        with now.watch.stage("fusion_ms"):
            return self.runner.classify_high(high), MaskKind.FULL


class PerFrameEngine(Stream):
    """One network on every frame by itself, without key frames or propagation.

    ``network`` maps a normalised image (1, 3, H, W) to logits (1, classes, h, w). ``kind`` says
    what its masks are: ``FULL`` makes every frame a key frame, as it owes nothing to another;
    ``DEGRADED`` is Sl and AdaptNet alone, without any key frame.
    """

    def __init__(
        self,
        segmenter: Segmenter,
        network: Callable[[Tensor], Tensor],
        kind: MaskKind,
        config: EngineConfig = EngineConfig(),  # noqa: B008 - frozen
    ) -> None:
        super().__init__(segmenter, config)
        self._network, self._kind = network, kind

    def step(self, now: Now) -> tuple[Tensor, MaskKind]:
        with now.watch.stage("lower_ms"):
            return self.run("network", self._network, now.image), self._kind


class SingleFrameEngine(Stream):
    """Sl, AdaptNet and the auxiliary classifier on every frame: no key frame, no propagation."""

    def step(self, now: Now) -> tuple[Tensor, MaskKind]:
        with now.watch.stage("lower_ms"):
            low = self.runner.lower(now.image)
            return self.runner.classify_low(low), MaskKind.DEGRADED


class GatedRecurrentWarp(nn.Module):
    """STGRU: where the warped image fits, the past is believed; elsewhere the present."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.flow = FlowNetwork()
        self.misfit = nn.Conv2d(3, 1, 3, padding=1)
        self.from_input = nn.Conv2d(classes, classes, 3, padding=1, bias=False)
        self.from_past = nn.Conv2d(classes, classes, 3, padding=1, bias=False)
        self.gate_input = nn.Conv2d(classes, classes, 3, padding=1)
        self.gate_past = nn.Conv2d(classes, classes, 3, padding=1, bias=False)
        self.sharpness = nn.Parameter(torch.tensor([SHARPNESS]))
        # The gate is open at first, so that the cell begins with the network's own answer.
        assert self.gate_input.bias is not None
        nn.init.constant_(self.gate_input.bias, 3.0)
        nn.init.dirac_(self.from_input.weight)
        self.from_input.weight.data *= SHARPNESS
        for conv in (self.from_past, self.gate_input, self.gate_past):
            nn.init.normal_(conv.weight, std=0.01)

    def forward(self, past: Tensor, image_past: Tensor, image: Tensor, now: Tensor) -> Tensor:
        """Logits (N, classes, h, w) of the current frame.

        ``past`` and ``now`` are probabilities (N, classes, h, w), the cell's of the frame before
        and the network's; the images (N, 3, H/2, W/2) are at half size.
        """
        size, flow = (now.shape[2], now.shape[3]), self.flow(image_past, image)
        if flow.shape[2:] != size:  # several answers per cell: flow is counted in theirs
            finer = size[0] / flow.shape[2]
            flow = finer * F.interpolate(flow, size, mode="bilinear")
        pictures = (F.adaptive_avg_pool2d(picture, size) for picture in (image_past, image))
        before, current = (picture.float() for picture in pictures)
        warped = warp(past, flow)
        reset = 1 - torch.tanh(self.misfit(current - warp(before, flow)).abs())
        candidate = self.from_input(now) + self.from_past(reset * warped)
        gate = torch.sigmoid(self.gate_input(now) + self.gate_past(warped))
        return self.sharpness * (1 - gate) * reset * warped + gate * candidate


class GrfpEngine(Stream):
    """The full network on every frame, and from the second one on the cell: it is not fast."""

    def __init__(
        self,
        segmenter: Segmenter,
        cell: GatedRecurrentWarp,
        config: EngineConfig = EngineConfig(),  # noqa: B008 - frozen
    ) -> None:
        super().__init__(segmenter, config)
        self._cell = cell
        self._past: tuple[Tensor, Tensor] | None = None  # probabilities and image of the last frame

    def step(self, now: Now) -> tuple[Tensor, MaskKind]:
        runner = self.runner
        with now.watch.stage("lower_ms"):
            source = runner.source(now.image)
        with now.watch.stage("higher_ms"):
            logits = runner.classify_high(runner.higher(source))
        with now.watch.stage("propagation_ms"):
            # In bfloat16 the means would be rounded.
            small = runner.clone(self.run("half size", lambda x: half_size(x.float()), now.image))
            if self._past is not None:
                logits = self.run("cell", self._answer, *self._past, small, logits)
            probabilities = self.run("probabilities", lambda x: x.softmax(dim=1), logits)
            self._past = runner.clone(probabilities), small
        return logits, MaskKind.FULL

    def _answer(self, past: Tensor, image_past: Tensor, image: Tensor, logits: Tensor) -> Tensor:
        answer: Tensor = self._cell(past, image_past, image, logits.softmax(dim=1))
        return answer

    def forget(self) -> None:
        self._past = None
