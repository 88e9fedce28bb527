"""How one track, frames or the slow track, runs the network's parts on a device, and times them."""

from __future__ import annotations

import ctypes
import gc
import sys
import time
from collections.abc import Callable, Hashable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lowlat_seg_ros.config import EngineConfig
from lowlat_seg_ros.engine import postprocess, preprocess
from lowlat_seg_ros.engine.beside import Helper
from lowlat_seg_ros.engine.preprocess import Geometry
from lowlat_seg_ros.frames import StageTiming
from lowlat_seg_ros.network import warping
from lowlat_seg_ros.network.gate import evidence_of
from lowlat_seg_ros.network.inference import precision_name
from lowlat_seg_ros.network.segmenter import Segmenter

#: A monotonic clock in nanoseconds.
Clock = Callable[[], int]


def _ms_between(start_ns: int, end_ns: int) -> float:
    return (end_ns - start_ns) / 1e6


class Stopwatch:
    """Collects one frame's stage times; starts when it is made.

    ``mark`` and ``ms_between`` measure stages in another way than by ``clock``, as a GPU does.
    """

    def __init__(
        self,
        clock: Clock = time.perf_counter_ns,
        mark: Callable[[], Any] | None = None,
        ms_between: Callable[[Any, Any], float] = _ms_between,
    ) -> None:
        self._clock, self._mark, self._ms_between = clock, mark or clock, ms_between
        self._start = clock()
        self._latency_ms = 0.0
        self._stages: list[tuple[str, Any, Any]] = []

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time spent inside to the StageTiming field ``name``."""
        start = self._mark()
        try:
            yield
        finally:
            self._stages.append((name, start, self._mark()))

    def mask_out(self) -> None:
        self._latency_ms = _ms_between(self._start, self._clock())

    def timing(self) -> StageTiming:
        spent_ms = dict.fromkeys((name for name, _, _ in self._stages), 0.0)
        for name, start, end in self._stages:
            spent_ms[name] += self._ms_between(start, end)
        return StageTiming(latency_ms=self._latency_ms, **spent_ms)


class Runner:
    """The parts as they are, on whatever device the network is; :mod:`cuda` has the faster way.

    What a part returns is valid until the same part runs again; :meth:`clone` what is needed
    longer.
    """

    #: Whether parts of a frame may run in two threads at a time.
    can_run_beside = True

    #: Works for the frame at hand on another core, where one is free; else None.
    helper: Helper | None = None

    #: Whether that core may also share the frame's layers, as the frame stays on its own core.
    shares = False

    def __init__(self, segmenter: Segmenter) -> None:
        self._net = segmenter
        self.propagation_stride = segmenter.config.propagation_stride

    def frame_context(self) -> AbstractContextManager[None]:
        """Entered while this track computes; nothing that it began continues afterwards."""
        return nullcontext()

    def run(self, name: Hashable, function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        """``function`` of ``inputs``; what the same ``name`` stands for must never change."""
        return function(*inputs)

    def clone(self, tensor: Tensor) -> Tensor:
        """``tensor``, safe from the next run of the part that made it."""
        return tensor

    def synchronize(self) -> None:
        """Wait until the other track may read what was computed."""

    def after_frames(self) -> None:
        """What the slow track computes from here on may read what frames have made."""

    def stopwatch(self, clock: Clock) -> Stopwatch:
        return Stopwatch(clock)

    def image(self, image: np.ndarray, geometry: Geometry) -> tuple[Tensor, np.ndarray | None]:
        """uint8 (H, W, 3) RGB -> normalised (1, 3, *padded), channels_last; and its luma.

        The luma, uint8 (H/2, W/2) of the padded size, is None where the network needs no flow.
        """
        pixels, net = preprocess.pixels_of(image, geometry), self._net
        values = preprocess.normalised(pixels, net.input_dtype, net.statistics)
        return values, self._luma(pixels)

    def _luma(self, pixels: np.ndarray) -> np.ndarray | None:
        return warping.luma_of(pixels) if self._net.config.fine_carry else None

    def mask(self, logits: Tensor, geometry: Geometry) -> np.ndarray:
        return postprocess.mask_of(logits, geometry, self.helper)

    def lower(self, image: Tensor, pause: Callable[[], None] = lambda: None) -> Tensor:
        """Sl: image -> F_l; ``pause`` is called between its blocks, if it runs in several."""
        return self._net.lower(image, pause)

    def source(self, image: Tensor, low: Tensor | None = None) -> Tensor:
        """What Sh begins with: F_l (``low`` if known), or the image, as the network has it."""
        if low is None and self._net.encoder is None:
            low = self.lower(image)
        return self._net.source(image, low)

    def higher(self, source: Tensor, pause: Callable[[], None] = lambda: None) -> Tensor:
        """Sh: source -> F_h, which stays valid; ``pause`` is called between slices."""
        return self._net.higher(source, pause)

    def reduce(self, low: Tensor) -> Tensor:
        return self.run("reduce", self._net.predictor.reduce, low)

    def remember(self, reduced: Tensor) -> Tensor:
        """Reduced F_l of a key frame -> its half of the predictor, as long valid as ``reduced``."""
        return self._net.predictor.remember(reduced)

    def kernels(self, remembered: Tensor, reduced: Tensor) -> Tensor:
        """Key frame as :meth:`remember` has it, reduced F_l of the current frame -> W(k,t)."""
        return self.run("kernels", self._net.predictor, remembered, reduced)

    def carried_cells(self, high: Tensor) -> Tensor:
        """F_h -> what Eq. (1) carries of it, which stays as long valid as F_h."""
        return self._net.carried_cells(high)

    def propagate(self, key_high: Tensor, weights: Tensor) -> Tensor:
        """Eq. (1): :meth:`carried_cells` of the key frame, carried to the current one."""
        return self.run("propagate", self._net.propagate, key_high, weights)

    def answers(self, high: Tensor) -> Tensor | None:
        """F_h -> the full network's logits, which stay valid; None without ``fine_carry``."""
        if not self._net.config.fine_carry:
            return None
        return self.clone(self.run("answers", self._net.answers, high))

    def carry_answers(
        self, answers: Tensor | None, then: np.ndarray | None, now: np.ndarray | None
    ) -> tuple[Tensor | None, Tensor | None]:
        """Answers of an earlier frame, carried to the current one by optical flow.

        ``then`` and ``now`` are the luma of both. Returns them with the flow's residual, see
        :class:`~.warping.Motion`; None where the network carries no answers.
        """
        if answers is None or then is None or now is None:
            return None, None
        motion = warping.motion(then, now, self._net.config.classifier_upsampling)
        carried = self.run("warp", self._net.warp, answers, motion.flow.to(answers.device))
        return carried, motion.residual

    def evidence(
        self, reduced_key: Tensor, reduced: Tensor, age_s: float, residual: Tensor | None
    ) -> Tensor | None:
        """What the gate needs to know; None without ``residual``, where answers are not carried.

        ``age_s``: since the frame that Sh itself has seen.
        """
        if residual is None:
            return None
        # Filled on the device: a copy from here would wait for all that it has to do.
        age = torch.full((1,), age_s, dtype=torch.float32, device=reduced.device)
        inputs = (reduced_key, reduced, age, residual.to(reduced.device))
        return self.run("evidence", evidence_of, *inputs)

    def fuse(
        self, propagated: Tensor, low: Tensor, reduced: Tensor, evidence: Tensor | None,
        answers: Tensor | None,
    ) -> tuple[Tensor, Tensor | None]:  # fmt: skip
        """The fast track's logits; and the trust in what was carried.

        ``evidence``, ``answers`` and trust are None where the network carries no answers.
        """
        net = self._net
        if evidence is None or answers is None:
            cells = self.run("fuse", net.fuse, propagated, low)
            return self.run("decide", net.decide, cells), None
        given = [reduced] if net.is_coarse else []
        cells = self.run("fuse", net.fuse, propagated, low, evidence, answers, *given)
        return net.split_trust(self.run("decide", net.decide, cells, answers))

    def classify_high(self, high: Tensor) -> Tensor:
        return self.run("classify_high", self._net.classify_high, high)

    def classify_low(self, low: Tensor) -> Tensor:
        """The logits of Sl and AdaptNet alone."""
        return self.run("classify_low", self._net.classify_low, low)

    def selector_reduce(self, low: Tensor) -> Tensor:
        return self.run("selector_reduce", self._net.selector.reduce, low)

    def deviation(self, reduced_key: Tensor, reduced: Tensor) -> float:
        """The selector's answer, a fraction of pixels."""
        return self.run("deviation", self._net.selector.deviation, reduced_key, reduced).item()


