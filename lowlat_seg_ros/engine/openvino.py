"""The fast track's parts as programs of OpenVINO, see :mod:`~lowlat_seg_ros.network.programs`."""

from __future__ import annotations

import itertools
import logging
import os
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from lowlat_seg_ros.config import ConfigError
from lowlat_seg_ros.engine.cpu_threads import lower_priority, run_in_temporary_thread
from lowlat_seg_ros.engine.own_core import helpers_begin
from lowlat_seg_ros.engine.runner import Runner
from lowlat_seg_ros.network import programs
from lowlat_seg_ros.network.layers import LAYOUTS
from lowlat_seg_ros.network.quantization import QuantizedConv2d
from lowlat_seg_ros.network.segmenter import Segmenter
from lowlat_seg_ros.network.trunk import TrunkEncoder

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Part:
    """A part ``of`` a network that becomes a program; ``planes`` as in ``compile_program``.

    ``shared``: whether two cores may share it, for which there is a program of its own.
    """

    of: Callable[[Any], Callable[..., Any]]
    planes: bool = False
    shared: bool = True


#: By their names in :class:`.runner.Runner`. Eq. (1) and the warp stay what they are, kernels that
#: numba compiles; what is not made of convolutions gains nothing.
PARTS: dict[Hashable, Part] = {
    "lower": Part(lambda net: net.lower, shared=False),
    "begin_lower": Part(lambda net: net.begin_lower, shared=False),
    "end_lower": Part(lambda net: net.end_lower),
    "kernels": Part(lambda net: net.predictor),
    "fuse": Part(lambda net: net.fuse),
    "classify_low": Part(lambda net: net.classify_low, planes=True, shared=False),
}

#: A network that is compared with the engine, from image to logits.
WHOLE = Part(lambda net: net, planes=True)

#: Threads of a part that two cores share.
HELPED = 2

#: Of a program: its part, its threads, and the sizes of its inputs.
Key = tuple[Hashable, int, tuple[torch.Size, ...]]


@dataclass(eq=False)
class Programs:
    """Those of one network, or why there is none; engines of several cameras share them."""

    compiled: OrderedDict[Key, Any] = field(default_factory=OrderedDict)
    fingerprint: str = ""  # of the network, for the folder of compiled programs


_PROGRAMS: WeakKeyDictionary[nn.Module, Programs] = WeakKeyDictionary()


