"""Parts of a network compiled by OpenVINO, which runs each in 8 bits as one program.

PyTorch prepares each of the hundred small convolutions again in every frame, which takes longer
than their arithmetic; docs/inference.md has the figures. Here a part's own code runs once under
``torch.jit.trace``, with convolutions that round as those in 8 bits do, and OpenVINO compiles what
was traced. Weights and ranges of activations are those of :mod:`.quantization`.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import importlib.util
import logging
import os
import tempfile
import warnings
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lowlat_seg_ros.network.layers import PackedConv2d, plain
from lowlat_seg_ros.network.quantization import Grid, Quantized, QuantizedConv2d

Network = TypeVar("Network", bound=nn.Module)

logger = logging.getLogger(__name__)

#: One thread, the caller's, so that a frame has its own priority and nothing spins beside it.
SETTINGS = {
    "NUM_STREAMS": 1,
    "INFERENCE_NUM_THREADS": 1,
    "ENABLE_CPU_PINNING": False,
    "INFERENCE_PRECISION_HINT": "f32",  # of what is not in 8 bits
}

#: Bytes of the hash before what a file holds.
DIGEST = hashlib.sha256().digest_size

#: Newest files that are kept: those of other weights, sizes and versions are left behind.
KEPT = 100


def installed() -> bool:
    spec = importlib.util.find_spec("openvino")
    return spec is not None and spec.origin is not None  # a mere folder of that name has none


@functools.cache
def core() -> Any:
    """OpenVINO itself, once per process: each time that it begins, it keeps some megabytes."""
    import openvino

    return openvino.Core()


def why_no_openvino() -> str:
    """What its absence costs in 8 bits, and how to end it; empty where OpenVINO is installed."""
    if installed():
        return ""
    return (
        "openvino is not installed, so frames take up to twice as long: pip install openvino (the "
        "package's extra 'fast')"
    )


def in_memory(x: Tensor) -> Tensor:
    """``x`` (N, C, H, W) as programs take it: (N, H, W, C), contiguous, float32 or bytes."""
    x = x if x.dtype == torch.uint8 else x.float()
    return x.permute(0, 2, 3, 1).contiguous()


def settings(threads: int) -> dict[str, Any]:
    """Of a program that runs on so many ``threads``, the caller's and others."""
    return {**SETTINGS, "INFERENCE_NUM_THREADS": threads}


def compile_program(
    function: Callable[..., Any], *examples: Tensor, planes: bool = False, threads: int = 1
) -> Any:
    """``function`` as a program for inputs of the shapes of ``examples``, see :func:`in_memory`.

    ``function`` is made of what :func:`traceable` returns. ``planes``: whether the result has one
    plane per class, (N, C, H, W) in memory, as the last step to a mask reads logits; else it is
    (N, H, W, C). Raises ``RuntimeError`` for what OpenVINO cannot compile.
    """
    import openvino
    from openvino._offline_transformations import apply_moc_transformations
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    with warnings.catch_warnings(), torch.inference_mode(False), torch.no_grad():
        warnings.simplefilter("ignore")  # that shapes become constants is what is wanted
        inputs = tuple(in_memory(x).clone() for x in examples)  # made outside inference mode
        traced = torch.jit.trace(Traced(function, planes), inputs, check_trace=False, strict=False)
        decoder = TorchScriptPythonDecoder(traced)  # must live until the model is converted
        frontend = FrontEndManager().load_by_framework("pytorch")
        model = frontend.convert(frontend.load(decoder))
    for node, x in zip(model.inputs, inputs, strict=True):
        node.get_node().set_partial_shape(openvino.PartialShape(list(x.shape)))
        kind = openvino.Type.u8 if x.dtype == torch.uint8 else openvino.Type.f32
        node.get_node().set_element_type(kind)
    model.validate_nodes_and_infer_types()
    # Otherwise the ranges of activations are no constants yet, and nothing would run in 8 bits.
    apply_moc_transformations(model, cf=True, smart_reshape=False)
    return core().compile_model(model, "CPU", settings(threads))