def runtime_of(segmenter: Segmenter, runtime: str) -> str:
    """``runtime`` as in ``EngineConfig``, with auto resolved; for a network on a CPU."""
    from lowlat_seg_ros.engine.openvino import why_not

    if runtime == "auto":
        return "pytorch" if why_not(segmenter) else "openvino"
    return runtime


def format_name(segmenter: Segmenter, runtime: str) -> str:
    """The number format of the network, and what runs the fast track, for people."""
    on_cpu = next(segmenter.parameters()).device.type != "cuda"
    if on_cpu and runtime_of(segmenter, runtime) == "openvino":
        return f"{precision_name(segmenter)}, the fast track by OpenVINO"
    return precision_name(segmenter)


def runners(segmenter: Segmenter, runtime: str = EngineConfig.runtime) -> tuple[Runner, Runner]:
    """Those of frames and of the slow track; ``runtime`` as in ``EngineConfig``.

    Raises ``ConfigError`` where there is no such runtime for the network.
    """
    device = next(segmenter.parameters()).device
    if device.type != "cuda":
        postprocess.compiled_upsampling()  # otherwise the first frame would wait for it
        slow_track = Runner(segmenter)
        if runtime_of(segmenter, runtime) == "pytorch":
            return Runner(segmenter), slow_track
        from lowlat_seg_ros.engine.openvino import OpenVinoRunner

        return OpenVinoRunner(segmenter, falls_back=runtime == "auto"), slow_track
    from lowlat_seg_ros.engine.cuda import CudaRunner

    frames = CudaRunner(segmenter, device)
    return frames, CudaRunner(segmenter, device, after=frames)


def release_unused() -> None:
    """Give back memory that nothing refers to any more.

    The allocators of PyTorch and glibc hold freed memory for later; a process that stays without a
    network, as a node that was cleaned up, has no use for it.
    """
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc has it, musl does not
        if trim is not None:
            trim(0)
