"""Networks made ready for inference: the same answers at less cost.

BatchNorm, which only scales and shifts in eval mode, becomes part of the convolution before it.
These convolutions may then run in bfloat16, and those without a bias that come after one. All
others stay in float32, as their answers are read as numbers: F_h, of which propagation sums K*K,
its kernels, and the logits. Sums of both are float32. What each step saves, and what was tried and
saves nothing: docs/inference.md.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from lowlat_seg_ros.config import EngineConfig
from lowlat_seg_ros.network import checkpoint, propagation, warping
from lowlat_seg_ros.network.checkpoint import Header
from lowlat_seg_ros.network.encoder import TrunkEncoder
from lowlat_seg_ros.network.mobilenet_edgetpu import FoldedConv
from lowlat_seg_ros.network.packed import pack
from lowlat_seg_ros.network.precision import precision_of
from lowlat_seg_ros.network.segmenter import Segmenter

Network = TypeVar("Network", bound=nn.Module)


@runtime_checkable
class Normed(Protocol):
    """A module that says itself which of its convolutions a BatchNorm follows."""

    def norm_of(self) -> dict[str, str]:
        """Names of its convolutions, in order, and of the BatchNorm after each."""


#: A layer: the module that holds it, its name there, itself.
_Layer = tuple[nn.Module, str, nn.Module]


def load(
    path: str | Path, device: torch.device, precision: str = EngineConfig.precision
) -> tuple[Segmenter, Header]:
    """As :func:`~lowlat_seg_ros.network.checkpoint.load`, ready for inference.

    ``precision`` as in ``EngineConfig``.
    """
    segmenter, header = checkpoint.load(path, device)
    return prepare(segmenter, precision_of(precision, device)), header


def prepare(network: Network, dtype: torch.dtype = torch.float32) -> Network:
    """Fold ``network``, in eval mode, in place, its inner convolutions in ``dtype``; returns it.

    It can be neither trained nor saved any more: its weights are no longer those of its
    checkpoint, and it has no BatchNorm. Parts that were prepared before stay as they are. On a CPU
    convolutions are packed, see :func:`~.packed.pack`, and for a segmenter Eq. (1) is compiled, see
    :func:`~.propagation.compiled`. Raises ``ValueError`` in training mode.
    """
    if network.training:
        raise ValueError("the network is in training mode; call its eval() first")
    if isinstance(network, Segmenter) and not network.prepared:
        network.input_dtype = dtype  # of the convolutions that read images, folded here and now
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
        pack(network)
        if isinstance(network, Segmenter):
            propagation.compiled(network.config.kernel_size)  # or the second frame waits for it
            if network.config.fine_carry:
                warping.compiled()
    if dtype != torch.float32:
        _match_inputs(network)
    # PyTorch has this overload, its type stubs do not.
    return network.requires_grad_(False).to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def _match_inputs(network: nn.Module) -> None:
    """Let every layer take inputs of any precision."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            known = module._forward_pre_hooks.values()
            if _to_own_precision not in known:
                module.register_forward_pre_hook(_to_own_precision)


def _to_own_precision(module: nn.Module, inputs: tuple[Tensor]) -> Tensor:
    weight = module.weight
    assert isinstance(weight, Tensor)
    return inputs[0].to(weight.dtype)


def _fold(conv: nn.Conv2d, norm: _Layer) -> None:
    """Give ``conv`` the scale and shift of ``norm``, and leave nothing in its place."""
    holder, name, layer = norm
    assert isinstance(layer, nn.BatchNorm2d)
    assert layer.running_mean is not None
    assert layer.running_var is not None
    conv.weight, conv.bias = fuse_conv_bn_weights(
        conv.weight, conv.bias, layer.running_mean, layer.running_var, layer.eps, layer.weight,
        layer.bias,
    )  # fmt: skip
    setattr(holder, name, nn.Identity())


def _in_order(module: nn.Module) -> list[_Layer]:
    """The layers of ``module`` whose order is known: of a Sequential, and of what is like a ResNet.

    There ``bn1`` follows on ``conv1``, as torchvision has it.
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
