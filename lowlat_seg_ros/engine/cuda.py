"""The network's parts on a GPU: a stream for each side, CUDA graphs, copies that do not wait.

Frames have a stream of high priority and the slow track one of low priority, so that slices of Sh
fill what frames leave. A priority does not stop a kernel that runs: the slow track still yields
between its slices, and has no more than one of them under way.
"""

from __future__ import annotations

import itertools
import threading
import weakref
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lowlat_seg_ros.engine import resize
from lowlat_seg_ros.engine.graphs import Graphs
from lowlat_seg_ros.engine.latency import Clock, Stopwatch
from lowlat_seg_ros.engine.runner import Runner
from lowlat_seg_ros.network.segmenter import Segmenter
from lowlat_seg_ros.network.statistics import Statistics

#: Priorities of streams, as PyTorch has them.
FRAMES, SLOW_TRACK = -1, 0


class Side:
    """What frames, or the slow track, of one network have on the GPU; one thread at a time."""

    def __init__(self, device: torch.device, priority: int, statistics: Statistics) -> None:
        self.lock = threading.Lock()
        self.stream = torch.cuda.Stream(device, priority=priority)
        self.graphs = Graphs(device, priority)
        # Graphs read them where they are, so they must live as long.
        self.mean, self.std = (
            torch.tensor(values, device=device).view(3, 1, 1)
            for values in (statistics.mean, statistics.std)
        )
        self._uploads: tuple[tuple[int, int], Uploads] | None = None

    def upload(self, size: tuple[int, int]) -> Uploads:
        """Buffers of ``size`` (H, W); those of another size are let go."""
        if self._uploads is None or self._uploads[0] != size:
            self._uploads = size, Uploads(size)
        return self._uploads[1]


# They outlive an engine: those of a node are warm from its first frame on, and engines of several
# cameras may share a network. Nothing in them refers to the network, so they end with it.
_sides: weakref.WeakKeyDictionary[Segmenter, dict[int, Side]] = weakref.WeakKeyDictionary()


def graphs_of(segmenter: Segmenter) -> list[Graphs]:
    """Those of its sides, for their counts."""
    return [side.graphs for side in _sides.get(segmenter, {}).values()]


class CudaRunner(Runner):
    """A side of an engine; the slow track's comes ``after`` that of its frames."""

    def __init__(
        self, segmenter: Segmenter, device: torch.device, after: CudaRunner | None = None
    ) -> None:
        super().__init__(segmenter)
        self._device, self._after = device, after
        sides, priority = _sides.setdefault(segmenter, {}), SLOW_TRACK if after else FRAMES
        if priority not in sides:
            sides[priority] = Side(device, priority, segmenter.statistics)
        self._side = sides[priority]
        self._dtype = next(segmenter.parameters()).dtype

    @contextmanager
    def turn(self) -> Iterator[None]:
        """On this side's stream, behind what was begun before it."""
        side = self._side
        with side.lock:
            side.stream.wait_stream(torch.cuda.current_stream(self._device))
            self.after_frames()
            try:
                with torch.cuda.stream(side.stream):
                    yield
            finally:
                self.settle()

    def run(self, name: Hashable, function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        """By a CUDA graph of its own."""
        return self._side.graphs.run(name, function, inputs)

    def keep(self, tensor: Tensor) -> Tensor:
        """A copy, if it is the place that a graph writes to."""
        return tensor.clone() if self._side.graphs.writes(tensor) else tensor

    def settle(self) -> None:
        """Wait for this side's stream; the slow track's thread sleeps meanwhile."""
        done = torch.cuda.Event(blocking=self._after is not None)
        done.record(self._side.stream)
        done.synchronize()

    def after_frames(self) -> None:
        """Let the GPU wait for them; this thread does not."""
        if self._after is not None:
            self._side.stream.wait_stream(self._after._side.stream)

    def stopwatch(self, clock: Clock) -> Stopwatch:
        """Stages end when the GPU gets there; nothing waits for it."""
        return Stopwatch(clock, _mark, _ms_between)

    def image(
        self, image: np.ndarray, geometry: resize.Geometry
    ) -> tuple[Tensor, np.ndarray | None]:
        """One asynchronous copy of bytes; the rest is done on the GPU, but for the luma."""
        self._side.graphs.use(geometry.padded)
        luma: np.ndarray | None = None

        def fill(padded: np.ndarray) -> None:
            nonlocal luma
            resize.fill(image, geometry, padded)
            luma = self._luma(padded)

        pixels = self._side.upload(geometry.padded).send(fill, self._device)
        return self.run("image", self._normalised, pixels), luma

    def mask(self, logits: Tensor, geometry: resize.Geometry) -> np.ndarray:
        """One asynchronous copy of bytes, and the only wait of a frame."""
        name = "mask", geometry, geometry.mask  # which geometries are equal without
        ids = self.run(name, partial(resize.ids_of, geometry=geometry), logits)
        # PyTorch keeps pinned memory and hands it out again when the caller lets go of the mask.
        host = torch.empty(ids.shape, dtype=ids.dtype, pin_memory=True)
        host.copy_(ids, non_blocking=True)
        self.settle()
        mask: np.ndarray = host.numpy()
        return mask

    def lower(self, image: Tensor, pause: Callable[[], None] = lambda: None) -> Tensor:
        """Sl: image -> F_l, in one."""
        return self.run("lower", self._net.lower, image)

    def higher(self, source: Tensor, pause: Callable[[], None] = lambda: None) -> Tensor:
        """A graph for each slice."""
        numbers = itertools.count()

        def step(function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
            name = f"higher {next(numbers)}"
            return self._side.graphs.run(name, function, inputs, pool="higher")

        def one_at_a_time() -> None:
            self.settle()
            pause()

        if self._after is None:
            return self.keep(self._net.higher(source, pause, step))
        self._side.graphs.use(tuple(source.shape[2:]))
        return self.keep(self._net.higher(source, one_at_a_time, step))

    def _normalised(self, pixels: Tensor) -> Tensor:
        image = pixels.permute(2, 0, 1).unsqueeze(0) / 255  # NHWC in memory
        return ((image - self._side.mean) / self._side.std).to(self._dtype)


class Uploads:
    """Two pinned buffers (H, W, 3) of bytes, filled and sent in turns."""

    def __init__(self, size: tuple[int, int]) -> None:
        self._buffers = itertools.cycle(
            [
                (torch.empty(*size, 3, dtype=torch.uint8, pin_memory=True), torch.cuda.Event())
                for _ in range(2)
            ]
        )

    def send(self, fill: Callable[[np.ndarray], None], device: torch.device) -> Tensor:
        """Let ``fill`` write into one, and begin to copy it to ``device``."""
        buffer, sent = next(self._buffers)
        sent.synchronize()  # returns at once before its first use
        fill(buffer.numpy())
        pixels = buffer.to(device, non_blocking=True)
        sent.record()
        return pixels


def _mark() -> Any:
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def _ms_between(start: Any, end: Any) -> float:
    end.synchronize()
    ms: float = start.elapsed_time(end)
    return ms
