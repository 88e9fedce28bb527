"""Sl compiled by OpenVINO, which runs a network in 8 bits as one program.

PyTorch prepares each of Sl's sixty small convolutions again in every frame, which takes about as
long as their arithmetic; docs/inference.md has the figures. Here Sl's own code runs once on symbols
instead of tensors, and what it does to them becomes the program. Weights and ranges of activations
are those of :mod:`~lowlat_seg_ros.network.quantization`.
"""

from __future__ import annotations

import copy
import importlib.util
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lowlat_seg_ros.config import ConfigError
from lowlat_seg_ros.engine.runner import Runner
from lowlat_seg_ros.network.layers import LAYOUTS, PackedConv2d
from lowlat_seg_ros.network.quantization import Grid, QuantizedConv2d
from lowlat_seg_ros.network.segmenter import Segmenter

#: One thread, the caller's, so that a frame has its own priority and nothing spins beside it.
SETTINGS = {
    "NUM_STREAMS": 1,
    "INFERENCE_NUM_THREADS": 1,
    "ENABLE_CPU_PINNING": False,
    "INFERENCE_PRECISION_HINT": "f32",  # of what is not in 8 bits
}

#: How the network resizes: mode and align_corners.
BILINEAR = "bilinear", None


class OpenVinoRunner(Runner):
    """Runs Sl as a program, compiled for each size of image when it first comes.

    Raises ``ConfigError`` where OpenVINO is not installed, or the network not in 8 bits.
    """

    def __init__(self, segmenter: Segmenter) -> None:
        super().__init__(segmenter)
        if importlib.util.find_spec("openvino") is None:
            raise refusal("it is not installed", "pip install openvino, or ")
        if segmenter.encoder is None:
            raise refusal("Sl of this network is a part of Sh")
        if segmenter.input_dtype != torch.uint8:
            raise refusal("the network is not in 8 bits", "set precision to int8, or ")
        self._programs = _PROGRAMS.setdefault(segmenter, OrderedDict())
        self._request: tuple[torch.Size, Any] | None = None
        self._written = 0  # the address of F_l, which the next frame's overwrites

    def lower(self, image: Tensor, pause: Callable[[], None] = lambda: None) -> Tensor:
        from openvino import Tensor as Pixels

        if self._request is None or self._request[0] != image.shape:
            # Each runner has its own, as each has its own thread.
            self._request = image.shape, self._program(image.shape).create_infer_request()
        request = self._request[1]
        pixels = image.permute(0, 2, 3, 1).contiguous().numpy()
        request.set_input_tensor(Pixels(pixels, shared_memory=True))
        request.infer()
        low = torch.from_numpy(request.get_output_tensor(0).data).permute(0, 3, 1, 2)
        self._written = low.data_ptr()
        return low

    def clone(self, tensor: Tensor) -> Tensor:
        return tensor.clone() if tensor.data_ptr() == self._written else tensor

    def _program(self, shape: torch.Size) -> Any:
        net, programs = self._net, self._programs
        program = programs.get(shape)
        if program is None:
            assert net.encoder is not None
            program = compile_for(nn.Sequential(net.encoder, net.shared), shape)
            programs[shape] = program
            while len(programs) > LAYOUTS:
                programs.popitem(last=False)
        return program


def refusal(why: str, fix: str = "") -> ConfigError:
    return ConfigError(f"runtime is openvino, but {why}; {fix}set runtime to pytorch")


#: The programs of each network, by the shape of its images; engines of several cameras share them.
_PROGRAMS: WeakKeyDictionary[Segmenter, OrderedDict[torch.Size, Any]] = WeakKeyDictionary()


def compile_for(module: nn.Module, shape: torch.Size) -> Any:
    """``module``, in 8 bits, as a program: uint8 (N, H, W, 3) -> float32 (N, h, w, C).

    ``shape``: that of the images, (N, 3, H, W). In memory they are channels_last, so nothing is
    rearranged on the way in and out.
    """
    import openvino

    ops, (count, channels, height, width) = _operators(), shape
    pixels = ops.parameter([count, height, width, channels], np.uint8)
    planes = ops.transpose(ops.convert(pixels, "f32"), np.array([0, 3, 1, 2]))
    first = next(m for m in module.modules() if isinstance(m, QuantizedConv2d))
    scale, zero = map(np.float32, first.input)
    image = Symbol(ops.multiply(ops.subtract(planes, zero), scale))
    with torch.inference_mode():
        answer = _symbolic(module)(image)
    model = openvino.Model([ops.transpose(answer.node, np.array([0, 2, 3, 1]))], [pixels])
    return openvino.Core().compile_model(model, "CPU", SETTINGS)


