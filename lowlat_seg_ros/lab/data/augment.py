"""Training augmentation of uint8 batches held in memory, exact given a generator."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from lowlat_seg_ros.frames import IGNORE_LABEL
from lowlat_seg_ros.lab.data.degrading import degraded, gaussian_blur

#: Largest width of the random blur, in pixels.
BLUR_SIGMA = 1.5

# Of :func:`restyled`.
#: Deviations: of the matrix that mixes a class's colours, and of what is added to them.
MIX, SHIFT = 0.35, 0.18
#: Points a side of the light's grid, and the deviation of its logarithm.
LIGHT_POINTS, LIGHT = 4, 0.35
#: Cell sizes of texture in pixels, and the largest deviation of one.
TEXTURE_CELLS, TEXTURE = (2, 5, 12), 0.12
#: Deviation of the logarithm of each channel's exponent.
CURVE = 0.3


@dataclass(frozen=True)
class Augment:
    """Random scale, crop, flip and colour."""

    crop: tuple[int, int]  # (h, w) in pixels
    scale: tuple[float, float] = (0.5, 2.0)  # range of the zoom, drawn log-uniformly
    flip: bool = True
    jitter: float = 0.4  # strength of brightness, contrast, saturation and gamma
    hue: float = 0.2  # largest rotation of the colour circle in radians
    blur: float = 0.2  # share of blurred images
    degrade: float = 0.0  # share of images made worse in one way of :mod:`degrading`
    restyle: float = 0.0  # share of stills that get another look, see :func:`restyled`

    def __call__(
        self, images: Tensor, labels: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """uint8 (N, 3, H, W), (N, H, W) -> float [0, 1] (N, 3, h, w), int64 (N, h, w).

        Outside the image pixels are grey and labels 255.
        """
        count, device = len(images), images.device
        # Training runs in mixed precision; its images are as exact as those of evaluation.
        with torch.autocast(device.type, enabled=False):
            grid = self._grid(images, generator)
            seen, label = warp_images(images, grid), warp_labels(labels, grid)
            if self.restyle > 0:
                seen = restyled(seen, label, self.restyle, generator)
            seen = jitter_colours(seen, self.jitter * _signed((count, 4), generator, device))
            seen = rotate_hue(seen, self.hue * _signed((count,), generator, device))
            u = torch.rand(2, count, generator=generator, device=device)
            if self.blur > 0:  # a width of zero leaves an image as it is
                seen = gaussian_blur(seen, torch.where(u[0] < self.blur, BLUR_SIGMA * u[1], 0.0))
            if self.degrade > 0:
                seen = degraded(seen, self.degrade, generator)
            return seen, label

    def pair(
        self, key_images: Tensor, images: Tensor, labels: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The same geometry for key and current images; the current one's label follows.

        Their colours are jittered alike, then a little apart, as exposure drifts in a drive.
        """
        count, device = len(images), images.device
        with torch.autocast(device.type, enabled=False):
            grid = self._grid(images, generator)
            both = torch.cat([warp_images(key_images, grid), warp_images(images, grid)])
            amounts = self.jitter * _signed((count, 4), generator, device)
            drift = 0.15 * (self.jitter * _signed((count, 4), generator, device))
            jittered = jitter_colours(both, torch.cat([amounts, amounts + drift]))
            angles = self.hue * _signed((count,), generator, device)
            seen = rotate_hue(jittered, torch.cat([angles, angles]))
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
        centre_x = (2 * u[1] - 1) * (1 - half_x).abs()
        centre_y = (2 * u[2] - 1) * (1 - half_y).abs()
        sign = torch.where((u[3] < 0.5) & self.flip, -1.0, 1.0)
        theta = torch.zeros(count, 2, 3, device=device)
        theta[:, 0, 0], theta[:, 0, 2] = half_x * sign, centre_x
        theta[:, 1, 1], theta[:, 1, 2] = half_y, centre_y
        return F.affine_grid(theta, [count, 3, *self.crop], align_corners=False)


def _signed(shape: tuple[int, ...], generator: torch.Generator, device: torch.device) -> Tensor:
    """Uniform numbers in [-1, 1]."""
    return 2 * torch.rand(shape, generator=generator, device=device) - 1


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
    mean = out.mean(dim=(1, 2, 3), keepdim=True)
    out = (out - mean) * (1 + contrast) + mean
    out = out + saturation * (out - out.mean(dim=1, keepdim=True))
    return out.clamp(1e-4, 1.0) ** torch.exp(gamma)


def rotate_hue(images: Tensor, angles: Tensor) -> Tensor:
    """Colours of (N, 3, H, W) in [0, 1] rotated about the grey axis by ``angles`` (N,) in radians.

    Rodrigues' rotation about (1, 1, 1); grey stays grey, and brightness stays where it is.
    """
    axis = images.new_full((3,), 3**-0.5)
    cross = torch.linalg.cross(axis.expand(3, 3), torch.eye(3, device=images.device)).T
    along = torch.outer(axis, axis)
    cos, sin = angles.cos().view(-1, 1, 1), angles.sin().view(-1, 1, 1)
    eye = torch.eye(3, device=images.device)
    rotation = cos * eye + sin * cross + (1 - cos) * along
    return torch.einsum("nij,njhw->nihw", rotation, images).clamp(0.0, 1.0)


def restyled(images: Tensor, labels: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """A ``share`` of the images (N, 3, H, W) in [0, 1] in another look, and clamped.

    Colours of things, light, texture and tone curves change. What a renderer draws has one look,
    and a network learns that look; where only the shapes are common to all images it learns shapes:
    domain randomisation (Tobin et al., IROS 2017), here on images that are there already.
    ``labels`` int64 (N, H, W), 255 where nothing is known, which gets a look of its own.
    """
    device = images.device
    chances = torch.rand(len(images), generator=generator, device=device) < share
    if not bool(chances.any()):
        return images

    def normal(*shape: int) -> Tensor:
        return torch.randn((int(chances.sum()), *shape), generator=generator, device=device)

    classes, size = IGNORE_LABEL + 1, (images.shape[2], images.shape[3])
    mix = torch.eye(3, device=device) + MIX * normal(classes, 3, 3)
    seen = _recoloured(images[chances], labels[chances], mix, SHIFT * normal(classes, 3))
    for cell in TEXTURE_CELLS:
        noise = normal(3, -(-size[0] // cell), -(-size[1] // cell))
        strength = torch.rand(len(seen), generator=generator, device=device) ** 2
        grain = F.interpolate(noise, size, mode="bilinear")
        seen = seen + TEXTURE * strength.view(-1, 1, 1, 1) * grain
    # Brighter here and darker there, slowly, as sun and shadow make it.
    light = F.interpolate(normal(1, LIGHT_POINTS, LIGHT_POINTS), size, mode="bicubic")
    seen = seen * torch.exp(LIGHT * light)
    out = images.clone()
    out[chances] = seen.clamp(1e-4, 1) ** torch.exp(CURVE * normal(3, 1, 1))
    return out


def _recoloured(images: Tensor, labels: Tensor, mix: Tensor, shift: Tensor) -> Tensor:
    """Every class of every image with its colours mixed by ``mix`` (N, 256, 3, 3), and shifted."""
    out = torch.empty_like(images)
    for index, (image, label) in enumerate(zip(images, labels, strict=True)):
        for number in label.unique().tolist():
            mask = label == number
            pixels = image[:, mask]
            middle = pixels.mean(dim=1, keepdim=True)
            moved = mix[index, number] @ (pixels - middle) + middle
            out[index][:, mask] = moved + shift[index, number][:, None]
    return out
