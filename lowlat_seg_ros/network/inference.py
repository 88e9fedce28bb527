"""Networks prepared for inference: the same answers at less cost, in the precision of the device.

BatchNorm, which only scales and shifts in eval mode, is folded into the convolution before it.
These convolutions may then run in bfloat16, and so may those without a bias that follow one. All
others stay in float32, as their results are read as numbers: F_h, of which propagation sums K*K
values, its kernels, and the logits. Sums of both are float32. docs/inference.md says what each step
saves, and what was tried and saves nothing.
"""

from __future__ import annotations

import copy
import functools
import itertools
import logging
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from lowlat_seg_ros.config import ConfigError, EngineConfig
from lowlat_seg_ros.network import (
    checkpoint,
    gate,
    programs,
    propagation,
    quantization,
    warping,
)
from lowlat_seg_ros.network.checkpoint import Header
from lowlat_seg_ros.network.layers import (
    PackedConv2d,
    PackedResidual,
    is_right_here,
    single_threaded,
)
from lowlat_seg_ros.network.mobilenet import FoldedConv
from lowlat_seg_ros.network.quantization import Ranges
from lowlat_seg_ros.network.segmenter import Segmenter
from lowlat_seg_ros.network.trunk import TrunkEncoder

logger = logging.getLogger(__name__)

Network = TypeVar("Network", bound=nn.Module)


@runtime_checkable
class Normed(Protocol):
    """A module that names the BatchNorm after each of its convolutions."""

    def norm_of(self) -> dict[str, str]:
        """Names of its convolutions, in order, and of the BatchNorm after each."""


@runtime_checkable
class Packable(Protocol):
    """A module that is more than its layers in a row."""

    def packed(self) -> nn.Module:
        """What replaces it on a CPU, once BatchNorm is folded."""


#: A layer: the module that holds it, its name there, the layer itself.
_Layer = tuple[nn.Module, str, nn.Module]


