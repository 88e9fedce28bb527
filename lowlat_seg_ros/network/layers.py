"""What the whole network is built of: layers, and what runs them fastest on a CPU.

PyTorch's own convolution arranges its weights in every call, and makes a pass over memory for each
sum and each ReLU that follows. :class:`PackedConv2d` arranges weights once, and adds the shortcut
and applies the ReLU while the result is still in registers (in bfloat16 it is then rounded once
instead of twice). It calls the operators that ``torch.compile`` inserts; docs/inference.md says
what they save. What no library has is compiled by numba (:func:`compile_with_numba`), when the
network is loaded and not when it is first called.
"""

from __future__ import annotations

import copy
import importlib.util
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

logger = logging.getLogger(__name__)

#: Input sizes whose weight layouts are cached: cameras of several sizes may share a network.
LAYOUTS = 4

#: oneDNN's name and scalars for each activation that may follow a convolution.
ACTIVATIONS: dict[str, tuple[str, list[float]]] = {
    "none": ("none", []),
    "relu": ("relu", []),
    "relu6": ("hardtanh", [0.0, 6.0]),
}


def conv_bn(in_channels: int, out_channels: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    """A convolution and BatchNorm: (N, in, H, W) -> (N, out, H/stride, W/stride)."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, bias=False),
        nn.BatchNorm2d(out_channels),
    )


def conv_bn_relu(in_channels: int, out_channels: int, kernel: int = 3) -> nn.Sequential:
    """A convolution at stride 1, BatchNorm and ReLU: (N, in, H, W) -> (N, out, H, W)."""
    return nn.Sequential(*conv_bn(in_channels, out_channels, kernel), nn.ReLU(inplace=True))


def separable(
    in_channels: int, out_channels: int, kernel: int = 3, stride: int = 1
) -> nn.Sequential:
    """A depthwise and a 1x1 convolution (Howard et al. 2017), each with BatchNorm, then ReLU."""
    return nn.Sequential(
        nn.Conv2d(
            in_channels, in_channels, kernel, stride, kernel // 2, groups=in_channels, bias=False
        ),
        nn.BatchNorm2d(in_channels),
        *conv_bn_relu(in_channels, out_channels, kernel=1),
    )


def halved(x: Tensor) -> Tensor:
    """Means of 2x2 cells: (N, C, h, w) -> (N, C, ceil(h/2), ceil(w/2)); at the edge of what is."""
    return F.avg_pool2d(x, 2, ceil_mode=True, count_include_pad=False)


def resized(x: Tensor, size: Sequence[int]) -> Tensor:
    """``x`` (N, C, h, w) interpolated to ``size``, bilinear; ``x`` itself if it has that size."""
    if list(x.shape[2:]) == list(size):
        return x
    return F.interpolate(x, list(size), mode="bilinear")


class DepthwiseConv2d(nn.Conv2d):
    """A depthwise convolution that autocast on a CPU leaves in float32.

    In bfloat16 its backward pass takes three times as long there.
    """

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu" or not torch.is_autocast_enabled("cpu"):
            return super().forward(x)
        with torch.autocast("cpu", enabled=False):
            return super().forward(x.float())


def plain(x: Any, dtype: torch.dtype = torch.float32) -> Tensor:
    """``x`` as numbers if it is :class:`~.quantization.Quantized`; a tensor is returned as is."""
    return x if isinstance(x, Tensor) else x.to(dtype)


class PackedConv2d(nn.Module):
    """``conv`` and the ``activation`` after it, on a CPU and without gradients.

    It has no parameters: nothing can move, convert or save its weights. Raises what PyTorch raises
    where it was built without oneDNN.
    """

    def __init__(self, conv: nn.Conv2d, activation: str = "none") -> None:
        super().__init__()
        self.activation, self.dtype = activation, conv.weight.dtype
        padding, stride, dilation = map(list, (conv.padding, conv.stride, conv.dilation))
        #: Padding, stride, dilation and groups.
        self.geometry = padding, stride, dilation, conv.groups
        self.bias = None if conv.bias is None else conv.bias.detach()
        # The weights' layout for each input size; the one under the empty size fits none.
        self._layouts: dict[torch.Size, Tensor] = {torch.Size(): conv.weight.detach().to_mkldnn()}

    def __deepcopy__(self, memo: dict[int, object]) -> PackedConv2d:
        return copy.copy(self)

    @property
    def weight_bytes(self) -> int:
        """Memory that the weights take, all cached layouts included."""
        return sum(weight.numel() * weight.element_size() for weight in self._layouts.values())

    @property
    def weight(self) -> Tensor:
        return next(iter(self._layouts.values())).to_dense()

    def forward(self, x: Tensor, shortcut: Tensor | None = None) -> Tensor:
        """(N, C, H, W), and what is added before the activation -> the result in channels_last.

        A depthwise convolution takes no ``shortcut``: PyTorch has no such operator in bf16.
        """
        x, weights = x.to(self.dtype), (self._layout_for(x), self.bias, *self.geometry)
        name, scalars = ACTIVATIONS[self.activation]
        out: Tensor
        if shortcut is None:
            out = torch.ops.mkldnn._convolution_pointwise(x, *weights, name, scalars, "")
        else:
            after = None if name == "none" else name
            out = torch.ops.mkldnn._convolution_pointwise.binary(
                x, shortcut.to(self.dtype), *weights, "add", 1.0, after, scalars, None
            )
        return out

    def _layout_for(self, x: Tensor) -> Tensor:
        """Weights arranged for the size of ``x``; those of another may be ten times slower."""
        layouts = self._layouts
        if x.shape not in layouts:
            recent = [item for item in layouts.items() if item[0]][-(LAYOUTS - 1) :]
            some = next(iter(layouts.values()))
            # Its type stub lacks the last argument.
            new = torch._C._nn.mkldnn_reorder_conv2d_weight(
                some.to_dense().to_mkldnn(),
                *self.geometry,
                x.shape,  # type: ignore[call-arg]
            )
            # Other threads may be reading the dictionary, so it is replaced, not changed.
            self._layouts = layouts = {**dict(recent), x.shape: new}
        return layouts[x.shape]


class PackedResidual(nn.Module):
    """A residual block of packed convolutions: ``last(inner(x)) + shortcut(x)``."""

    def __init__(
        self,
        convolutions: Sequence[nn.Conv2d],
        shortcut: nn.Module | None = None,
        *,
        inner: str = "relu",
        relu: bool = False,
    ) -> None:
        """``shortcut``: None for the input itself; ``relu``: whether a ReLU follows the sum.

        ``inner``: the activation after each convolution but the last.
        """
        super().__init__()
        *before, last = convolutions
        self.inner = nn.Sequential(*(PackedConv2d(conv, inner) for conv in before))
        self.last = PackedConv2d(last, "relu" if relu else "none")
        self.shortcut = nn.Identity() if shortcut is None else shortcut

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(self.inner(x), self.shortcut(x))
        return out


@contextmanager
def num_threads(count: int) -> Iterator[None]:
    """``count`` CPU threads inside, and what the calling thread had before afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def single_threaded() -> AbstractContextManager[None]:
    """One CPU thread inside; for work made of many tiny parallel regions.

    Each region would wait for a thread that another process may have displaced (propagation took
    4 ms alone, over 600 ms so on a busy machine).
    """
    return num_threads(1)


def is_right_here(check: Callable[[], bool], without: str) -> bool:
    """Whether operators that are private to PyTorch are here and pass ``check``.

    If not, that is logged: what is done ``without`` them.
    """
    try:
        with torch.inference_mode():
            right, why = check(), "oneDNN answers wrongly"
    except Exception as error:
        right, why = False, str(error)
    if not right:
        logger.warning("%s, masks will be slower: %s", without, why)
    return right


def why_no_numba() -> str:
    """What the absence of numba costs on a CPU, and how to end it; empty where it is installed."""
    if importlib.util.find_spec("numba") is not None:
        return ""
    return (
        "numba is not installed, so propagation takes six to ten times as long and the last step "
        "to a mask three times: pip install numba (the package's extra 'fast')"
    )


def compile_with_numba(
    function: Callable[..., None],
    signature: str,
    consequence: str,
    *,
    fastmath: bool | set[str] = False,
) -> Callable[..., None] | None:
    """``function`` compiled for numba's ``signature``, which runs without the GIL.

    None without numba, and where compiling fails, which is logged; ``consequence`` completes the
    message: what a user will notice. ``fastmath``: True lets sums be taken in any order, so in
    vectors, and forbids NaN and infinity; ``{"contract"}`` only fuses multiplications and
    additions. The result is kept in ``__pycache__`` or numba's cache folder, where one can be
    written.
    """
    if why_no_numba():
        return None
    try:
        import numba

        try:
            result: Callable[..., None] = numba.njit(
                signature, nogil=True, cache=True, fastmath=fastmath
            )(function)
        except (RuntimeError, OSError):  # no folder that can be written, or a full disk
            result = numba.njit(signature, nogil=True, fastmath=fastmath)(function)
    except Exception as error:
        # For example a numba that does not support this version of NumPy or Python.
        logger.warning("No numba kernel, %s: %s", consequence, error)
        return None
    return result
