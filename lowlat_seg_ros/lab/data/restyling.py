"""Rendered images made to look like many worlds: colours of things, light, texture, tone curves.

What a renderer draws has one look, and a network learns that look. Where nothing but the shapes is
common to all images it learns shapes: domain randomisation (Tobin et al., IROS 2017), here on
images that are there already, by their labels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from lowlat_seg_ros.frames import IGNORE_LABEL

#: Deviations: of the matrix that mixes a class's colours, and of what is added to them.
MIX, SHIFT = 0.35, 0.18
#: Points a side of the light's grid, and the deviation of its logarithm.
LIGHT_POINTS, LIGHT = 4, 0.35
#: Cell sizes of texture in pixels, and the largest deviation of one.
TEXTURE_CELLS, TEXTURE = (2, 5, 12), 0.12
#: Deviation of the logarithm of each channel's exponent.
CURVE = 0.3


def restyled(images: Tensor, labels: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """A ``share`` of the images (N, 3, H, W) in [0, 1] in another look, clamped to it.

    ``labels`` int64 (N, H, W), 255 where nothing is known, which gets a look of its own.
    """
    chances = torch.rand(len(images), generator=generator, device=images.device) < share
    if not bool(chances.any()):
        return images
    out = images.clone()
    seen, where = out[chances], labels[chances]
    seen = _light(_texture(_colours(seen, where, generator), generator), generator)
    exponents = torch.exp(CURVE * _normal((len(seen), 3, 1, 1), generator, seen))
    out[chances] = seen.clamp(1e-4, 1) ** exponents
    return out


def _colours(images: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
    """Every class of every image has its colours mixed in a way of its own."""
    count = IGNORE_LABEL + 1
    shape = (len(images), count)
    eye = torch.eye(3, device=images.device)
    mix = eye + MIX * _normal((*shape, 3, 3), generator, images)
    shift = SHIFT * _normal((*shape, 3), generator, images)
    out = torch.empty_like(images)
    for index, (image, label) in enumerate(zip(images, labels, strict=True)):
        for number in label.unique().tolist():
            mask = label == number
            pixels = image[:, mask]
            middle = pixels.mean(dim=1, keepdim=True)
            moved = mix[index, number] @ (pixels - middle) + middle
            out[index][:, mask] = moved + shift[index, number][:, None]
    return out


def _texture(images: Tensor, generator: torch.Generator) -> Tensor:
    """Noise of several cell sizes, strong in some images and weak in others."""
    height, width = images.shape[2:]
    for cells in TEXTURE_CELLS:
        size = (len(images), 3, -(-height // cells), -(-width // cells))
        noise = F.interpolate(_normal(size, generator, images), (height, width), mode="bilinear")
        strength = torch.rand(len(images), generator=generator, device=images.device) ** 2
        images = images + TEXTURE * strength.view(-1, 1, 1, 1) * noise
    return images


def _light(images: Tensor, generator: torch.Generator) -> Tensor:
    """Brighter here and darker there, slowly, as sun and shadow make it."""
    points = _normal((len(images), 1, LIGHT_POINTS, LIGHT_POINTS), generator, images)
    size = (images.shape[2], images.shape[3])
    return images * torch.exp(LIGHT * F.interpolate(points, size, mode="bicubic"))


def _normal(shape: tuple[int, ...], generator: torch.Generator, like: Tensor) -> Tensor:
    return torch.randn(shape, generator=generator, device=like.device)
