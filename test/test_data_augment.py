"""Augmentation: image and label stay aligned, and a generator repeats it exactly."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lowlat_seg_ros.lab.data.augment import Augment, restyled, rotate_hue, warp_labels
from lowlat_seg_ros.lab.data.degrading import gaussian_blur


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def batch(count: int = 6) -> tuple[Tensor, Tensor]:
    """Blocks of 16x16 pixels; an image's grey level is 20 times its label."""
    blocks = torch.randint(0, 11, (count, 4, 6), generator=generator(1), dtype=torch.uint8)
    labels = blocks.repeat_interleave(16, 1).repeat_interleave(16, 2)
    return (20 * labels)[:, None].repeat(1, 3, 1, 1), labels


def agreement(images: Tensor, labels: Tensor) -> float:
    """Share of pixels, away from edges, whose grey level says their label."""
    flat = labels.float()[:, None]
    same = -F.max_pool2d(-flat, 5, 1, 2) == F.max_pool2d(flat, 5, 1, 2)
    where = same[:, 0] & (labels != 255)
    # At the rim of the crop an edge just outside it goes unseen.
    where &= F.pad(torch.ones_like(where[:, 2:-2, 2:-2]), (2, 2, 2, 2))
    said = (images[:, 0] * 255 / 20).round().long()
    assert where.float().mean() > 0.05
    return float((said == labels)[where].float().mean())


def test_scale_crop_and_flip_move_image_and_label_alike() -> None:
    augment = Augment((48, 80), scale=(0.5, 2.0), jitter=0.0, hue=0.0, blur=0.0)
    for seed in range(5):
        images, labels = augment(*batch(), generator(seed))
        assert (images.shape, images.dtype) == ((6, 3, 48, 80), torch.float32)
        assert (labels.shape, labels.dtype) == ((6, 48, 80), torch.int64)
        assert agreement(images, labels) == 1.0


def test_outside_the_image_is_ignored() -> None:
    augment = Augment((64, 96), scale=(0.5, 0.5), flip=False, jitter=0.0, hue=0.0, blur=0.0)
    _, labels = augment(*batch(), generator())
    known = labels != 255
    # Half the size each way: a quarter of the crop, a rectangle of 32x48.
    assert known.flatten(1).sum(1).tolist() == [32 * 48] * 6


def test_the_identity_changes_nothing() -> None:
    images, labels = batch()
    augment = Augment((64, 96), scale=(1.0, 1.0), flip=False, jitter=0.0, hue=0.0, blur=0.0)
    out, same = augment(images, labels, generator())
    assert torch.equal(same, labels.long())
    assert torch.allclose(out * 255, images.float(), atol=0.51)


def test_flips_happen_to_about_half() -> None:
    images, labels = batch(200)
    augment = Augment((64, 96), scale=(1.0, 1.0), jitter=0.0, hue=0.0, blur=0.0)
    _, out = augment(images, labels, generator())
    flipped = sum(torch.equal(o, i.flip(-1).long()) for o, i in zip(out, labels, strict=True))
    kept = sum(torch.equal(o, i.long()) for o, i in zip(out, labels, strict=True))
    assert flipped + kept == 200
    assert 70 < flipped < 130


def test_a_generator_repeats_the_augmentation_and_another_does_not() -> None:
    augment = Augment((32, 48))
    first, again, other = (augment(*batch(), generator(s))[0] for s in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert float(first.min()) >= 0.0
    assert float(first.max()) <= 1.0


def test_a_pair_shares_its_geometry_and_not_all_its_colour() -> None:
    images, labels = batch()
    plain = Augment((48, 80), jitter=0.0, hue=0.0, blur=0.0)
    key, current, label = plain.pair(images, images, labels, generator())
    assert torch.equal(key, current)
    assert agreement(current, label) == 1.0
    key, current, _ = Augment((48, 80)).pair(images, images, labels, generator())
    difference = (key - current).abs().mean()
    assert 0.0 < float(difference) < 0.15


@pytest.mark.parametrize("value", [0, 10, 255])
def test_labels_are_never_mixed(value: int) -> None:
    labels = torch.full((1, 8, 8), value, dtype=torch.uint8)
    labels[:, :, 4:] = 3
    theta = torch.tensor([[[1.3, 0.2, 0.1], [0.1, 0.9, 0.0]]])
    grid = F.affine_grid(theta, [1, 3, 16, 16], align_corners=False)
    assert set(warp_labels(labels, grid).unique().tolist()) <= {value, 3, 255}


def test_a_third_of_the_colour_circle_moves_red_to_green() -> None:
    red = torch.tensor([0.6, 0.2, 0.2]).view(1, 3, 1, 1)
    turned = rotate_hue(red, torch.tensor([2 * torch.pi / 3])).flatten()
    assert torch.allclose(turned, torch.tensor([0.2, 0.6, 0.2]), atol=1e-6)
    grey = torch.full((1, 3, 2, 2), 0.3)
    assert torch.allclose(rotate_hue(grey, torch.tensor([1.0])), grey, atol=1e-6)


def test_the_blur_is_a_gaussian_of_each_image_s_own_width() -> None:
    dot = torch.zeros(2, 3, 21, 21)
    dot[:, :, 10, 10] = 1.0
    out = gaussian_blur(dot, torch.tensor([0.0, 1.5]))
    assert torch.equal(out[0], dot[0])
    assert torch.allclose(out[1].sum(dim=(1, 2)), torch.ones(3), atol=1e-5)
    profile = out[1, 0].sum(dim=0)
    variance = (profile * (torch.arange(21) - 10) ** 2).sum()
    assert 1.9 < float(variance) < 2.25  # 1.5 squared, less what the kernel's reach cuts off


def test_mixed_precision_leaves_images_as_they_are() -> None:
    augment = Augment((32, 48))
    plain = augment(*batch(), generator(3))[0]
    with torch.autocast("cpu", torch.bfloat16):
        mixed = augment(*batch(), generator(3))[0]
        key, _, _ = augment.pair(*batch()[:1], *batch(), generator(3))
    assert mixed.dtype == key.dtype == torch.float32
    assert torch.equal(plain, mixed)


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
