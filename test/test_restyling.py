"""Rendered images in another look: by their labels, and exact given a generator."""

from __future__ import annotations

import torch

from lowlat_seg_ros.lab.data.restyling import restyled


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(4)


def halves() -> tuple[torch.Tensor, torch.Tensor]:
    """Grey images whose left half is class 3 and right half unknown."""
    labels = torch.full((6, 32, 48), 3)
    labels[:, :, 24:] = 255
    return torch.full((6, 3, 32, 48), 0.5), labels


def test_things_get_colours_of_their_own() -> None:
    images, labels = halves()
    out = restyled(images, labels, 1.0, generator())
    assert out.shape == images.shape
    assert 0 <= out.min() <= out.max() <= 1
    left, right = (part.mean(dim=(2, 3)) for part in (out[..., :24], out[..., 24:]))
    assert ((left - right).abs().amax(dim=1) > 0.02).all()  # apart within each image
    assert (left.std(dim=0) > 0.02).all()  # and from image to image


def test_a_share_is_restyled_and_the_same_each_time() -> None:
    images, labels = (part.repeat(20, *[1] * (part.ndim - 1)) for part in halves())
    out = restyled(images, labels, 0.5, generator())
    changed = (out != images).flatten(1).any(dim=1).float().mean().item()
    assert 0.3 < changed < 0.7
    assert torch.equal(out, restyled(images, labels, 0.5, generator()))
    assert restyled(images, labels, 0.0, generator()) is images
