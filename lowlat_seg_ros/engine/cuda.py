"""The network's parts on a GPU: a stream for each track, CUDA graphs, copies that do not wait.

Frames have a stream of high priority and the slow track one of low priority, so that slices of Sh
fill what frames leave. A priority does not stop a kernel that runs: the slow track still yields
between its slices, and has no more than one of them under way.

A part of the network runs as it is the first time, which warms up its libraries. The second time it
is captured as a CUDA graph, once for each size, unless it only passes its input on; from then on
the graph is launched as a whole.
"""

from __future__ import annotations

import functools
import itertools
import logging
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lowlat_seg_ros.engine import postprocess, preprocess
from lowlat_seg_ros.engine.preprocess import Geometry
from lowlat_seg_ros.engine.runner import Clock, Runner, Stopwatch
from lowlat_seg_ros.network.segmenter import Segmenter
from lowlat_seg_ros.network.trunk import Statistics

logger = logging.getLogger(__name__)

#: Sizes of the network's input whose graphs are held: those of the levels of shedding load, and one
#: more.
SIZES = 4

# One at a time in the process: a capture begins with waiting for the whole device, which another
# one, in the thread of another engine or of the slow track, would not survive.
_capturing = threading.Lock()


@functools.cache
def _stream(device: torch.device, priority: int) -> torch.cuda.Stream:
    """Where graphs are captured; kernels in a graph have its priority.

    It is used for nothing else: what waits for a stream that captures would become part of the
    graph. PyTorch has 32 streams of a priority and hands them out in rotation, so this is
    the only one.
    """
    return torch.cuda.Stream(device, priority=priority)


class Graph:
    """``function`` of tensors like ``inputs``, captured on ``stream``.

    ``bound``: the inputs that are always at the same place, as graphs' outputs are; others are
    copied to a place of their own. The output is at the same place each time.
    """

    def __init__(
        self,
        function: Callable[..., Tensor],
        inputs: Sequence[Tensor],
        bound: Sequence[bool],
        stream: torch.cuda.Stream,
        pool: Any = None,
    ) -> None:
        places = [x if here else torch.empty_like(x) for x, here in zip(inputs, bound, strict=True)]
        self._places = {i: place for i, place in enumerate(places) if not bound[i]}
        # Features are never written to again, so the same tensor need not be copied twice.
        self._copied: dict[int, weakref.ref[Tensor]] = {}
        self._graph = torch.cuda.CUDAGraph()
        with (
            _capturing,
            torch.cuda.graph(
                self._graph, pool=pool, stream=stream, capture_error_mode="thread_local"
            ),
        ):
            self.output = function(*places)

    def __call__(self, inputs: Sequence[Tensor]) -> Tensor:
        for index, place in self._places.items():
            x, before = inputs[index], self._copied.get(index)
            if before is None or before() is not x:
                place.copy_(x)
                self._copied[index] = weakref.ref(x)
                # The other track may have made it, and drop it while this copy is under way.
                x.record_stream(torch.cuda.current_stream())
        self._graph.replay()
        return self.output


class GraphsOfSize:
    def __init__(self) -> None:
        self.graphs: dict[Hashable, Graph | None] = {}  # None where capturing failed
        self.seen: set[Hashable] = set()
        self.places: set[int] = set()  # addresses of the outputs
        self.pools: dict[str, Any] = {}


class Graphs:
    """The graphs of one track, frames or slow track, of one network; used by one thread at a time.

    ``captured`` and ``failed`` count captures; a part whose capture failed runs as it is from then
    on.
    """

    def __init__(self, device: torch.device, priority: int) -> None:
        self.captured = self.failed = 0
        self._stream = _stream(device, priority)
        self._index = device.index or 0
        self._sizes: OrderedDict[Hashable, GraphsOfSize] = OrderedDict()
        self._now = GraphsOfSize()

    def use(self, size: Hashable) -> None:
        """Use the graphs of ``size``, and release those of the size used longest ago."""
        self._now = self._sizes.setdefault(size, GraphsOfSize())
        self._sizes.move_to_end(size)
        while len(self._sizes) > SIZES:
            self._sizes.popitem(last=False)

    def writes(self, tensor: Tensor) -> bool:
        return tensor.data_ptr() in self._now.places

    def run(
        self,
        name: Hashable,
        function: Callable[..., Tensor],
        inputs: Sequence[Tensor],
        pool: str = "",
    ) -> Tensor:
        """``function`` of ``inputs`` on the current stream, by its graph from the second time on.

        ``function`` must be what ``name`` was before. Graphs of one ``pool`` share memory, so they
        must always run in the order in which they are captured; with "" a graph has its own.
        """
        now = self._now
        warm = (name, *((tuple(x.shape), x.stride(), x.dtype) for x in inputs))
        if warm not in now.seen:
            answer = function(*inputs)
            if not any(answer is x for x in inputs):  # else there is nothing to capture
                now.seen.add(warm)
            return answer
        bound = [x.data_ptr() in now.places for x in inputs]
        key = (warm, *(x.data_ptr() for x, here in zip(inputs, bound, strict=True) if here))
        if key not in now.graphs:
            now.graphs[key] = self._capture(function, inputs, bound, pool)
        graph = now.graphs[key]
        return function(*inputs) if graph is None else graph(inputs)

    def _capture(
        self,
        function: Callable[..., Tensor],
        inputs: Sequence[Tensor],
        bound: Sequence[bool],
        pool: str,
    ) -> Graph | None:
        now, stream = self._now, torch.cuda.current_stream()
        handle = torch.cuda.graph_pool_handle()
        if pool:
            handle = now.pools.setdefault(pool, handle)
        try:
            graph = Graph(function, inputs, bound, self._stream, handle)
        except Exception as error:
            # Whatever cannot be captured can still be run, but where this thread was before:
            # a capture that fails at its end leaves it on the stream of captures.
            torch.cuda.set_stream(stream)
            # Before PyTorch 2.13 it also leaves the allocator in the pool of that capture.
            with suppress(Exception):
                torch._C._cuda_endAllocateToPool(self._index, handle)
            now.pools.pop(pool, None)
            self.failed += 1
            logger.warning("A part of the network runs without a CUDA graph: %s", error)
            return None
        self.captured += 1
        now.places.add(graph.output.data_ptr())
        return graph


