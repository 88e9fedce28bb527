"""What cameras do to images: noise, blur, fog, darkness, exchanged colours; for training and tests.

Hendrycks and Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions", ICLR 2019,
has such families with fixed strengths; here the strength is drawn.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from lowlat_seg_ros.lab.data.sequence import LabelledFrame, Sequence

#: Largest strengths: noise and fog as shares of full scale, blur in pixels, the least light left.
NOISE, BLUR_PX, FOG, DARKEST = 60 / 255, 5.0, 0.75, 0.12

#: How far a kernel reaches by default, in pixels.
BLUR_REACH = 4

Way = Callable[[Tensor, float, torch.Generator], Tensor]


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


def noisy(images: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Gaussian noise, different in each image; at ``strength`` 1 its deviation is :data:`NOISE`."""
    noise = torch.randn(images.shape, generator=generator, device=images.device)
    return images + strength * NOISE * noise


def blurred(images: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Out of focus, a Gaussian of up to :data:`BLUR_PX` pixels."""
    sigma = images.new_full((len(images),), strength * BLUR_PX)
    return gaussian_blur(images, sigma, reach=round(2 * BLUR_PX))


def foggy(images: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Grey over all, densest where a road's horizon is: between the middle and the top."""
    height = images.shape[2]
    rows = torch.linspace(0, 1, height, device=images.device).view(1, 1, height, 1)
    horizon = 0.2 + 0.3 * _uniform(generator, images.device)
    near = ((rows - horizon).clamp(min=0) / (1 - horizon)).clamp(max=1)
    density = strength * FOG * (1 - 0.6 * near)
    grey = 0.6 + 0.35 * _uniform(generator, images.device)
    return torch.lerp(images, torch.full_like(images, grey), density.expand_as(images))


def dark(images: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Down to :data:`DARKEST` of the light, with the noise that comes with it."""
    noise = torch.randn(images.shape, generator=generator, device=images.device)
    return images * (1 - strength * (1 - DARKEST)) + 0.02 * strength * noise


def exchanged(images: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Red for blue, as a driver that says rgb8 of bgr8 gives it."""
    return images.flip(1)


#: The ways by name, as ``lowlat-seg evaluate --degrade`` has them.
BY_NAME: dict[str, Way] = {
    "noise": noisy, "blur": blurred, "fog": foggy, "dark": dark, "colours": exchanged
}  # fmt: skip
#: How often training takes each way.
SHARES = {"noise": 0.35, "blur": 0.25, "fog": 0.2, "dark": 0.15, "colours": 0.05}


class Degraded:
    """``sequence`` with images made worse in the way of this name, at this strength in [0, 1]."""

    def __init__(self, sequence: Sequence, way: str, strength: float) -> None:
        self._sequence, self._way, self._strength = sequence, BY_NAME[way], strength
        self.table, self.rate_hz = sequence.table, sequence.rate_hz

    def __len__(self) -> int:
        return len(self._sequence)

    def __getitem__(self, index: int) -> LabelledFrame:
        frame = self._sequence[index]
        # Fog is a drive's, noise a frame's.
        drive = zlib.crc32(self._sequence.drive(index).encode())
        seed = drive if self._way is foggy else index % len(self)
        generator = torch.Generator().manual_seed(seed)
        pixels = torch.from_numpy(frame.image).permute(2, 0, 1)[None].float() / 255
        worse = self._way(pixels, self._strength, generator).clamp(0, 1)[0].permute(1, 2, 0)
        image = (worse * 255).round().to(torch.uint8).contiguous().numpy()
        return dataclasses.replace(frame, image=image)

    def drive(self, index: int) -> str:
        return self._sequence.drive(index)


def degraded(images: Tensor, share: float, generator: torch.Generator, views: int = 1) -> Tensor:
    """A ``share`` of the images (N, 3, H, W) in [0, 1] made worse in one way each, and clamped.

    ``views``: the batch shows the same scenes so many times, and treats a scene's views alike.
    """
    scenes = len(images) // views
    chances = torch.rand(scenes, 3, generator=generator, device=images.device).tolist()
    out = images.clone()
    for scene, (whether, which, strength) in enumerate(chances):
        if whether < share:
            seen = out[scene::scenes]
            out[scene::scenes] = _way(which)(seen, strength, generator).clamp(0, 1)
    return out


def _way(chance: float) -> Way:
    """The way that a uniform number in [0, 1) stands for."""
    for name, share in SHARES.items():
        chance -= share
        if chance < 0:
            return BY_NAME[name]
    return BY_NAME["colours"]  # rounding left a rest


def _uniform(generator: torch.Generator, device: torch.device) -> float:
    return float(torch.rand((), generator=generator, device=device))