def resolve_device(name: str) -> torch.device:
    """``auto``, ``cpu``, ``cuda`` or ``cuda:N`` -> device; raises ConfigError if it is absent."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"device is {name!r}; choose auto, cpu, cuda or cuda:N") from error
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"device is {name!r}; choose auto, cpu, cuda or cuda:N")
    found = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= found:
        raise ConfigError(
            f"device is {name!r}, but {found} CUDA devices are here; choose cpu or auto"
        )
    return device


def precision_of(name: str, device: torch.device) -> torch.dtype:
    """One of :data:`~lowlat_seg_ros.config.PRECISIONS` -> dtype.

    bf16 by request, or for ``auto`` where the hardware multiplies it fast.
    """
    if device.type == "cuda":
        # torch.cuda.is_bf16_supported also says yes where it is emulated.
        fast = torch.cuda.get_device_capability(device) >= (8, 0)
    else:
        path = Path("/proc/cpuinfo")
        flags = path.read_text() if path.exists() else ""
        fast = "avx512_bf16" in flags or "amx_bf16" in flags
    named = name == "bf16" or (fast and name in ("auto", "int8"))
    return torch.bfloat16 if named else torch.float32


def precision_name(segmenter: Segmenter) -> str:
    names = {torch.uint8: "8 bits", torch.bfloat16: "bfloat16", torch.float32: "float32"}
    return names[segmenter.input_dtype]


def ranges_for(
    name: str, segmenter: Segmenter, header: Header, runtime: str = EngineConfig.runtime
) -> Mapping[str, Ranges]:
    """Of the convolutions that run in 8 bits at the precision ``name``; none where that is slower.

    ``segmenter`` is not prepared yet; ``runtime`` as in ``EngineConfig``. Raises ``ConfigError``
    where 8 bits are asked for and cannot be had.
    """
    device = next(segmenter.parameters()).device
    possible = header.ranges if device.type == "cpu" else {}
    if name == "int8" and not possible:
        raise ConfigError(
            f"precision is int8 on {device.type}, but 8 bits need a CPU and a checkpoint with the "
            "ranges of its activations; choose auto, or add them with 'lowlat-seg quantize'"
        )
    if name == "int8" and not quantization.works():
        raise ConfigError(
            "precision is int8, but this processor or this PyTorch has no right convolutions in 8 "
            "bits; choose auto"
        )
    used = name == "int8" or (name == "auto" and possible and pays(segmenter, header, runtime))
    return possible if used else {}


def pays(segmenter: Segmenter, header: Header, runtime: str) -> bool:
    """Whether Sl in 8 bits is right here, and clearly faster than in ``precision_of("auto")``.

    It is measured once for these weights on this processor, and kept for later starts.
    """
    if runtime != "pytorch" and programs.installed():
        try:
            return _pays(segmenter, header, with_openvino=True)
        except Exception as error:
            logger.warning("OpenVINO does not run Sl, so PyTorch does: %s", error)
    return _pays(segmenter, header, with_openvino=False)


def _pays(segmenter: Segmenter, header: Header, *, with_openvino: bool) -> bool:
    def measured() -> bytes:
        if not quantization.works():
            return b"no"
        assert segmenter.encoder is not None  # only such networks have ranges
        lower = nn.ModuleDict({"encoder": segmenter.encoder, "shared": segmenter.shared}).eval()
        ranges = {n: span for n, span in header.ranges.items() if n.partition(".")[0] in lower}
        dtype = precision_of("auto", torch.device("cpu"))
        plain = prepare(copy.deepcopy(lower), dtype)
        quick = prepare(copy.deepcopy(lower), dtype, ranges)
        image = torch.zeros(1, 3, header.trained_height or 360, 480, dtype=torch.uint8)
        image = image.contiguous(memory_format=torch.channels_last)
        layers, others = nn.Sequential(*quick.values()), nn.Sequential(*plain.values())
        run: Callable[[], object] = partial(layers, image)
        if with_openvino:
            program = programs.compile_program(programs.traceable(layers), image)
            values = [programs.in_memory(image).numpy()]
            run = partial(program.create_infer_request().infer, values)
        normalised = segmenter.normalise(image / 255).to(dtype)
        return b"yes" if quantization.beats(run, partial(others, normalised)) else b"no"

    key = f"8 bits {programs.fingerprint(segmenter)} {header.ranges} {with_openvino}"
    file = programs.cache_file(key)
    answer = programs.kept(file, measured)
    logger.info("Is Sl clearly faster in 8 bits here: %s (kept in %s)", answer.decode(), file)
    return answer == b"yes"


def load(
    path: str | Path,
    device: torch.device,
    precision: str = EngineConfig.precision,
    runtime: str = EngineConfig.runtime,
) -> tuple[Segmenter, Header]:
    """:func:`.checkpoint.load`, then :func:`prepare`; settings as in ``EngineConfig``.

    Raises ``ConfigError`` as :func:`ranges_for` does.
    """
    with single_threaded():  # many tiny steps, for which a pool waits where a core is busy
        segmenter, header = checkpoint.load(path, device)
        ranges = ranges_for(precision, segmenter, header, runtime)
        return prepare(segmenter, precision_of(precision, device), ranges), header


def prepare(
    network: Network,
    dtype: torch.dtype = torch.float32,
    ranges: Mapping[str, Ranges] = MappingProxyType({}),
) -> Network:
    """Fold ``network``, in eval mode, in place, its inner convolutions in ``dtype``; returns it.

    Those that ``ranges`` names run in 8 bits where they could be packed, which is on a CPU; the
    network then reads uint8 images.

    It can no longer be trained or saved: its weights are not those of its checkpoint, and it has no
    BatchNorm. Parts that were prepared before do not change. On a CPU convolutions are packed
    (:class:`.layers.PackedConv2d`), and a segmenter's numba kernels are compiled. Raises
    ``ValueError`` in training mode.
    """
    if network.training:
        raise ValueError("the network is in training mode; call its eval() first")
    if isinstance(network, Segmenter) and not network.prepared:
        network.input_dtype = dtype  # that of the convolutions that read images, folded below
        network.prepared = True
    for module in network.modules():
        if isinstance(module, TrunkEncoder):
            module.fold()
    for module in network.modules():
        if isinstance(module, FoldedConv):
            module.to(dtype)
        layers, after_norm = _in_order(module), False
        for (_, _, layer), following in itertools.zip_longest(layers, layers[1:]):
            after_norm |= isinstance(layer, nn.BatchNorm2d)
            if not isinstance(layer, nn.Conv2d):
                continue
            if following is not None and isinstance(following[2], nn.BatchNorm2d):
                _fold(layer, following)
                layer.to(dtype)
            elif after_norm and layer.bias is None:
                layer.to(dtype)
    if next(network.parameters()).device.type == "cpu":
        _pack(network)
        if ranges:
            quantization.quantize(network, ranges)
        if isinstance(network, Segmenter):
            propagation.compiled(network.config.kernel_size)  # or the second frame waits for it
            if network.config.fine_carry:
                answers = network.config.num_classes, network.config.classifier_upsampling
                warping.compiled(*answers)
                gate.compiled_weighing(*answers)
                gate.compiled_evidence()
            if ranges:
                network.input_dtype = torch.uint8  # its first convolutions read the image's bytes
    if dtype != torch.float32:
        for module in network.modules():
            # Layers that stay in float32 accept inputs in any precision; the hook is added once.
            if isinstance(module, nn.Conv2d | nn.Linear) and (
                _to_own_precision not in module._forward_pre_hooks.values()
            ):
                module.register_forward_pre_hook(_to_own_precision)
    # PyTorch has this overload, its type stubs do not.
    return network.requires_grad_(False).to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def _to_own_precision(module: nn.Module, inputs: tuple[Tensor]) -> Tensor:
    weight = module.weight
    assert isinstance(weight, Tensor)
    return inputs[0].to(weight.dtype)


def _in_order(module: nn.Module) -> list[_Layer]:
    """The layers of ``module`` whose order is known: in a Sequential, a :class:`Normed`, a ResNet.

    In a ResNet ``bn1`` follows ``conv1``, as torchvision names them.
    """
    if isinstance(module, nn.Sequential):
        return list(_leaves(module))
    if isinstance(module, Normed):
        pairs = module.norm_of().items()
        return [(module, name, module.get_submodule(name)) for pair in pairs for name in pair]
    numbers = [name[2:] for name, _ in module.named_children() if name[:2] == "bn"]
    return [
        (module, name, module.get_submodule(name))
        for number in numbers
        for name in (f"conv{number}", f"bn{number}")
    ]


def _leaves(sequence: nn.Sequential) -> Iterator[_Layer]:
    for name, child in sequence.named_children():
        if isinstance(child, nn.Sequential):
            yield from _leaves(child)
        else:
            yield sequence, name, child


def _fold(conv: nn.Conv2d, norm: _Layer) -> None:
    """Give ``conv`` the scale and shift of ``norm``, which becomes an identity."""
    holder, name, layer = norm
    assert isinstance(layer, nn.BatchNorm2d)
    assert layer.running_mean is not None
    assert layer.running_var is not None
    conv.weight, conv.bias = fuse_conv_bn_weights(
        conv.weight,
        conv.bias,
        layer.running_mean,
        layer.running_var,
        layer.eps,
        layer.weight,
        layer.bias,
    )
    setattr(holder, name, nn.Identity())


def _pack(network: nn.Module) -> None:
    """Pack all convolutions of ``network``, folded and on a CPU, in place.

    Where PyTorch lacks oneDNN, or oneDNN their precision, a warning is logged and nothing changes.
    """
    found = {layer.weight.dtype for layer in network.modules() if isinstance(layer, nn.Conv2d)}
    if all(can_pack(dtype) for dtype in found):
        _pack_children(network)
        for module in network.modules():
            if isinstance(module, nn.Sequential):
                _absorb_relus(module)


def _pack_children(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, Packable):
            child = child.packed()
        elif isinstance(child, nn.Conv2d):
            child = PackedConv2d(child)
        setattr(module, name, child)
        _pack_children(child)


def _absorb_relus(sequence: nn.Sequential) -> None:
    before: PackedConv2d | None = None
    for index, child in enumerate(sequence):
        if isinstance(child, nn.ReLU) and before is not None:
            before.activation = "relu"
            sequence[index] = nn.Identity()
        if not isinstance(child, nn.Identity):
            before = _last(child)


def _last(module: nn.Module) -> PackedConv2d | None:
    """The convolution whose result is that of ``module``, None if another layer ends it."""
    if isinstance(module, PackedResidual):
        return module.last
    if isinstance(module, nn.Sequential):
        layers = [child for child in module if not isinstance(child, nn.Identity)]
        return _last(layers[-1]) if layers else None
    return module if isinstance(module, PackedConv2d) else None


@functools.cache
def can_pack(dtype: torch.dtype) -> bool:
    """Whether this PyTorch has oneDNN's operators, which are private to it, and they are right.

    Those of bfloat16 need a processor with AVX-512.
    """

    def check() -> bool:
        conv = nn.Conv2d(3, 4, 3, padding=1).to(dtype)
        x = torch.linspace(-1, 1, 3 * 5 * 5).view(1, 3, 5, 5).to(dtype)
        exact = 1e-5 if dtype == torch.float32 else 0.05
        plain, packed = conv(x), PackedConv2d(conv, "relu")
        right = torch.allclose(packed(x), plain.relu(), atol=exact)
        right &= torch.allclose(packed(x, plain), (2 * plain).relu(), atol=exact)
        each = nn.Conv2d(3, 3, 3, padding=1, groups=3).to(dtype)
        capped = PackedConv2d(each, "relu6")(8 * x)
        return right and torch.allclose(capped, each(8 * x).clamp(0, 6), atol=8 * exact)

    return is_right_here(check, "Convolutions are not packed")
