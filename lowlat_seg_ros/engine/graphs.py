"""CUDA graphs of the network's parts: captured once for each size, then launched as a whole.

A part runs as it is the first time, which warms up its libraries; the second time it is captured,
unless it only passes its input on.
"""

from __future__ import annotations

import functools
import logging
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

#: Sizes of the network's input whose graphs are kept: those that shedding load goes through, and
#: one more.
SIZES = 4

# One at a time in the process: a capture begins with waiting for the whole device, which another
# one, in the thread of another engine or of the slow track, would not survive.
_capturing = threading.Lock()


@functools.cache
def _stream(device: torch.device, priority: int) -> torch.cuda.Stream:
    """Where graphs are captured; kernels in a graph keep its priority.

    It is used for nothing else: what waits for a stream that captures would become part of the
    graph. PyTorch has 32 streams of a priority and hands them out in turns, so there is only one.
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
        """Launch it on the current stream."""
        for index, place in self._places.items():
            x, before = inputs[index], self._copied.get(index)
            if before is None or before() is not x:
                place.copy_(x)
                self._copied[index] = weakref.ref(x)
                # Another side may have made it, and drop it while this copy is under way.
                x.record_stream(torch.cuda.current_stream())
        self._graph.replay()
        return self.output


class GraphsOfSize:
    """All graphs of one side at one size."""

    def __init__(self) -> None:
        self.graphs: dict[Hashable, Graph | None] = {}  # None where capturing failed
        self.seen: set[Hashable] = set()
        self.places: set[int] = set()  # addresses of the outputs
        self.pools: dict[str, Any] = {}


class Graphs:
    """The graphs of one side, frames or slow track, of one network; used by one thread at a time.

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
        """Take up the graphs of ``size``, and let go those of the size used longest ago."""
        self._now = self._sizes.setdefault(size, GraphsOfSize())
        self._sizes.move_to_end(size)
        while len(self._sizes) > SIZES:
            self._sizes.popitem(last=False)

    def writes(self, tensor: Tensor) -> bool:
        """Whether the next run of a graph overwrites ``tensor``."""
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
