"""Training augmentation of uint8 batches held in memory, exact given a generator."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from lowlat_seg_ros.frames import IGNORE_LABEL
from lowlat_seg_ros.lab.data.blurring import gaussian_blur
from lowlat_seg_ros.lab.data.degrading import degraded
from lowlat_seg_ros.lab.data.restyling import restyled

#: Largest width of the random blur, in pixels.
BLUR_SIGMA = 1.5


@dataclass(frozen=True)
class Augment:
    """Random scale, crop, flip and colour.

    ``crop`` (h, w) in pixels; ``scale`` the range of the zoom, drawn log-uniformly; ``jitter`` the
    strength of brightness, contrast, saturation and gamma; ``hue`` the largest turn of the colour
    circle in radians; ``blur`` the share of blurred images; ``degrade`` the share of images that
    are made worse in one of the ways of :mod:`degrading`; ``restyle`` that of stills which get
    another look, see :mod:`restyling`.
    """

    crop: tuple[int, int]
    scale: tuple[float, float] = (0.5, 2.0)
    flip: bool = True
    jitter: float = 0.4
    hue: float = 0.2
    blur: float = 0.2
    degrade: float = 0.0
    restyle: float = 0.0

    def __call__(
        self, images: Tensor, labels: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """uint8 (N, 3, H, W), (N, H, W) -> float [0, 1] (N, 3, h, w), int64 (N, h, w).

        Outside the image pixels are grey and labels 255.
        """
        with _full_precision(images.device):
            grid = self._grid(images, generator)
            seen, label = warp_images(images, grid), warp_labels(labels, grid)
            if self.restyle > 0:
                seen = restyled(seen, label, self.restyle, generator)
            seen = self._colour(seen, generator)
            if self.degrade > 0:
                seen = degraded(seen, self.degrade, generator)
            return seen, label

    def pair(
        self, key_images: Tensor, images: Tensor, labels: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The same geometry for key and current images; the current one's label follows.

        Their colours are jittered alike, then a little apart, as exposure drifts in a drive.
        """
        with _full_precision(images.device):
            grid = self._grid(images, generator)
            both = torch.cat([warp_images(key_images, grid), warp_images(images, grid)])
            amounts = self._amounts(len(images), images.device, generator)
            drift = 0.15 * self._amounts(len(images), images.device, generator)
            jittered = jitter_colours(both, torch.cat([amounts, amounts + drift]))
            turns = self._turns(len(images), images.device, generator)
            seen = turn_hue(jittered, torch.cat([turns, turns]))
            if self.degrade > 0:
                seen = degraded(seen, self.degrade, generator, views=2)
            key, current = seen.chunk(2)
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

    def _turns(self, count: int, device: torch.device, generator: torch.Generator) -> Tensor:
        """Angles (N,) in [-hue, hue]."""
        return self.hue * (2 * torch.rand(count, generator=generator, device=device) - 1)

    def _colour(self, images: Tensor, generator: torch.Generator) -> Tensor:
        out = jitter_colours(images, self._amounts(len(images), images.device, generator))
        out = turn_hue(out, self._turns(len(images), images.device, generator))
        u = torch.rand(2, len(images), generator=generator, device=images.device)
        # A width of zero leaves an image as it is.
        sigma = torch.where(u[0] < self.blur, BLUR_SIGMA * u[1], 0.0)
        return gaussian_blur(out, sigma) if self.blur > 0 else out


def _full_precision(device: torch.device) -> torch.autocast:
    """Training runs in mixed precision; its images are as exact as those of evaluation."""
    return torch.autocast(device.type, enabled=False)


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


def turn_hue(images: Tensor, angles: Tensor) -> Tensor:
    """Colours of (N, 3, H, W) in [0, 1] turned about the grey axis by ``angles`` (N,) in radians.

    Rodrigues' rotation about (1, 1, 1); grey stays grey, and brightness stays where it is.
    """
    axis = images.new_full((3,), 3**-0.5)
    cross = torch.linalg.cross(axis.expand(3, 3), torch.eye(3, device=images.device)).T
    along = torch.outer(axis, axis)
    cos, sin = angles.cos().view(-1, 1, 1), angles.sin().view(-1, 1, 1)
    eye = torch.eye(3, device=images.device)
    turn = cos * eye + sin * cross + (1 - cos) * along
    return torch.einsum("nij,njhw->nihw", turn, images).clamp(0.0, 1.0)