class Traced(nn.Module):
    """What is traced: ``function``, of tensors as :func:`in_memory` has them."""

    def __init__(self, function: Callable[..., Any], planes: bool) -> None:
        super().__init__()
        self._function, self._planes = [function], planes  # a list hides the network's layers

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        found = self._function[0](*(x.permute(0, 3, 1, 2) for x in inputs))
        results = map(plain, found if isinstance(found, tuple) else (found,))
        return tuple(out if self._planes else out.permute(0, 2, 3, 1) for out in results)


def traceable(network: Network) -> Network:
    """A copy whose convolutions are written in operators that OpenVINO knows; it shares theirs."""
    result = copy.deepcopy(network)
    for parent in list(result.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, PackedConv2d | QuantizedConv2d):
                setattr(parent, name, TraceableConv2d(child))
    return result


class Rounded(Quantized):
    """Numbers, in float32, that are on a grid already."""

    def to(self, dtype: torch.dtype) -> Tensor:
        return self.values

    def mean(self, dims: tuple[int, int], keepdim: bool) -> Tensor:
        return self.values.mean(dims, keepdim=keepdim)

    @classmethod
    def on(cls, grid: Grid, x: Tensor) -> Rounded:
        return cls(torch.fake_quantize_per_tensor_affine(x, *grid, 0, 255), grid)


