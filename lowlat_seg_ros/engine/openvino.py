"""The fast track's parts as programs of OpenVINO, see :mod:`~lowlat_seg_ros.network.programs`."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from lowlat_seg_ros.config import ConfigError
from lowlat_seg_ros.engine.cpu_threads import lower_priority, run_in_temporary_thread
from lowlat_seg_ros.engine.runner import Runner
from lowlat_seg_ros.network import programs
from lowlat_seg_ros.network.layers import LAYOUTS
from lowlat_seg_ros.network.quantization import QuantizedConv2d
from lowlat_seg_ros.network.segmenter import Segmenter

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Part:
    """A part ``of`` a network that becomes a program; ``planes`` as in ``compile_program``."""

    of: Callable[[Any], Callable[..., Tensor]]
    planes: bool = False


#: By their names in :class:`.runner.Runner`. Eq. (1) and the warp stay what they are, kernels that
#: numba compiles; what is not made of convolutions gains nothing.
PARTS: dict[Hashable, Part] = {
    "lower": Part(lambda net: net.lower),
    "kernels": Part(lambda net: net.predictor),
    "fuse": Part(lambda net: net.fuse),
    "classify_low": Part(lambda net: net.classify_low, planes=True),
}

#: A network that is compared with the engine, from image to logits.
WHOLE = Part(lambda net: net, planes=True)

#: Of a program: its part, and the sizes of its inputs.
Key = tuple[Hashable, tuple[torch.Size, ...]]


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
        # Each runner has its own requests, as each has its own thread.
        self._requests: dict[Hashable, tuple[tuple[torch.Size, ...], Any]] = {}
        self._written: dict[Hashable, int] = {}  # addresses that a part's next run overwrites

    def lower(self, image: Tensor, pause: Callable[[], None] = lambda: None) -> Tensor:
        low = self.run("lower", self._net.lower, image)
        pause()
        return low

    def remember(self, reduced: Tensor) -> Tensor:
        return super().remember(reduced).float()  # once, instead of for every frame that reads it

    def run(self, name: Hashable, function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        network: nn.Module = self._net
        part = PARTS.get(name)
        if part is None and isinstance(function, nn.Module) and in_8_bits(function):
            network, part = function, WHOLE
        request = None if part is None else self._request(name, network, part, inputs)
        if part is None or request is None:
            return function(*inputs)
        from openvino import Tensor as Values

        # OpenVINO reads these where they are, and does not keep them alive.
        arrays = [programs.in_memory(x).numpy() for x in inputs]
        for index, values in enumerate(arrays):
            request.set_input_tensor(index, Values(values, shared_memory=True))
        request.infer()
        out = torch.from_numpy(request.get_output_tensor(0).data)
        self._written[name] = out.data_ptr()
        return out if part.planes else out.permute(0, 3, 1, 2)

    def clone(self, tensor: Tensor) -> Tensor:
        return tensor.clone() if tensor.data_ptr() in self._written.values() else tensor

    def _request(
        self, name: Hashable, network: nn.Module, part: Part, inputs: tuple[Tensor, ...]
    ) -> Any:
        """What runs ``part`` of ``network`` on ``inputs``; None where PyTorch must.

        Raises ``ConfigError`` there unless the runner falls back.
        """
        shapes = tuple(x.shape for x in inputs)
        known, request = self._requests.get(name, (None, None))
        if known != shapes:
            program = self._program((name, shapes), network, part, inputs)
            request = None
            if not isinstance(program, Exception):
                request = program.create_infer_request()
            elif not self._falls_back:
                raise ConfigError(
                    f"runtime is openvino, but OpenVINO does not run {name}; set runtime to auto "
                    f"or pytorch: {program}"
                ) from program
            self._requests[name] = shapes, request
        return request

    def _program(self, key: Key, network: nn.Module, part: Part, inputs: tuple[Tensor, ...]) -> Any:
        """The program, or the exception that compiling it raised."""
        own = _PROGRAMS.setdefault(network, Programs())

        def get() -> Any:
            lower_priority()  # compiling takes longer than a frame may have priority
            own.fingerprint = own.fingerprint or programs.fingerprint(network)
            of = "" if part is WHOLE else key[0]
            return programs.cached(
                programs.cache_file(f"{own.fingerprint} {of} {key[1]}"),
                lambda: programs.compile_program(
                    part.of(programs.traceable(network)), *inputs, planes=part.planes
                ),
            )

        if key not in own.compiled:
            try:
                own.compiled[key] = run_in_temporary_thread(get)
            except Exception as error:
                own.compiled[key] = error
                logger.warning(
                    "OpenVINO does not run %s, so PyTorch does, and masks are slower; runtime "
                    "pytorch ends this warning: %s",
                    key[0],
                    error,
                )
            while len(own.compiled) > LAYOUTS * len(PARTS):
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
