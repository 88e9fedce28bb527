"""Convolutions in 8 bits, where the processor multiplies them several times as fast as bf16.

Weights are int8 with a scale for each output channel; activations are uint8 with one scale and zero
point for a tensor, chosen beforehand from the range that the tensor had on training images (static
quantisation: Jacob et al., CVPR 2018, Sec. 2; Krishnamoorthi, arXiv 1806.08342, Sec. 3). Sums are
int32. Between two convolutions the values stay in 8 bits. docs/inference.md has the figures.
"""

from __future__ import annotations

import copy
import functools
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from lowlat_seg_ros.network.layers import (
    ACTIVATIONS,
    LAYOUTS,
    PackedConv2d,
    compile_with_numba,
    is_right_here,
    plain,
    single_threaded,
)
from lowlat_seg_ros.network.trunk import Statistics, Trunk

#: 8 bits are used where Sl takes less than this share of its time in the other format.
WORTH_IT = 0.85

#: How often each format is timed; the fastest counts, as other programs only ever add to a time.
TRIALS = 8

#: Values that the kernel below converts at a time, so that they stay in the L1 cache.
CHUNK = 2048


class Range(NamedTuple):
    """Smallest and largest value of a tensor; values beyond are clipped."""

    low: float
    high: float


class Ranges(NamedTuple):
    """Of one convolution: of its input, and of its result with shortcut and activation."""

    input: Range
    output: Range


class Grid(NamedTuple):
    """The 256 values that a tensor may have: ``scale * (byte - zero)``."""

    scale: float
    zero: int

    @classmethod
    def over(cls, span: Range) -> Grid:
        """The finest grid over ``span`` that holds 0 exactly, as padding needs."""
        low, high = min(span.low, 0.0), max(span.high, 0.0, min(span.low, 0.0) + 1e-6)
        scale = (high - low) / 255
        return cls(scale, round(-low / scale))


@dataclass(frozen=True)
class Quantized:
    """A tensor in 8 bits: ``values`` uint8 (N, C, H, W), channels_last, on ``grid``."""

    values: Tensor
    grid: Grid

    @property
    def shape(self) -> torch.Size:
        return self.values.shape

    def to(self, dtype: torch.dtype) -> Tensor:
        """As numbers, for a layer that is not quantised."""
        return ((self.values.to(torch.float32) - self.grid.zero) * self.grid.scale).to(dtype)

    def mean(self, dims: tuple[int, int], keepdim: bool) -> Tensor:
        mean = self.values.to(torch.float32).mean(dims, keepdim=keepdim)
        return (mean - self.grid.zero) * self.grid.scale