class TraceableConv2d(nn.Module):
    """What ``conv`` computes, in float32."""

    def __init__(self, conv: PackedConv2d | QuantizedConv2d) -> None:
        super().__init__()
        self._conv = [conv]  # a list, so that it is no part of this module

    def forward(
        self, x: Tensor | Quantized, shortcut: Tensor | Quantized | None = None
    ) -> Tensor | Quantized:
        (conv,) = self._conv
        output = None
        if isinstance(conv, QuantizedConv2d):
            output, per_channel = conv.output, conv.scales.view(-1, 1, 1, 1)
            if isinstance(x, Tensor) and x.dtype == torch.uint8:
                return self._of_image(conv, x)
            weight = conv.kernel.contiguous().float() * per_channel
            if not isinstance(x, Quantized):
                x = Rounded.on(conv.input, x)
            x = x.to(torch.float32)
        else:
            assert isinstance(x, Tensor)
            weight = conv.weight.float().contiguous()
        bias = None if conv.bias is None else conv.bias.float()
        padding, stride, dilation, groups = conv.geometry
        y = F.conv2d(x, weight, bias, stride, padding, dilation, groups)  # type: ignore[arg-type]
        if shortcut is not None:
            y = y + (shortcut if isinstance(shortcut, Tensor) else shortcut.to(torch.float32))
        return self._after(conv, y, output)

    def _of_image(self, conv: QuantizedConv2d, image: Tensor) -> Tensor | Quantized:
        """What ``conv`` computes of an image, uint8 (N, 3, H, W), whose bytes are on its grid.

        Pixels side by side are neighbours in memory, so as many as the stride is wide are channels
        of one, at no cost: OpenVINO has a convolution of 12 channels done in half of the time of
        one of 3 with as many products.
        """
        geometry: Any = conv.geometry
        (above, left), (down, group), _, _ = geometry
        count, channels, height, width = image.shape  # multiples of 8, so of the stride
        x = (image.permute(0, 2, 3, 1).float() - float(conv.input.zero)) * conv.input.scale
        x = x.reshape(count, height, width // group, group * channels).permute(0, 3, 1, 2)
        # In NumPy, as weights of 8 bits must be a constant of what is traced. The kernel is widened
        # by zeros to whole groups of pixels.
        kernel = conv.kernel.contiguous().numpy()
        before = -left % group
        after = -(before + kernel.shape[3]) % group
        kernel = np.pad(kernel, ((0, 0), (0, 0), (0, 0), (before, after)))
        outputs, _, rows, columns = kernel.shape
        kernel = kernel.reshape(outputs, channels, rows, columns // group, group)
        kernel = kernel.transpose(0, 4, 1, 2, 3).reshape(outputs, -1, rows, columns // group)
        weight = torch.from_numpy(kernel).float() * conv.scales.view(-1, 1, 1, 1)
        first = (left + before) // group
        # Where the kernel begins within a group, there is no padding on the right.
        last = (width + 2 * left - conv.kernel.shape[3]) // group + columns // group
        last -= width // group + first
        bias = None if conv.bias is None else conv.bias.float()
        y = F.conv2d(F.pad(x, (first, int(last), above, above)), weight, bias, (down, 1))
        return self._after(conv, y, conv.output)

    @staticmethod
    def _after(
        conv: PackedConv2d | QuantizedConv2d, y: Tensor, output: Grid | None
    ) -> Tensor | Quantized:
        if conv.activation != "none":
            y = F.relu6(y) if conv.activation == "relu6" else F.relu(y)
        return y if output is None else Rounded.on(output, y)


def cache_file(key: str) -> Path:
    """The file that keeps a program, or an answer, for later starts; ``key`` tells it apart."""
    try:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:  # a user without a home
        base = Path(os.devnull)  # nothing can be kept there
    return base / "lowlat_seg_ros" / hashlib.sha256(key.encode()).hexdigest()


def kept(file: Path, make: Callable[[], bytes]) -> bytes:
    """What ``file`` holds, else what ``make`` returns, which ``file`` holds from now on.

    Where no folder can be written, each start makes it again.
    """
    content = _read(file)
    if content is None:
        _write(file, content := make())
    return content


def cached(file: Path, compile_: Callable[[], Any], threads: int = 1) -> Any:
    """The program that ``file`` holds, else that of ``compile_``, which ``file`` holds from now on.

    Compiling takes a second or two, which a node that starts again after a crash does not have.
    """
    content = _read(file)
    if content is not None:
        try:
            return core().import_model(content, "CPU", settings(threads))
        except Exception as error:
            logger.warning("OpenVINO does not read %s, which is made again: %s", file, error)
    program = compile_()
    try:
        _write(file, program.export_model().getvalue())
    except Exception as error:
        logger.warning("The next start will compile again: %s", error)
    return program


def _read(file: Path) -> bytes | None:
    """What :func:`_write` wrote; None if there is nothing, or not all of it."""
    try:
        stored = file.read_bytes()
    except OSError:
        return None
    digest, content = stored[:DIGEST], stored[DIGEST:]
    return content if hashlib.sha256(content).digest() == digest else None


def _write(file: Path, content: bytes) -> None:
    folder = file.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, delete=False) as new:
            part = Path(new.name)
            try:
                new.write(hashlib.sha256(content).digest() + content)
                new.close()
                part.replace(file)  # whole or not at all, also beside another process
            except OSError:  # a full disk
                part.unlink()
                raise
        for old in sorted(folder.iterdir(), key=lambda path: path.stat().st_mtime)[:-KEPT]:
            old.unlink()
    except OSError as error:
        logger.info("The next start will compile again: %s", error)


def fingerprint(network: nn.Module) -> str:
    """A hash of what a program depends on: weights, ranges, code, libraries and processor."""
    told = hashlib.sha256(_code_and_processor())
    told.update(str(getattr(network, "config", "")).encode())
    for name, module in network.named_modules():
        tensors = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
        if isinstance(module, PackedConv2d | QuantizedConv2d):
            told.update(f"{name} {module.activation} {module.geometry}".encode())
            tensors += [] if module.bias is None else [module.bias]
        if isinstance(module, PackedConv2d):
            tensors.append(module.weight)
        elif isinstance(module, QuantizedConv2d):
            told.update(f"{module.input} {module.output}".encode())
            tensors += [module.kernel, module.scales]
        for tensor in tensors:
            told.update(tensor.detach().float().contiguous().numpy().tobytes())
    return told.hexdigest()


@functools.cache
def _code_and_processor() -> bytes:
    told, package = hashlib.sha256(), Path(__file__).parent.parent
    for source in sorted(package.rglob("*.py")):
        told.update(source.read_bytes())
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = ("flags", "Features", "model name", "CPU part")  # x86 and ARM
    told.update("".join(sorted({x for x in lines if x.startswith(names)})).encode())
    for library in ("torch", "openvino", "numba"):
        with suppress(PackageNotFoundError):
            told.update(f"{library} {version(library)}".encode())
    return told.digest()