def _operators() -> Any:
    from openvino import opset13

    return opset13


def _symbolic(module: nn.Module) -> nn.Module:
    """A copy of ``module`` whose convolutions take symbols; they share the weights."""
    result = copy.deepcopy(module)
    for parent in list(result.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, PackedConv2d | QuantizedConv2d):
                setattr(parent, name, SymbolicConv2d(child))
    return result


class Symbol:
    """A tensor (N, C, H, W) of a program that is being written; has what Sl does to tensors.

    ``grid``: that its values are on already, if they are.
    """

    def __init__(self, node: Any, grid: Grid | None = None) -> None:
        self.node, self.grid = node, grid

    @property
    def shape(self) -> torch.Size:
        return torch.Size(self.node.output(0).get_shape())

    def __add__(self, other: Symbol) -> Symbol:
        return Symbol(_operators().add(self.node, other.node))

    def relu(self) -> Symbol:
        return Symbol(_operators().relu(self.node))

    def mean(self, dims: tuple[int, ...], keepdim: bool) -> Symbol:
        return Symbol(_operators().reduce_mean(self.node, np.array(dims), keepdim))

    def to(self, dtype: torch.dtype) -> Symbol:
        return self  # what is not in 8 bits is float32

    def on(self, grid: Grid) -> Symbol:
        """Rounded to the 256 values of ``grid``."""
        low, high = (np.float32(grid.scale * (byte - grid.zero)) for byte in (0, 255))
        return Symbol(_operators().fake_quantize(self.node, low, high, low, high, 256), grid)

    def resized(self, size: Sequence[int]) -> Symbol:
        """Bilinear, as ``torch.nn.functional.interpolate`` does it."""
        sides, axes = np.array(size, np.int32), np.array([2, 3], np.int32)
        ops = _operators()
        return Symbol(ops.interpolate(self.node, sides, "linear_onnx", "sizes", axes=axes))

    @classmethod
    def __torch_function__(
        cls, function: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Symbol:
        if function is torch.add and not kwargs:
            left, right = args
            return left + right
        if function is F.interpolate and (kwargs["mode"], kwargs["align_corners"]) == BILINEAR:
            return cls.resized(args[0], kwargs["size"])
        raise refusal(f"Sl of this network calls {function.__name__}, which has no counterpart")

    def __getattr__(self, name: str) -> Any:
        raise refusal(f"Sl of this network calls {name}, which has no counterpart")


class SymbolicConv2d(nn.Module):
    """Writes what ``conv`` computes into the program."""

    def __init__(self, conv: PackedConv2d | QuantizedConv2d) -> None:
        super().__init__()
        self._conv = [conv]  # in a list, so that it is no part of this module

    def forward(self, x: Symbol, shortcut: Symbol | None = None) -> Symbol:
        ops, (conv,) = _operators(), self._conv
        padding, stride, dilation, groups = conv.geometry
        output = None
        if isinstance(conv, QuantizedConv2d):
            output = conv.output
            x = x.on(conv.input) if x.grid is None else x
            bytes_ = conv.kernel.contiguous().numpy()
            kernel = ops.multiply(ops.convert(bytes_, "f32"), _per_channel(conv.scales))
        else:
            kernel = ops.constant(conv.weight.float().contiguous().numpy())
        if groups == 1:
            y = ops.convolution(x.node, kernel, stride, padding, padding, dilation)
        else:
            outputs, *rest = kernel.output(0).get_shape()
            shape = np.array([groups, outputs // groups, *rest])
            kernel = ops.reshape(kernel, shape, False)
            y = ops.group_convolution(x.node, kernel, stride, padding, padding, dilation)
        if conv.bias is not None:
            y = ops.add(y, _per_channel(conv.bias, 1))
        if shortcut is not None:
            y = ops.add(y, shortcut.node)
        if conv.activation != "none":
            y = ops.relu(y) if conv.activation == "relu" else ops.clamp(y, 0.0, 6.0)
        return Symbol(y) if output is None else Symbol(y).on(output)


def _per_channel(values: Tensor, axis: int = 0) -> np.ndarray:
    """Values (C,), to be broadcast along the others of four axes."""
    shape = [1, 1, 1, 1]
    shape[axis] = -1
    return values.float().view(shape).numpy()
