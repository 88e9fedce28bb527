"""Networks made ready for inference: the same answers at less cost.

BatchNorm, which only scales and shifts in eval mode, becomes part of the convolution before it.
What each step saves, and what was tried and saves nothing: docs/inference.md.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from lowlat_seg_ros.network import checkpoint
from lowlat_seg_ros.network.checkpoint import Header
from lowlat_seg_ros.network.segmenter import Segmenter

Network = TypeVar("Network", bound=nn.Module)

#: A layer: the module that holds it, its name there, itself.
_Layer = tuple[nn.Module, str, nn.Module]


def load(path: str | Path, device: str | torch.device = "cpu") -> tuple[Segmenter, Header]:
    """As :func:`~lowlat_seg_ros.network.checkpoint.load`, ready for inference."""
    segmenter, header = checkpoint.load(path, device)
    return prepare(segmenter), header


def prepare(network: Network) -> Network:
    """Fold ``network``, in eval mode, in place; returns it.

    It can be neither trained nor saved any more: its weights are no longer those of its
    checkpoint, and it has no BatchNorm. A network that was prepared before stays as it is. Raises
    ``ValueError`` in training mode.
    """
    if network.training:
        raise ValueError("the network is in training mode; call its eval() first")
    for module in network.modules():
        for (_, _, conv), norm in itertools.pairwise(_in_order(module)):
            if isinstance(conv, nn.Conv2d) and isinstance(norm[2], nn.BatchNorm2d):
                _fold(conv, norm)
    # PyTorch has this overload, its type stubs do not.
    return network.requires_grad_(False).to(memory_format=torch.channels_last)  # type: ignore[call-overload]


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