class QuantizedConv2d(nn.Module):
    """A packed convolution in 8 bits, on a CPU and without gradients.

    It takes a tensor, which it quantises first, or a :class:`Quantized` one. A uint8 tensor is an
    image, on the grid of its input. It returns what the next layer wants: 8 bits, or ``dtype``.
    """

    def __init__(self, conv: PackedConv2d, ranges: Ranges, *, stays: bool) -> None:
        super().__init__()
        self.activation, self.dtype, self.geometry = conv.activation, conv.dtype, conv.geometry
        self.bias = None if conv.bias is None else conv.bias.float()
        kernel = conv.weight.float()
        self.scales = kernel.abs().amax(dim=(1, 2, 3)).clamp(min=1e-12) / 127
        self._zeros = torch.zeros(len(kernel), dtype=torch.int32)
        self.kernel = (kernel / self.scales.view(-1, 1, 1, 1)).round().to(torch.int8)
        self.input = Grid.over(ranges.input)
        self.output = Grid.over(ranges.output) if stays else None
        self._layouts: dict[tuple[torch.Size, Grid], Tensor] = {}

    def __deepcopy__(self, memo: dict[int, object]) -> QuantizedConv2d:
        return copy.copy(self)

    @property
    def weight_bytes(self) -> int:
        """Memory that the weights take, all cached layouts included."""
        return self.kernel.numel() * (1 + len(self._layouts))

    def forward(
        self, x: Tensor | Quantized, shortcut: Tensor | Quantized | None = None
    ) -> Tensor | Quantized:
        """(N, C, H, W), and what is added before the activation -> the result in channels_last."""
        x = self.quantized(x)
        (scale, zero), (padding, stride, dilation, groups) = x.grid, self.geometry
        weights = (self._layout_for(x), self.scales, self._zeros)
        geometry = (self.bias, stride, padding, dilation, groups)
        grid, dtype = self.output or Grid(1.0, 0), torch.uint8 if self.output else self.dtype
        after = ACTIVATIONS[self.activation]
        conv = torch.ops.onednn.qconv2d_pointwise
        if shortcut is None:
            out = conv(x.values, scale, zero, *weights, *geometry, *grid, dtype, *after, "")
        else:
            # The sum replaces the shortcut in memory, which others may still read, in its format.
            total, of_total = Tensor(), Grid(1.0, 0)
            if self.output is None:
                total = shortcut.to(self.dtype).clone()
            elif isinstance(shortcut, Quantized):
                total, of_total = shortcut.values.clone(), shortcut.grid
            else:
                of_total = Grid.over(Range(float(shortcut.min()), float(shortcut.max())))
                total = quantised(shortcut, of_total)
            out = conv.binary(
                x.values,
                scale,
                zero,
                *weights,
                total,
                *geometry,
                *grid,
                dtype,
                *of_total,
                "sum",
                1.0,
                *after,
                "",
            )
        return Quantized(out, self.output) if self.output else out

    def quantized(self, x: Tensor | Quantized) -> Quantized:
        if isinstance(x, Quantized):
            return x
        return Quantized(x if x.dtype == torch.uint8 else quantised(x, self.input), self.input)

    def _layout_for(self, x: Quantized) -> Tensor:
        """Weights arranged for the size and the grid of ``x``."""
        layouts, key = self._layouts, (x.shape, x.grid)
        if key not in layouts:
            padding, stride, dilation, groups = self.geometry
            new = torch.ops.onednn.qconv_prepack(
                self.kernel,
                self.scales,
                *x.grid,
                stride,
                padding,
                dilation,
                groups,
                list(x.shape),
            )
            # Other threads may be reading the dictionary, so it is replaced, not changed.
            recent = list(layouts.items())[-(LAYOUTS - 1) :]
            self._layouts = layouts = {**dict(recent), key: new}
        return layouts[key]


def quantised(x: Tensor, grid: Grid) -> Tensor:
    """``x`` (N, C, H, W) as bytes on ``grid``, channels_last; what is beyond it is clipped."""
    x = x.contiguous(memory_format=torch.channels_last)
    kernel = compiled_quantising()
    if kernel is None or x.dtype not in (torch.bfloat16, torch.float32):
        bytes_ = (x.float() / grid.scale + grid.zero).round_().clamp_(0, 255)
        return bytes_.to(torch.uint8)
    out = torch.empty_like(x, dtype=torch.uint8, memory_format=torch.channels_last)
    flat = x.permute(0, 2, 3, 1).reshape(-1)
    bits = flat.view(torch.int16 if x.dtype == torch.bfloat16 else torch.int32).numpy()
    kernel(bits, 1 / grid.scale, grid.zero, out.permute(0, 2, 3, 1).reshape(-1).numpy())
    return out


@functools.cache
def compiled_quantising() -> Callable[[np.ndarray, float, int, np.ndarray], None] | None:
    """Bits of bfloat16 (int16) or float32 (int32), factor, zero point, bytes; None without numba.

    The first call in a process compiles, so it is made before the first frame.
    """

    slower = "convolutions in 8 bits take longer"
    half = compile_with_numba(_quantise_half, "void(i2[::1], f4, f4, u4[::1], u1[::1])", slower)
    full = compile_with_numba(_quantise_full, "void(f4[::1], f4, f4, u1[::1])", slower)
    if half is None or full is None:
        return None

    def kernel(bits: np.ndarray, factor: float, zero: int, out: np.ndarray) -> None:
        terms = np.float32(factor), np.float32(zero + 0.5)
        if bits.dtype == np.int16:
            half(bits, *terms, np.empty(CHUNK, np.uint32), out)
        else:
            full(bits.view(np.float32), *terms, out)

    return kernel


def _quantise_half(
    bits: np.ndarray, factor: float, term: float, words: np.ndarray, out: np.ndarray
) -> None:
    """The loop that numba compiles for bfloat16; ``words`` has room for a chunk of float32."""
    values = words.view(np.float32)
    for begin in range(0, len(bits), CHUNK):
        count = min(CHUNK, len(bits) - begin)
        source, target = bits[begin : begin + count], out[begin : begin + count]
        for i in range(count):
            words[i] = np.uint32(np.uint16(source[i])) << np.uint32(16)
        for i in range(count):
            value = values[i] * factor + term
            target[i] = np.uint8(np.int32(min(max(value, np.float32(0)), np.float32(255))))