class OpenVinoRunner(Runner):
    """Runs the fast track's parts as programs, compiled for each size of image when it first comes.

    Raises ``ConfigError`` where that is impossible, see :func:`why_not`. With ``falls_back`` a part
    that OpenVINO does not compile is run by PyTorch, and a warning is logged.
    """

    def __init__(self, segmenter: Segmenter, *, falls_back: bool = False) -> None:
        super().__init__(segmenter)
        if why := why_not(segmenter):
            raise ConfigError(f"runtime is openvino, but {why}; or set runtime to pytorch")
        self._falls_back = falls_back
        self._cores = frozenset(os.sched_getaffinity(0))
        # Each runner has its own requests, as each has its own thread.
        self._requests: dict[tuple[Hashable, int], tuple[tuple[torch.Size, ...], Any]] = {}
        # Addresses that a part's next run overwrites.
        self._written: dict[tuple[Hashable, int], list[int]] = {}

    def lower(self, image: Tensor, pause: Callable[[], None] = lambda: None) -> Tensor:
        """Sl, in two halves: during the first one the other core is busy with optical flow."""
        net = self._net
        begun = None
        if isinstance(net.encoder, TrunkEncoder):
            begun = self._run_part("begin_lower", PARTS["begin_lower"], net, image)
        if begun is None:
            low = self.run("lower", net.lower, image)
        else:
            pause()
            low = self.run("end_lower", net.end_lower, *begun)
        pause()
        return low

    def remember(self, reduced: Tensor) -> Tensor:
        return super().remember(reduced).float()  # once, instead of for every frame that reads it

    def run(self, name: Hashable, function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        network: nn.Module = self._net
        part = PARTS.get(name)
        if part is None and isinstance(function, nn.Module) and in_8_bits(function):
            network, part = function, WHOLE
        found = None
        if part is not None:
            found = self._run_part(name, part, network, *inputs)
        return function(*inputs) if found is None else found[0]

    def clone(self, tensor: Tensor) -> Tensor:
        written = itertools.chain.from_iterable(self._written.values())
        return tensor.clone() if tensor.data_ptr() in written else tensor

    def _run_part(
        self, name: Hashable, part: Part, network: nn.Module, *inputs: Tensor
    ) -> list[Tensor] | None:
        """All that ``part`` of ``network`` returns; None where PyTorch must run it."""
        threads = HELPED if self.shares and part.shared else 1
        request = self._request(name, part, network, inputs, threads)
        if request is None:
            return None
        from openvino import Tensor as Values

        # OpenVINO reads these where they are, and does not keep them alive.
        arrays = [programs.in_memory(x).numpy() for x in inputs]
        for index, values in enumerate(arrays):
            request.set_input_tensor(index, Values(values, shared_memory=True))
        request.infer()
        found = [torch.from_numpy(values.data) for values in request.output_tensors]
        self._written[name, threads] = [values.data_ptr() for values in found]
        return found if part.planes else [values.permute(0, 3, 1, 2) for values in found]

    def _request(
        self,
        name: Hashable,
        part: Part,
        network: nn.Module,
        inputs: tuple[Tensor, ...],
        threads: int,
    ) -> Any:
        """What runs ``part`` of ``network`` on ``inputs``; None where PyTorch must.

        Raises ``ConfigError`` there unless the runner falls back.
        """
        shapes = tuple(x.shape for x in inputs)
        known, request = self._requests.get((name, threads), (None, None))
        if known != shapes:
            # All that frames may need is compiled with the first: later one would wait for it.
            program = self._program((name, 1, shapes), part, network, inputs)
            if part.shared and len(self._cores) > 1 and not isinstance(program, Exception):
                shared = self._program((name, HELPED, shapes), part, network, inputs)
                program = program if threads == 1 else shared
            request = None
            if not isinstance(program, Exception):
                request = program.create_infer_request()
            elif not self._falls_back:
                raise ConfigError(
                    f"runtime is openvino, but OpenVINO does not run {name}; set runtime to auto "
                    f"or pytorch: {program}"
                ) from program
            self._requests[name, threads] = shapes, request
        return request

    def _program(self, key: Key, part: Part, network: nn.Module, inputs: tuple[Tensor, ...]) -> Any:
        """The program, or the exception that compiling it raised."""
        own, (name, threads, shapes) = _PROGRAMS.setdefault(network, Programs()), key

        def get() -> Any:
            lower_priority()  # compiling takes longer than a frame may have priority
            own.fingerprint = own.fingerprint or programs.fingerprint(network)
            of = "" if part is WHOLE else name
            with helpers_begin(self._cores):
                program = programs.cached(
                    programs.cache_file(f"{own.fingerprint} {of} {shapes} {threads}"),
                    lambda: programs.compile_program(
                        part.of(programs.traceable(network)),
                        *inputs,
                        planes=part.planes,
                        threads=threads,
                    ),
                    threads,
                )
                if threads > 1:
                    program.create_infer_request().infer()  # else they would begin in a frame
            return program

        if key not in own.compiled:
            try:
                own.compiled[key] = run_in_temporary_thread(get)
            except Exception as error:
                own.compiled[key] = error
                logger.warning(
                    "OpenVINO does not run %s, so PyTorch does, and masks are slower; runtime "
                    "pytorch ends this warning: %s",
                    name,
                    error,
                )
            while len(own.compiled) > LAYOUTS * len(PARTS) * HELPED:
                own.compiled.popitem(last=False)
        return own.compiled[key]


def in_8_bits(network: nn.Module) -> bool:
    return any(isinstance(module, QuantizedConv2d) for module in network.modules())


def why_not(segmenter: Segmenter) -> str:
    """Why the fast track of ``segmenter`` cannot run here, and what to do; empty where it can."""
    if not programs.installed():
        return "it is not installed; pip install openvino"
    if segmenter.input_dtype != torch.uint8:
        return "the network is not in 8 bits; set precision to int8"
    if segmenter.encoder is None:
        return "Sl of this network is a part of Sh"
    return ""
