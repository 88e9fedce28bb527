"""Large convolutions stored in 8 bits: half the file of half precision, the same masks but for few.

Each output channel has a scale of its own, so that its largest weight becomes 127 (symmetric
per-channel quantisation of weights, Krishnamoorthi, arXiv 1806.08342, Sec. 3.1). This is a way to
store weights, not to compute: what is read is float again.
"""

from __future__ import annotations

import torch
from torch import Tensor

#: Weights of a convolution from which on it is worth it.
LARGE = 2**15

SCALE = ".scale"


def pack(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """``tensors`` with each large kernel as int8, and float32 (outputs,) beside it as its scale."""
    packed = dict(tensors)
    for name, tensor in tensors.items():
        if tensor.ndim == 4 and tensor.numel() >= LARGE:
            kernels = tensor.float()
            # A kernel of zeros stays one whatever its scale.
            scale = kernels.abs().amax(dim=(1, 2, 3)).clamp(min=1e-12) / 127
            packed[name] = (kernels / scale.view(-1, 1, 1, 1)).round().to(torch.int8)
            packed[name + SCALE] = scale
    return packed


def unpack(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """What :func:`pack` was given, each large kernel to within 1/254 of its largest weight."""
    return {
        name: tensor.float() * tensors[name + SCALE].view(-1, 1, 1, 1)
        if name + SCALE in tensors
        else tensor
        for name, tensor in tensors.items()
        if not name.endswith(SCALE)
    }