#: Priorities of streams, as PyTorch has them.
FRAMES, SLOW_TRACK = -1, 0


class TrackResources:
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
        if self._uploads is None or self._uploads[0] != size:
            self._uploads = size, Uploads(size)
        return self._uploads[1]


# They outlive an engine: those of a node are warm from its first frame on, and engines of several
# cameras may share a network. Nothing in them refers to the network, so they end with it.
_resources = weakref.WeakKeyDictionary[Segmenter, dict[int, TrackResources]]()


def graphs_of(segmenter: Segmenter) -> list[Graphs]:
    """Those of both tracks, for their counts."""
    return [own.graphs for own in _resources.get(segmenter, {}).values()]


class CudaRunner(Runner):
    """The runner of one track; the slow track's comes ``after`` that of its frames."""

    can_run_beside = False  # a frame's work is in order on its stream

    def __init__(
        self, segmenter: Segmenter, device: torch.device, after: CudaRunner | None = None
    ) -> None:
        super().__init__(segmenter)
        self._device, self._after = device, after
        resources, priority = _resources.setdefault(segmenter, {}), SLOW_TRACK if after else FRAMES
        if priority not in resources:
            resources[priority] = TrackResources(device, priority, segmenter.statistics)
        self._own = resources[priority]
        self._dtype = next(segmenter.parameters()).dtype

    @contextmanager
    def frame_context(self) -> Iterator[None]:
        own = self._own
        with own.lock:
            own.stream.wait_stream(torch.cuda.current_stream(self._device))
            self.after_frames()
            try:
                with torch.cuda.stream(own.stream):
                    yield
            finally:
                self.synchronize()

    def run(self, name: Hashable, function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        return self._own.graphs.run(name, function, inputs)

    def clone(self, tensor: Tensor) -> Tensor:
        return tensor.clone() if self._own.graphs.writes(tensor) else tensor

    def synchronize(self) -> None:
        """Wait for this track's stream; the slow track's thread sleeps meanwhile."""
        done = torch.cuda.Event(blocking=self._after is not None)
        done.record(self._own.stream)
        done.synchronize()

    def after_frames(self) -> None:
        """Let the GPU wait for them; this thread does not."""
        if self._after is not None:
            self._own.stream.wait_stream(self._after._own.stream)

    def stopwatch(self, clock: Clock) -> Stopwatch:
        """Stages end when the GPU gets there; nothing waits for it."""
        return Stopwatch(clock, _mark, _ms_between)

    def image(self, image: np.ndarray, geometry: Geometry) -> tuple[Tensor, np.ndarray | None]:
        """One asynchronous copy of bytes; the rest is done on the GPU, but for the luma."""
        self._own.graphs.use(geometry.padded)
        luma: np.ndarray | None = None

        def fill(padded: np.ndarray) -> None:
            nonlocal luma
            preprocess.fill(image, geometry, padded)
            luma = self._luma(padded)

        pixels = self._own.upload(geometry.padded).send(fill, self._device)
        return self.run("image", self._normalised, pixels), luma

    def mask(self, logits: Tensor, geometry: Geometry) -> np.ndarray:
        """One asynchronous copy of bytes, and the only wait of a frame."""
        name = "mask", geometry, geometry.mask  # which geometries are equal without
        ids = self.run(name, partial(postprocess.ids_of, geometry=geometry), logits)
        # PyTorch caches pinned memory and hands it out again when the caller drops the mask.
        host = torch.empty(ids.shape, dtype=ids.dtype, pin_memory=True)
        host.copy_(ids, non_blocking=True)
        self.synchronize()
        mask: np.ndarray = host.numpy()
        return mask

    def lower(self, image: Tensor, pause: Callable[[], None] = lambda: None) -> Tensor:
        return self.run("lower", self._net.lower, image)

    def higher(self, source: Tensor, pause: Callable[[], None] = lambda: None) -> Tensor:
        numbers = itertools.count()

        def step(function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
            name = f"higher {next(numbers)}"
            return self._own.graphs.run(name, function, inputs, pool="higher")

        def one_at_a_time() -> None:
            self.synchronize()
            pause()

        if self._after is None:
            return self.clone(self._net.higher(source, pause, step))
        self._own.graphs.use(tuple(source.shape[2:]))
        return self.clone(self._net.higher(source, one_at_a_time, step))

    def _normalised(self, pixels: Tensor) -> Tensor:
        image = pixels.permute(2, 0, 1).unsqueeze(0) / 255  # NHWC in memory
        return ((image - self._own.mean) / self._own.std).to(self._dtype)


class Uploads:
    """Two pinned buffers (H, W, 3) of bytes, filled and sent alternately."""

    def __init__(self, size: tuple[int, int]) -> None:
        self._buffers = itertools.cycle(
            [
                (torch.empty(*size, 3, dtype=torch.uint8, pin_memory=True), torch.cuda.Event())
                for _ in range(2)
            ]
        )

    def send(self, fill: Callable[[np.ndarray], None], device: torch.device) -> Tensor:
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
