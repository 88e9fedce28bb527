"""Convolutions as oneDNN runs them fastest on a CPU.

Their weights are laid out ahead, and the sum with a shortcut and the ReLU that follow are made
while the answer is still in registers.

By itself PyTorch lays out weights anew for each call, and makes a pass over memory for each sum and
each ReLU. A sum is also rounded once instead of twice in bfloat16. These are the operators that
``torch.compile`` puts in; what they save: docs/inference.md.
"""

from __future__ import annotations

import copy
import functools
import logging
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

logger = logging.getLogger(__name__)

#: Sizes whose layouts are kept: cameras of several sizes may share a network.
LAYOUTS = 4


@runtime_checkable
class Packable(Protocol):
    """A module that is more than its layers in a row."""

    def packed(self) -> nn.Module:
        """What stands for it once it is folded, see :func:`pack`."""


#: oneDNN's name and scalars of what may follow a convolution.
ACTIVATIONS: dict[str, tuple[str, list[float]]] = {
    "none": ("none", []),
    "relu": ("relu", []),
    "relu6": ("hardtanh", [0.0, 6.0]),
}


class PackedConv2d(nn.Module):
    """``conv``, on a CPU, and the ``activation`` that follows it; without gradients.

    ``activation``: one of :data:`ACTIVATIONS`. It has no parameters. Raises what PyTorch raises
    where it was built without oneDNN.
    """

    def __init__(self, conv: nn.Conv2d, activation: str = "none") -> None:
        super().__init__()
        self.activation, self.dtype = activation, conv.weight.dtype
        padding, stride, dilation = map(list, (conv.padding, conv.stride, conv.dilation))
        self._geometry = padding, stride, dilation, conv.groups
        self._bias = None if conv.bias is None else conv.bias.detach()
        # Plain attributes: nothing can move or convert a layout, nor save it.
        self._layouts: dict[torch.Size, Tensor] = {torch.Size(): conv.weight.detach().to_mkldnn()}

    def __deepcopy__(self, memo: dict[int, object]) -> PackedConv2d:
        """Shares the weights, which never change."""
        return copy.copy(self)

    @property
    def weight_bytes(self) -> int:
        """Of memory that the weights take."""
        return sum(weight.numel() * weight.element_size() for weight in self._layouts.values())

    def forward(self, x: Tensor, shortcut: Tensor | None = None) -> Tensor:
        """(N, C, H, W) and what is added to the answer -> as the convolution, channels_last.

        A ``shortcut`` is for convolutions of all channels: PyTorch has no depthwise one in bf16.
        """
        x, weights = x.to(self.dtype), (self._laid_out(x), self._bias, *self._geometry)
        then, scalars = ACTIVATIONS[self.activation]
        out: Tensor
        if shortcut is None:
            out = torch.ops.mkldnn._convolution_pointwise(x, *weights, then, scalars, "")
        else:
            after = None if then == "none" else then
            out = torch.ops.mkldnn._convolution_pointwise.binary(
                x, shortcut.to(self.dtype), *weights, "add", 1.0, after, scalars, None
            )
        return out

    def _laid_out(self, x: Tensor) -> Tensor:
        """The weights for inputs of the size of ``x``: for others a layout may be ten times slower.

        Threads may ask at once, so what others may be reading is replaced, not changed.
        """
        layouts = self._layouts
        if x.shape not in layouts:
            kept = [item for item in layouts.items() if item[0]][-(LAYOUTS - 1) :]
            some = next(iter(layouts.values()))
            # Its type stub lacks the last argument.
            new = torch._C._nn.mkldnn_reorder_conv2d_weight(
                some.to_dense().to_mkldnn(),
                *self._geometry,
                x.shape,  # type: ignore[call-arg]
            )
            self._layouts = layouts = {**dict(kept), x.shape: new}
        return layouts[x.shape]


class PackedResidual(nn.Module):
    """``convolutions`` with a ReLU after each but the last, and the sum with the ``shortcut``."""

    def __init__(
        self,
        convolutions: Sequence[nn.Conv2d],
        shortcut: nn.Module | None = None,
        *,
        inner: str = "relu",
        relu: bool = False,
    ) -> None:
        """``shortcut``: None for the input itself; ``relu``: whether one follows on the sum.

        ``inner``: the activation after all but the last.
        """
        super().__init__()
        *before, last = convolutions
        self.inner = nn.Sequential(*(PackedConv2d(conv, inner) for conv in before))
        self.last = PackedConv2d(last, "relu" if relu else "none")
        self.shortcut = nn.Identity() if shortcut is None else shortcut

    def forward(self, x: Tensor) -> Tensor:
        """As the block that it was made from."""
        out: Tensor = self.last(self.inner(x), self.shortcut(x))
        return out


def pack(network: nn.Module) -> None:
    """Pack all convolutions of ``network``, folded and on a CPU, in place.

    Where PyTorch has no oneDNN, or that none of their precision, nothing changes but that a warning
    says so.
    """
    found = {layer.weight.dtype for layer in network.modules() if isinstance(layer, nn.Conv2d)}
    if all(_works(dtype) for dtype in found):
        _pack_children(network)
        for module in network.modules():
            if isinstance(module, nn.Sequential):
                _take_in_relus(module)


def _pack_children(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, Packable):
            child = child.packed()
        elif isinstance(child, nn.Conv2d):
            child = PackedConv2d(child)
        setattr(module, name, child)
        _pack_children(child)


def _take_in_relus(sequence: nn.Sequential) -> None:
    """Let convolutions and residual blocks do the ReLU after them."""
    before: PackedConv2d | None = None
    for index, child in enumerate(sequence):
        if isinstance(child, nn.ReLU) and before is not None:
            before.activation = "relu"
            sequence[index] = nn.Identity()
        if not isinstance(child, nn.Identity):
            before = _last(child)


def _last(module: nn.Module) -> PackedConv2d | None:
    """The convolution whose answer is that of ``module``."""
    if isinstance(module, PackedResidual):
        return module.last
    if isinstance(module, nn.Sequential):
        layers = [child for child in module if not isinstance(child, nn.Identity)]
        return _last(layers[-1]) if layers else None
    return module if isinstance(module, PackedConv2d) else None


@functools.cache
def _works(dtype: torch.dtype) -> bool:
    """Whether this PyTorch has these operators, which it keeps for itself, and they are right.

    Those of bfloat16 need a processor with AVX-512.
    """
    conv = nn.Conv2d(3, 4, 3, padding=1).to(dtype)
    x = torch.linspace(-1, 1, 3 * 5 * 5).view(1, 3, 5, 5).to(dtype)
    exact = 1e-5 if dtype == torch.float32 else 0.05
    try:
        with torch.inference_mode():
            plain, packed = conv(x), PackedConv2d(conv, "relu")
            right = torch.allclose(packed(x), plain.relu(), atol=exact)
            right &= torch.allclose(packed(x, plain), (2 * plain).relu(), atol=exact)
            each = nn.Conv2d(3, 3, 3, padding=1, groups=3).to(dtype)
            capped = PackedConv2d(each, "relu6")(8 * x)
            right &= torch.allclose(capped, each(8 * x).clamp(0, 6), atol=8 * exact)
    except Exception as error:
        logger.warning("Convolutions are not packed, masks will be slower: %s", error)
        return False
    if not right:
        logger.warning("Convolutions are not packed, masks will be slower: oneDNN answers wrongly")
    return right
