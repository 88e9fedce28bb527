"""Images in bfloat16: to the bit what the network rounds them to."""

from __future__ import annotations

import copy

import cv2
import numpy as np
import pytest
import torch

from lowlat_seg_ros.config import NETWORKS, EngineConfig
from lowlat_seg_ros.engine.engine import Engine
from lowlat_seg_ros.engine.preprocess import normalised, plan, resample
from lowlat_seg_ros.engine.runner import Runner
from lowlat_seg_ros.engine.schedule import LEVELS
from lowlat_seg_ros.frames import Frame, Segmentation
from lowlat_seg_ros.network import inference
from lowlat_seg_ros.network.segmenter import Segmenter
from lowlat_seg_ros.network.trunk import IMAGENET

#: Every byte of every channel.
BYTES = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, axis=2)


def random_image(height: int, width: int, seed: int = 0) -> np.ndarray:
    """uint8 (height, width, 3)."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def prepared(name: str) -> Segmenter:
    """In bfloat16, with random weights."""
    torch.manual_seed(0)
    return inference.prepare(Segmenter(NETWORKS[name]).eval(), torch.bfloat16)


def test_is_rounded_to_the_bit() -> None:
    BYTES.flags.writeable = False  # as images of messages are
    for image in (BYTES, random_image(8, 40), random_image(24, 8)):
        rounded = normalised(image, torch.bfloat16, IMAGENET)
        assert rounded.dtype == torch.bfloat16
        assert rounded.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(rounded, normalised(image, torch.float32, IMAGENET).bfloat16())


def test_the_network_says_what_it_rounds_to() -> None:
    plain = Segmenter(NETWORKS["tiny"]).eval()
    assert plain.input_dtype == torch.float32
    fast = inference.prepare(copy.deepcopy(plain), torch.bfloat16)
    assert fast.input_dtype == torch.bfloat16
    assert copy.deepcopy(fast).input_dtype == torch.bfloat16
    # What was prepared before stays as it is.
    assert inference.prepare(fast).input_dtype == torch.bfloat16
    assert inference.prepare(inference.prepare(plain), torch.bfloat16).input_dtype == torch.float32


@pytest.mark.parametrize("name", ["tiny", "resnet18_ddr"])
@torch.inference_mode()
def test_features_are_the_same_to_the_bit(name: str) -> None:
    """Of Sl, and of Sh where that reads the image."""
    segmenter = prepared(name)
    rounded = Runner(segmenter).image(random_image(64, 96), plan((64, 96), 0))[0]
    whole = normalised(random_image(64, 96), torch.float32, IMAGENET)
    assert (rounded.dtype, whole.dtype) == (torch.bfloat16, torch.float32)
    low = segmenter.lower(whole)
    assert torch.equal(segmenter.lower(rounded), low)
    high = segmenter.higher(segmenter.source(whole, low))
    assert torch.equal(segmenter.higher(segmenter.source(rounded, low)), high)


def test_an_image_of_another_size_is_rounded_once_more_and_not_before() -> None:
    old, new = plan((64, 96), 0), plan((64, 96), 0, 0.75)
    rounded = normalised(random_image(64, 96), torch.bfloat16, IMAGENET)
    assert torch.equal(resample(rounded, old, new), resample(rounded.float(), old, new).bfloat16())


@pytest.mark.slow
def test_masks_are_the_same_while_load_is_shed(tiny_ddr: Segmenter) -> None:
    """Key frames keep the image where Sh reads it, and change its size with that of frames."""
    rounded = inference.prepare(tiny_ddr, torch.bfloat16)
    whole = copy.deepcopy(rounded)
    whole.input_dtype = torch.float32
    picture = cv2.resize(random_image(9, 12), (144, 96))
    frames = [Frame(picture[:, n : n + 96], n * 10**8) for n in range(13)]

    def run(segmenter: Segmenter) -> list[Segmentation]:
        now = iter(range(10**6))
        with Engine.deterministic(
            segmenter,
            EngineConfig(max_latency_ms=1.0),
            threshold=0.0,
            delay_frames=2,
            clock=lambda: next(now) * 10**7,
        ) as engine:
            return [engine.process(frame) for frame in frames]

    one, other = run(rounded), run(whole)
    levels = [result.deadline.level for result in one]
    assert levels[-1] == len(LEVELS) - 1
    agree = [(a.mask == b.mask).mean() for a, b in zip(one, other, strict=True)]
    unscaled = sum(LEVELS[level].scale == 1 for level in levels)
    assert min(agree[:unscaled]) == 1
    assert min(agree) > 0.995
    assert len(np.unique(one[-1].mask)) > 3
