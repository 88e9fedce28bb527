"""Images made worse as cameras do: noise, fog, rain, dirt, JPEG blocks, glare and the like.

Training takes the ways of :data:`SHARES`, which ``lowlat-seg evaluate --degrade`` has as well; no
network was trained on the others, which ``lowlat-seg calibrate`` takes. A way's strength lies in
[0, 1]; Hendrycks and Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions",
ICLR 2019, have five strengths of each, and so have we, see :data:`STRENGTHS`.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Callable

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lowlat_seg_ros.lab.data.sequence import LabelledFrame, Sequence

#: Largest strengths: noise and fog as shares of full scale, blur in pixels, the least light left.
NOISE, BLUR_PX, FOG, DARKEST = 60 / 255, 5.0, 0.75, 0.12

#: How far a kernel reaches by default, in pixels.
BLUR_REACH = 4

Way = Callable[[Tensor, float, torch.Generator], Tensor]

STRENGTHS = (0.2, 0.4, 0.6, 0.8, 1.0)


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
    horizon = 0.2 + 0.3 * _numbers(generator, 1)[0]
    near = ((rows - horizon).clamp(min=0) / (1 - horizon)).clamp(max=1)
    density = strength * FOG * (1 - 0.6 * near)
    grey = 0.6 + 0.35 * _numbers(generator, 1)[0]
    return torch.lerp(images, torch.full_like(images, grey), density.expand_as(images))


def dark(images: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Down to :data:`DARKEST` of the light, with the noise that comes with it."""
    noise = torch.randn(images.shape, generator=generator, device=images.device)
    return images * (1 - strength * (1 - DARKEST)) + 0.02 * strength * noise


