"""Images made worse as cameras do it: in training, and to measure what it costs."""

from __future__ import annotations

import argparse

import pytest
import torch

from lowlat_seg_ros.config import ConfigError
from lowlat_seg_ros.lab.data import dataset
from lowlat_seg_ros.lab.data.degrading import (
    BLUR_PX,
    BY_NAME,
    FOG,
    NOISE,
    SHARES,
    Degraded,
    degraded,
)
from lowlat_seg_ros.lab.data.synthetic import RenderedDrive


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(3)


def test_strengths_mean_what_they_say() -> None:
    grey = torch.full((1, 3, 64, 96), 0.5)
    noise = BY_NAME["noise"](grey, 0.75, generator()) - grey
    assert noise.std().item() == pytest.approx(0.75 * NOISE, rel=0.02)
    dot = torch.zeros(1, 3, 65, 65)
    dot[..., 32, 32] = 1.0
    spread = BY_NAME["blur"](dot, 1.0, generator())[0, 0]
    rows = torch.arange(65.0) - 32
    variance = (spread.sum(dim=1) * rows**2).sum() / spread.sum()
    assert variance.sqrt().item() == pytest.approx(BLUR_PX, rel=0.15)  # its tails are cut off
    dimmed = BY_NAME["dark"](grey, 1.0, generator())
    assert dimmed.mean().item() == pytest.approx(0.12 * 0.5, abs=0.01)
    colours = torch.rand(1, 3, 8, 8)
    assert torch.equal(BY_NAME["colours"](colours, 1.0, generator()), colours.flip(1))


def test_fog_is_densest_far_away() -> None:
    fog = BY_NAME["fog"](torch.zeros(1, 3, 100, 8), 1.0, generator())[0, 0, :, 0]
    assert fog[0] > 1.5 * fog[-1] > 0
    assert fog.max().item() <= FOG


@pytest.mark.parametrize("way", SHARES)
def test_nothing_happens_at_no_strength(way: str) -> None:
    images = torch.rand(2, 3, 16, 24)
    if way != "colours":
        torch.testing.assert_close(BY_NAME[way](images, 0.0, generator()), images)


def test_a_share_of_a_batch_is_degraded_and_both_views_of_a_scene_alike() -> None:
    scenes = torch.rand(200, 3, 8, 8)
    out = degraded(torch.cat([scenes, scenes]), 0.4, generator(), views=2)
    first, second = ((part != scenes).flatten(1).any(dim=1) for part in out.chunk(2))
    assert torch.equal(first, second)
    assert 0.3 < first.float().mean().item() < 0.5
    assert 0 <= out.min() <= out.max() <= 1
    assert torch.equal(degraded(scenes, 0.4, generator()), degraded(scenes, 0.4, generator()))


def test_a_degraded_drive_keeps_its_labels_and_is_the_same_each_time() -> None:
    drive = RenderedDrive(seed=1, frames=2, rate_hz=15.0, size=(48, 64))
    worse = Degraded(drive, "noise", 0.75)
    assert len(worse) == 2
    assert (worse[1].label == drive[1].label).all()
    assert (worse[1].image != drive[1].image).any()
    assert (worse[1].image == worse[1].image).all()
    assert (worse[0].image != worse[1].image).any()
    assert worse.drive(0) == drive.drive(0)


def parsed(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    dataset.configure(parser)
    parser.set_defaults(rate=15.0)
    args = parser.parse_args(words)
    dataset.check(args)
    return args


def test_the_option_names_way_and_strength() -> None:
    assert dataset.degradation("noise:45") == ("noise", 0.75)
    assert dataset.degradation("fog") == ("fog", 1.0)
    name, frames = dataset.chosen(parsed("--degrade", "blur:2.5", "--frames", "1"), 15.0)
    assert name.endswith("blur:2.5")
    assert isinstance(frames, Degraded)
    for wrong in ("rain", "noise:61", "blur:much", "fog:-1"):
        with pytest.raises(ConfigError, match="--degrade is"):
            parsed("--degrade", wrong)
    with pytest.raises(ConfigError, match="--only-drive is for --dataset camvid"):
        parsed("--only-drive", "0001TP")
