"""Adaptive feature propagation: predicted kernels and spatially variant convolution (Sec. 3.3)."""

from __future__ import annotations

import copy
import functools
import importlib.util
import itertools
import logging
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lowlat_seg_ros.network.fast_track import Reduced
from lowlat_seg_ros.network.layers import PackedConv2d, compile_with_numba, conv_bn_relu, halved

logger = logging.getLogger(__name__)

#: What the Triton kernel computes in; the shift loop takes every floating dtype.
FUSED = (torch.float16, torch.bfloat16, torch.float32)

#: Channels that the numba kernel sums at a time: 4 vectors of AVX-512. Compiled as a constant.
BLOCK = 64

#: Neighbouring locations that it sums at a time, while the features they share are in the L1 cache.
SITES = 2

#: Of one image: padded features (rows, columns * BLOCK); weights, sums and result, each NHWC.
SIGNATURE = "void(f4[:,::1], f4[:,:,::1], f4[:,::1], f4[:,:,:])"


class KernelPredictor(nn.Module):
    """Predicts, for every location, the K x K weights that carry F_h from key to current frame."""

    def __init__(
        self,
        low_channels: int,
        width: int,
        kernel_size: int,
        shares: bool = False,
        coarse: bool = False,
    ) -> None:
        """``shares``: reads :class:`.fast_track.SharedReduction` instead of its own reduction.

        ``coarse``: it has kernels for cells at 1/16 instead of 1/8.
        """
        super().__init__()
        self.coarse = coarse
        # One reduction for both frames, so that the key frame's is computed once.
        self.reduction = Reduced(width) if shares else conv_bn_relu(low_channels, width)
        self.mix = conv_bn_relu(2 * width, width)
        self.logits = nn.Conv2d(width, kernel_size**2, 1)
        # Training begins with features that stay where they are, the centre having half of the
        # weight: from equal weights the softmax takes long to stop blurring.
        with torch.no_grad():
            self.logits.bias.zero_()  # type: ignore[union-attr]
            self.logits.bias[kernel_size**2 // 2] = math.log(max(1, kernel_size**2 - 1))  # type: ignore[index]

    def reduce(self, low: Tensor) -> Tensor:
        """F_l (N, Cl, H/8, W/8) -> reduced (N, width, H/8, W/8), or at 1/16 if ``coarse``."""
        reduced: Tensor = self.reduction(low)
        return halved(reduced) if self.coarse else reduced

    def remember(self, reduced: Tensor) -> Tensor:
        """Reduced F_l of a key frame -> what :meth:`forward` reads, computed once per key frame."""
        return reduced

    def forward(self, remembered: Tensor, reduced: Tensor) -> Tensor:
        """A key frame's :meth:`remember` and reduced F_l of the current frame -> W(k,t).

        W is (N, K*K, h, w), h and w as those of the inputs, and sums to 1 over dim 1.
        """
        return self._weights(self.mix(torch.cat([remembered, reduced], dim=1)))

    def _weights(self, mixed: Tensor) -> Tensor:
        # Over the last dimension of NHWC: over any other softmax would copy there and back.
        logits = self.logits(mixed).permute(0, 2, 3, 1)
        return logits.float().softmax(dim=3).permute(0, 3, 1, 2)

    def packed(self) -> PackedKernelPredictor:
        return PackedKernelPredictor(self)


class PackedKernelPredictor(KernelPredictor):
    """A :class:`KernelPredictor` for inference, whose mixing convolution is split in two.

    It is a sum over both frames' channels, and the key frame's half is the same for all frames.
    """

    def __init__(self, predictor: KernelPredictor) -> None:
        nn.Module.__init__(self)
        self.reduction, self.logits = predictor.reduction, predictor.logits
        self.coarse = predictor.coarse
        mix = predictor.mix[0]
        assert isinstance(mix, nn.Conv2d)
        key, current = mix.weight.detach().chunk(2, dim=1)
        self.mix_key = PackedConv2d(_half(mix, key, None))
        self.mix_current = PackedConv2d(_half(mix, current, mix.bias), "relu")

    def remember(self, reduced: Tensor) -> Tensor:
        half: Tensor = self.mix_key(reduced)
        return half

    def forward(self, remembered: Tensor, reduced: Tensor) -> Tensor:
        return self._weights(self.mix_current(reduced, remembered))

    def packed(self) -> PackedKernelPredictor:
        """The predictor itself: :func:`.inference.prepare` may run twice."""
        return self


def _half(conv: nn.Conv2d, weight: Tensor, bias: Tensor | None) -> nn.Conv2d:
    half = copy.deepcopy(conv)
    half.in_channels, half.weight = weight.shape[1], nn.Parameter(weight)
    half.bias = None if bias is None else nn.Parameter(bias)
    return half


def spatially_variant_convolution(features: Tensor, weights: Tensor) -> Tensor:
    """Eq. (1): ``out[n,c,i,j] = sum_{u,v} weights[n,(u,v),i,j] * features[n,c,i-u,j-v]``.

    ``features`` (N, C, H, W); ``weights`` (N, K*K, H, W) with K odd and (u, v) in row-major order
    from -K//2. Features beyond the border repeat the edge, which keeps a constant constant.
    Differentiable in both inputs; both have one floating dtype. Without gradients a CPU runs the
    kernel of :func:`compiled`; call that first where the time of the first frame matters.

    Raises ``ValueError`` if the shapes do not fit.
    """
    kernel = round(weights.shape[1] ** 0.5)
    if kernel**2 != weights.shape[1] or kernel % 2 == 0:
        raise ValueError(f"weights have {weights.shape[1]} channels; they must be K*K with K odd")
    if weights.shape[0] != features.shape[0] or weights.shape[2:] != features.shape[2:]:
        raise ValueError(
            f"weights {tuple(weights.shape)} and features {tuple(features.shape)} must agree in "
            "batch, height and width"
        )
    if not (torch.is_grad_enabled() and (features.requires_grad or weights.requires_grad)):
        plain = features.device.type == "cpu" and features.dtype == torch.float32
        gather = compiled(kernel) if plain and features.numel() else None
        if gather is not None:
            return gather(features, weights.float())
        fused = _fused(features.device) if features.dtype in FUSED else None
        if fused is not None:
            return fused(features, weights, kernel)
    weights = weights.to(features.dtype)
    padded = F.pad(features, (kernel // 2,) * 4, mode="replicate")
    out: Tensor = _SpatiallyVariantConvolution.apply(padded, weights, kernel)
    return out


@functools.cache
def compiled(kernel: int) -> Callable[[Tensor, Tensor], Tensor] | None:
    """Eq. (1) for ``kernel`` x ``kernel`` weights on a CPU, compiled by numba; None without numba.

    It is a function of features (N, C, H, W) and weights (N, K*K, H, W), float32 and preferably
    channels_last, as its result is. It has no gradients, and runs on the calling thread without the
    GIL. Compiling takes about a second and a half, or half a second from numba's cache.
    """

    gather = compile_with_numba(
        _gather(kernel), SIGNATURE, "propagation will be slow", fastmath={"contract"}
    )
    if gather is None:
        return None
    half = kernel // 2
    # The edge repeats; further columns on the right let the last group of sites read on.
    padding = (half, half + SITES - 1, half, half)

    def propagate(features: Tensor, weights: Tensor) -> Tensor:
        weights = weights.detach().permute(0, 2, 3, 1).contiguous()
        out = torch.empty(features.permute(0, 2, 3, 1).shape)  # (N, H, W, C)
        sums = np.empty((SITES, BLOCK), np.float32)
        padded = F.pad(features.detach(), padding, mode="replicate").permute(0, 2, 3, 1)
        for n, first in itertools.product(range(len(out)), range(0, out.shape[3], BLOCK)):
            block = padded[n, :, :, first : first + BLOCK]
            if block.shape[2] < BLOCK:
                block = F.pad(block, (0, BLOCK - block.shape[2]))
            rows, target = block.contiguous().flatten(1), out[n, :, :, first : first + BLOCK]
            gather(rows.numpy(), weights[n].numpy(), sums, target.numpy())
        return out.permute(0, 3, 1, 2)

    return propagate


def _gather(kernel: int) -> Callable[..., None]:
    """What numba compiles for one image and block of channels, ``kernel`` being a constant.

    The shift loop reads and writes all sums K*K times; here those of a block of channels stay in
    registers for each row of a kernel. Measured at 64 channels, 45x60 and K = 9, on one core with
    AVX-512: 0.6 ms, and 0.25 ms in hand-written LLVM IR, a gain of less than 3 % of a frame. After
    small changes of these loops LLVM may no longer vectorise them (tenfold time): measure them.
    """
    last, span = kernel - 1, kernel + SITES - 1

    def gather(padded: Any, weights: Any, sums: Any, out: Any) -> None:
        height, width, channels = out.shape
        for i in range(height):
            for j in range(0, width, SITES):
                sums[:] = 0
                for u in range(kernel):
                    near = padded[i + last - u, j * BLOCK : (j + span) * BLOCK]
                    for s in range(SITES):
                        taps = weights[i, min(j + s, width - 1), u * kernel : (u + 1) * kernel]
                        total = sums[s]
                        for c in range(BLOCK):
                            value = total[c]
                            # Eq. (1) has -v: the first column has the last weight.
                            for v in range(kernel):
                                value += taps[last - v] * near[(s + v) * BLOCK + c]
                            total[c] = value
                for s in range(min(SITES, width - j)):
                    target = out[i, j + s]
                    for c in range(channels):
                        target[c] = sums[s, c]

    return gather


@functools.cache
def _fused(device: torch.device) -> Callable[[Tensor, Tensor, int], Tensor] | None:
    """The Triton kernel where it runs: on a CUDA device of capability 8.0, with a C compiler."""
    if device.type != "cuda" or importlib.util.find_spec("triton") is None:
        return None
    if torch.cuda.get_device_capability(device) < (8, 0):
        return None
    from lowlat_seg_ros.network.propagation_triton import fused_convolution

    try:
        ones = torch.ones(1, 16, 1, 1, device=device, dtype=torch.bfloat16)
        fused_convolution(ones, ones[:, :1], 1)
    except Exception as error:
        # Compiling it takes much that a robot may lack; the shift loop needs nothing.
        logger.warning("No Triton kernel, propagation will be slow: %s", error)
        return None
    return fused_convolution


class _SpatiallyVariantConvolution(torch.autograd.Function):
    """K*K shifted multiply-adds in NHWC: on a CPU tens of times faster than ``F.unfold``."""

    @staticmethod
    def forward(ctx: Any, padded: Tensor, weights: Tensor, kernel: int) -> Tensor:
        padded, weights = (x.permute(0, 2, 3, 1).contiguous() for x in (padded, weights))
        ctx.save_for_backward(padded, weights)
        ctx.kernel = kernel
        height, width = weights.shape[1:3]
        out = torch.zeros_like(padded[:, :height, :width])
        for tap, rows, columns in _shifts(kernel, height, width):
            out.addcmul_(padded[:, rows, columns], weights[..., tap : tap + 1])
        return out.permute(0, 3, 1, 2)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        padded, weights = ctx.saved_tensors
        grad = grads[0].permute(0, 2, 3, 1).contiguous()
        grad_padded, grad_weights = torch.zeros_like(padded), torch.empty_like(weights)
        for tap, rows, columns in _shifts(ctx.kernel, *weights.shape[1:3]):
            grad_padded[:, rows, columns].addcmul_(grad, weights[..., tap : tap + 1])
            grad_weights[..., tap] = (grad * padded[:, rows, columns]).sum(dim=-1)
        return grad_padded.permute(0, 3, 1, 2), grad_weights.permute(0, 3, 1, 2), None


def _shifts(kernel: int, height: int, width: int) -> list[tuple[int, slice, slice]]:
    """Tap index and the window of the padded features that it multiplies."""
    half = kernel // 2

    def window(shift: int, size: int) -> slice:
        return slice(half - shift, half - shift + size)

    return [
        ((u + half) * kernel + v + half, window(u, height), window(v, width))
        for u in range(-half, half + 1)
        for v in range(-half, half + 1)
    ]
