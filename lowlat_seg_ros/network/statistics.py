"""How images are normalised: each network reads them as the one it began from was trained to."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Statistics:
    """Mean and deviation of RGB in [0, 1]: what is subtracted, and what is divided by."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def normalise(self, image: Tensor) -> Tensor:
        """RGB in [0, 1] (N, 3, H, W) -> normalised, of the same shape and dtype."""
        mean = torch.tensor(self.mean, dtype=image.dtype, device=image.device).view(3, 1, 1)
        std = torch.tensor(self.std, dtype=image.dtype, device=image.device).view(3, 1, 1)
        return (image - mean) / std

    def pixels(self, image: Tensor) -> np.ndarray:
        """One normalised image (1, 3, H, W) -> RGB uint8 (H, W, 3)."""
        scale = torch.tensor(self.std, device=image.device).view(3, 1, 1)
        shift = torch.tensor(self.mean, device=image.device).view(3, 1, 1)
        rgb = (image[0].float() * scale + shift).mul(255).round().clamp(0, 255).to(torch.uint8)
        pixels: np.ndarray = rgb.permute(1, 2, 0).contiguous().cpu().numpy()
        return pixels


def centred(middle: float, half_range: float) -> Statistics:
    """``(byte - middle) / half_range`` for bytes of every channel."""
    return Statistics((middle / 255,) * 3, (half_range / 255,) * 3)


#: ImageNet's statistics: what torchvision's files were trained with.
IMAGENET = Statistics((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