def exchanged(images: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Red for blue, as a driver that says rgb8 of bgr8 gives it."""
    return images.flip(1)


def rainy(images: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Bright streaks, all falling alike, and the veil of drops too far away to be seen."""
    _, _, height, width = images.shape
    angle, chance = _numbers(generator, 2)
    drops = torch.rand(height, width, generator=generator, device=images.device)
    seeds = (drops < 0.02 * strength).float()[None, None]
    length = max(3, round(height * (0.03 + 0.05 * strength)) | 1)
    streaks = F.conv2d(seeds, _line(length, 75 + 30 * angle, images.device), padding=length // 2)
    streaks = (streaks.clamp(max=1) * (0.5 + 0.3 * chance)).expand_as(images)
    veiled = torch.lerp(images, torch.full_like(images, 0.65), 0.35 * strength)
    return torch.lerp(veiled, torch.full_like(images, 0.85), streaks)


def dirty(images: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Patches of mud and water on the lens, out of focus, that hide up to half of the image."""
    _, _, height, width = images.shape
    coarse = torch.rand(1, 1, 7, 9, generator=generator, device=images.device)
    field = F.interpolate(coarse, (height, width), mode="bicubic", align_corners=False)
    limit = torch.quantile(field, 1 - 0.5 * strength)
    cover = ((field - limit) * 12 + 0.5).clamp(0, 1) * (0.6 + 0.4 * strength)
    colour = images.new_tensor([0.30, 0.26, 0.20]) * (0.5 + _numbers(generator, 1)[0])
    mud = colour.view(1, 3, 1, 1).expand_as(images)
    small = F.interpolate(images, scale_factor=1 / 12, mode="area", recompute_scale_factor=True)
    smeared = F.interpolate(small, (height, width), mode="bilinear", align_corners=False)
    return torch.lerp(images, torch.lerp(smeared, mud, 0.8), cover)


def saturated(images: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Too long an exposure: all is up to six times as bright, and clipped."""
    return (images * (1 + 5 * strength)).clamp(max=1)


def blocky(images: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """JPEG of a quality from 30 down to 2."""
    quality = [cv2.IMWRITE_JPEG_QUALITY, round(30 * (2 / 30) ** strength)]
    out = []
    for image in images:
        pixels = (image.permute(1, 2, 0).clamp(0, 1) * 255).round().byte().cpu().numpy()
        _, data = cv2.imencode(".jpg", np.ascontiguousarray(pixels[..., ::-1]), quality)
        decoded = cv2.imdecode(data, cv2.IMREAD_COLOR)
        assert decoded is not None  # it was encoded two lines above
        rgb = np.ascontiguousarray(decoded[..., ::-1])
        out.append(torch.from_numpy(rgb).permute(2, 0, 1).to(images) / 255)
    return torch.stack(out)


def swapped(images: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Two channels or all three in another order; at low strengths mixed with the right one."""
    orders = ((2, 1, 0), (1, 0, 2), (0, 2, 1), (1, 2, 0), (2, 0, 1))
    order = orders[int(_numbers(generator, 1)[0] * len(orders)) % len(orders)]
    return torch.lerp(images, images[:, list(order)], strength)


def blackened(images: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Light that fades without a sensor's noise, down to none at all."""
    return images * (1 - strength) ** 2


def cut_short(images: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Rows from below that never came, up to all of them: black or grey, as the driver fills in."""
    filled = images.clone()
    filled[:, :, round(images.shape[2] * (1 - strength)) :] = 0.5 * round(_numbers(generator, 1)[0])
    return filled


def shaken(images: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Blurred along a line, by motion of up to a twelfth of the image's height."""
    length = max(3, round(images.shape[2] / 12 * strength) | 1)
    line = _line(length, 180 * _numbers(generator, 1)[0], images.device)
    padded = F.pad(images, (length // 2,) * 4, mode="replicate")
    return F.conv2d(padded, (line / line.sum()).repeat(3, 1, 1, 1), groups=3)


def speckled(images: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Pixels that are black or white, up to a fifth of them: dead ones, or bits that flipped."""
    chances = torch.rand(
        images.shape[0], 1, *images.shape[2:], generator=generator, device=images.device
    )
    dead = 0.1 * strength
    return images.masked_fill(chances < dead, 0).masked_fill(chances > 1 - dead, 1)


def glaring(images: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """A low sun in the image, whose light is scattered over all of it."""
    _, _, height, width = images.shape
    across, down = _numbers(generator, 2)
    rows = torch.linspace(0, 1, height, device=images.device).view(-1, 1) - 0.5 * down
    columns = torch.linspace(0, width / height, width, device=images.device) - across * 1.3
    light = 1.6 * strength * torch.exp(-torch.sqrt(rows**2 + columns**2) / 0.35)
    return torch.lerp(images, torch.ones_like(images), (0.25 * strength + light).clamp(max=1))


def spotted(images: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Drops of water on the lens, up to 40; each shows a small picture upside down of around it."""
    _, _, height, width = images.shape
    rows, columns = torch.meshgrid(
        torch.arange(height, device=images.device) / height,
        torch.arange(width, device=images.device) / height,
        indexing="ij",
    )
    place = torch.stack([columns, rows], dim=-1)
    seen, cover = place.clone(), torch.zeros_like(rows)
    for _ in range(max(1, round(40 * strength))):
        across, down, size = _numbers(generator, 3)
        centre = place.new_tensor([across * width / height, down])
        radius = 0.02 + 0.06 * size
        inside = ((radius - (place - centre).norm(dim=-1)) / (0.2 * radius)).clamp(0, 1)
        seen = torch.where(inside[..., None] > 0, centre - 3 * (place - centre), seen)
        cover = torch.maximum(cover, inside)
    scale = place.new_tensor([height / width, 1.0])
    bent = F.grid_sample(
        gaussian_blur(images, images.new_full((len(images),), 2.0)),
        (2 * seen * scale - 1).expand(len(images), -1, -1, -1),
        padding_mode="reflection",
        align_corners=False,
    )
    return torch.lerp(images, bent, cover)


def flickering(images: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Bright and dark bands across, as lamps that flicker give them under a rolling shutter."""
    rows = torch.linspace(0, 3, images.shape[2], device=images.device).view(1, 1, -1, 1)
    light = torch.sin(2 * torch.pi * (rows + _numbers(generator, 1)[0]))
    return images * (1 + 0.9 * strength * light)


#: All ways by name.
BY_NAME: dict[str, Way] = {
    "noise": noisy, "blur": blurred, "fog": foggy, "dark": dark, "colours": exchanged,
    "rain": rainy, "dirt": dirty, "saturation": saturated, "jpeg": blocky, "channels": swapped,
    "black": blackened, "rows": cut_short, "motion": shaken, "speckles": speckled, "glare": glaring,
    "drops": spotted, "flicker": flickering,
}  # fmt: skip

#: How often training takes each of its ways.
SHARES = {"noise": 0.35, "blur": 0.25, "fog": 0.2, "dark": 0.15, "colours": 0.05}


def corrupted(image: np.ndarray, kind: str, strength: float, seed: int) -> np.ndarray:
    """``image``, uint8 (H, W, 3) RGB, as a camera with this fault gives it; strength in [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255
    worse = BY_NAME[kind](pixels, strength, generator).clamp(0, 1)[0].permute(1, 2, 0)
    return (worse * 255).round().to(torch.uint8).contiguous().numpy()


class Degraded:
    """``sequence`` with images made worse in the way of this name, at this strength in [0, 1]."""

    def __init__(self, sequence: Sequence, way: str, strength: float) -> None:
        self._sequence, self._way, self._strength = sequence, way, strength
        self.table, self.rate_hz = sequence.table, sequence.rate_hz

    def __len__(self) -> int:
        return len(self._sequence)

    def __getitem__(self, index: int) -> LabelledFrame:
        frame = self._sequence[index]
        # Fog is a drive's, noise a frame's.
        drive = zlib.crc32(self._sequence.drive(index).encode())
        seed = drive if self._way == "fog" else index % len(self)
        return dataclasses.replace(
            frame, image=corrupted(frame.image, self._way, self._strength, seed)
        )

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


def _line(length: int, degrees: float, device: torch.device) -> Tensor:
    """(1, 1, length, length): ones along a line through the middle, at this angle."""
    kernel = np.zeros((length, length), np.uint8)
    middle, radians = length // 2, np.deg2rad(degrees)
    across, down = round(middle * np.cos(radians)), round(middle * np.sin(radians))
    cv2.line(kernel, (middle - across, middle - down), (middle + across, middle + down), 1)
    return torch.from_numpy(kernel).float()[None, None].to(device)


def _numbers(generator: torch.Generator, count: int) -> list[float]:
    """Uniform, in [0, 1)."""
    numbers: list[float] = torch.rand(count, generator=generator, device=generator.device).tolist()
    return numbers
