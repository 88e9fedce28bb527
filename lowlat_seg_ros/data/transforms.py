"""Training augmentation of uint8 batches held in memory, exact given a generator."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from lowlat_seg_ros.frames import IGNORE_LABEL


@dataclass(frozen=True)
class Augment:
    """Random scale, crop, flip and colour.

    ``crop`` (h, w) in pixels; ``scale`` the range of the zoom, drawn log-uniformly; ``jitter`` the
    strength of brightness, contrast, saturation and gamma; ``blur`` the share of blurred images.
    """

    crop: tuple[int, int]
    scale: tuple[float, float] = (0.5, 2.0)
    flip: bool = True
    jitter: float = 0.4
    blur: float = 0.2

    def __call__(
        self, images: Tensor, labels: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """uint8 (N, 3, H, W), (N, H, W) -> float [0, 1] (N, 3, h, w), int64 (N, h, w).

        Outside the image pixels are grey and labels 255.
        """
        grid = self._grid(images, generator)
        return self._colour(warp_images(images, grid), generator), warp_labels(labels, grid)

    def pair(
        self, key_images: Tensor, images: Tensor, labels: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The same geometry for key and current images; the current one's label follows.

        Their colours are jittered alike, then a little apart, as exposure drifts in a drive.
        """
        grid = self._grid(images, generator)
        both = torch.cat([warp_images(key_images, grid), warp_images(images, grid)])
        amounts = self._amounts(len(images), images.device, generator)
        drift = 0.15 * self._amounts(len(images), images.device, generator)
        key, current = jitter_colours(both, torch.cat([amounts, amounts + drift])).chunk(2)
        return key, current, warp_labels(labels, grid)

    def _grid(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Sampling grid (N, h, w, 2) of one random zoom, flip and crop per image."""
        count, (height, width), device = len(images), images.shape[2:], images.device
        low, high = self.scale
        u = torch.rand(4, count, generator=generator, device=device)
        zoom = low * (high / low) ** u[0]
        # Half-extent of the crop in the source's [-1, 1] coordinates; above 1 it shows the outside.
        half_x, half_y = self.crop[1] / (zoom * width), self.crop[0] / (zoom * height)
        centre_x, centre_y = (
            (2 * u[1] - 1) * (1 - half_x).abs(),
            (2 * u[2] - 1) * (1 - half_y).abs(),
        )
        sign = torch.where((u[3] < 0.5) & self.flip, -1.0, 1.0)
        theta = torch.zeros(count, 2, 3, device=device)
        theta[:, 0, 0], theta[:, 0, 2] = half_x * sign, centre_x
        theta[:, 1, 1], theta[:, 1, 2] = half_y, centre_y
        return F.affine_grid(theta, [count, 3, *self.crop], align_corners=False)

    def _amounts(self, count: int, device: torch.device, generator: torch.Generator) -> Tensor:
        """Jitter amounts (N, 4) in [-jitter, jitter]."""
        return self.jitter * (2 * torch.rand(count, 4, generator=generator, device=device) - 1)

    def _colour(self, images: Tensor, generator: torch.Generator) -> Tensor:
        out = jitter_colours(images, self._amounts(len(images), images.device, generator))
        chosen = torch.rand(len(images), generator=generator, device=images.device) < self.blur
        # The branch follows the data; a batch without a blurred image skips the convolution.
        return torch.where(chosen.view(-1, 1, 1, 1), box_blur(out), out) if chosen.any() else out


def warp_images(images: Tensor, grid: Tensor) -> Tensor:
    """uint8 (N, 3, H, W) -> float [0, 1] (N, 3, h, w), bilinear; 0.5 outside."""
    # Shifted to be zero at grey, so that grid_sample's zero padding is grey.
    centred = images.float() / 255 - 0.5
    return F.grid_sample(centred, grid, mode="bilinear", align_corners=False) + 0.5


def warp_labels(labels: Tensor, grid: Tensor) -> Tensor:
    """uint8 (N, H, W) -> int64 (N, h, w), nearest; 255 outside."""
    centred = labels[:, None].float() - IGNORE_LABEL
    warped = F.grid_sample(centred, grid, mode="nearest", align_corners=False)
    return (warped + IGNORE_LABEL)[:, 0].round().long()


def jitter_colours(images: Tensor, amounts: Tensor) -> Tensor:
    """Brightness, contrast, saturation, gamma of (N, 3, H, W) in [0, 1], by ``amounts`` (N, 4)."""
    brightness, contrast, saturation, gamma = amounts.view(-1, 4, 1, 1, 1).unbind(1)
    out = images * (1 + brightness)
    out = (out - out.mean(dim=(1, 2, 3), keepdim=True)) * (1 + contrast) + out.mean(
        dim=(1, 2, 3), keepdim=True
    )
    out = out + saturation * (out - out.mean(dim=1, keepdim=True))
    return out.clamp(1e-4, 1.0) ** torch.exp(gamma)


def box_blur(images: Tensor) -> Tensor:
    """A 3x3 mean, edges repeated."""
    return F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