def _quantise_full(values: np.ndarray, factor: float, term: float, out: np.ndarray) -> None:
    for i in range(len(values)):
        value = values[i] * factor + term
        out[i] = np.uint8(np.int32(min(max(value, np.float32(0)), np.float32(255))))


def quantize(
    network: nn.Module, ranges: Mapping[str, Ranges], statistics: Statistics | None = None
) -> None:
    """Replace the packed convolutions of ``network`` that ``ranges`` names, in place.

    Names are those of the packed network. A result stays in 8 bits inside a trunk, and where
    another convolution of a sequence follows. The first convolution of each trunk then reads the
    bytes of an image, uint8 (N, 3, H, W); so does the first of a network without trunks, whose
    images are normalised with ``statistics``. Raises ``ValueError`` for a name that
    no packed convolution has, since the network would then read bytes as numbers.
    """
    packed = {name for name, m in network.named_modules() if isinstance(m, PackedConv2d)}
    if unknown := sorted(set(ranges) - packed):
        raise ValueError(
            f"no packed convolution is called {unknown[0]}; quantise the network again"
        )
    trunks = [module for module in network.modules() if isinstance(module, Trunk)]
    inside = {id(module) for trunk in trunks for module in trunk.modules()}
    for module in network.modules():
        if isinstance(module, nn.Sequential):
            convolutions = [child for child in module if isinstance(child, PackedConv2d)]
            inside |= set(map(id, convolutions[:-1]))
    readers: list[tuple[nn.Module, Statistics]] = [(t, t.statistics) for t in trunks]
    if not trunks and statistics is not None:
        readers = [(network, statistics)]
    firsts = {
        id(next(m for m in module.modules() if isinstance(m, PackedConv2d))): of_image
        for module, of_image in readers
    }
    for name, module in list(network.named_modules()):
        for child_name, child in list(module.named_children()):
            span = ranges.get(f"{name}.{child_name}" if name else child_name)
            if not isinstance(child, PackedConv2d) or span is None:
                continue
            if id(child) in firsts:
                span = span._replace(input=image_range(firsts[id(child)]))
            quick = QuantizedConv2d(child, span, stays=id(child) in inside)
            setattr(module, child_name, quick)
    compiled_quantising()


def image_range(statistics: Statistics) -> Range:
    """Of normalised images: its grid has the bytes of the image as they are."""
    low, high = (Tensor([[[[value]]]]).expand(1, 3, 1, 1) for value in (0.0, 1.0))
    return Range(float(statistics.normalise(low)[0, 0]), float(statistics.normalise(high)[0, 0]))


@functools.cache
def works() -> bool:
    """Whether convolutions in 8 bits are right here: some processors' sums overflow."""

    def check() -> bool:
        x, exact, quick = _example()
        return torch.allclose(plain(quick(x)), exact, atol=0.05 * float(exact.max()))

    return is_right_here(check, "No convolutions in 8 bits")


def beats(quick: Callable[[], object], other: Callable[[], object]) -> bool:
    """Whether ``quick`` takes clearly less time here than ``other``, on one thread, measured.

    On several threads a busy core beside would decide.
    """
    with single_threaded(), torch.inference_mode():
        # In turns, so that what else the machine does hits both.
        times = [[_seconds(run) for run in (quick, other)] for _ in range(TRIALS)]
    of_quick, of_other = (min(each[2:]) for each in zip(*times, strict=True))
    return of_quick < WORTH_IT * of_other


def _seconds(run: Callable[[], object]) -> float:
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def _example() -> tuple[Tensor, Tensor, QuantizedConv2d]:
    """An input, the exact result, and a convolution in 8 bits of the size of the fast track's."""
    conv = nn.Conv2d(64, 64, 3, padding=1)
    x = torch.linspace(-1, 3, 64 * 40 * 40).view(1, 64, 40, 40)
    x = x.contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        exact = conv(x).relu()
        spans = Ranges(Range(-1.0, 3.0), Range(0.0, float(exact.max())))
        return x, exact, QuantizedConv2d(PackedConv2d(conv, "relu"), spans, stays=True)
