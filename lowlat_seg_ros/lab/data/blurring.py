"""Gaussian blur of batches, each image by a width of its own."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

#: How far a kernel reaches unless told otherwise, in pixels.
BLUR_REACH = 4


def gaussian_blur(images: Tensor, sigma: Tensor, reach: int = BLUR_REACH) -> Tensor:
    """(N, 3, H, W) blurred by Gaussians of ``sigma`` (N,) pixels, edges repeated.

    ``reach``: of the kernel in pixels; twice the largest ``sigma`` or more.
    """
    x = torch.arange(-reach, reach + 1, device=images.device)
    kernels = torch.exp(-(x**2) / (2 * sigma.clamp(min=1e-3).view(-1, 1) ** 2))
    kernels = (kernels / kernels.sum(dim=1, keepdim=True)).repeat_interleave(3, dim=0)
    count, channels, height, width = images.shape
    out = F.pad(images, (reach,) * 4, mode="replicate").reshape(
        1, count * channels, height + 2 * reach, width + 2 * reach
    )
    side, groups = 2 * reach + 1, count * channels
    out = F.conv2d(out, kernels.view(groups, 1, side, 1), groups=groups)
    out = F.conv2d(out, kernels.view(groups, 1, 1, side), groups=groups)
    return out.view(images.shape)
