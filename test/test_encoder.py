"""An encoder of its own: Sl that is no part of Sh, and Sh that reads the image."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from training_runs import changed, train

from lowlat_seg_ros.config import NETWORKS, ConfigError, NetworkConfig
from lowlat_seg_ros.engine.preprocess import plan, resample
from lowlat_seg_ros.frames import Frame
from lowlat_seg_ros.lab.baselines.stream import FullEngine
from lowlat_seg_ros.network import checkpoint
from lowlat_seg_ros.network.segmenter import Segmenter

pytestmark = pytest.mark.usefixtures("rendered_once")


@torch.inference_mode()
def test_neither_track_sees_the_other(tiny_ddr: Segmenter) -> None:
    """F_l comes from the encoder alone, F_h from the backbone alone."""
    image = torch.randn(1, 3, 48, 72)
    low, high = tiny_ddr.lower(image), tiny_ddr.higher(tiny_ddr.source(image))
    assert low.shape == (1, tiny_ddr.low_channels, 6, 9)
    assert high.shape == (1, tiny_ddr.config.high_channels, 6, 9)
    assert tiny_ddr.source(image, low) is image
    for part, low_stays in ((tiny_ddr.encoder, False), (tiny_ddr.backbone, True)):
        assert part is not None
        for parameter in part.parameters():
            parameter.zero_()
        assert torch.equal(tiny_ddr.lower(image), low) == low_stays
        if not low_stays:
            assert torch.equal(tiny_ddr.higher(image), high)
            low = tiny_ddr.lower(image)
    assert not torch.equal(tiny_ddr.higher(image), high)


@torch.inference_mode()
def test_source_of_a_shared_sl_is_f_l(tiny: Segmenter) -> None:
    image = torch.randn(1, 3, 16, 16)
    low = tiny.lower(image)
    assert tiny.source(image, low) is low
    assert torch.equal(tiny.source(image), low)


def test_every_slice_of_sh_pauses(tiny_ddr: Segmenter) -> None:
    """As often as it has blocks, those of the backbone's lower part among them."""
    calls: list[int] = []
    slices: list[object] = []

    def step(function: Callable[..., torch.Tensor], *inputs: torch.Tensor) -> torch.Tensor:
        slices.append(function)
        return function(*inputs)

    with torch.inference_mode():
        tiny_ddr.higher(torch.randn(1, 3, 16, 16), lambda: calls.append(1), step)
    blocks = [*tiny_ddr.backbone.lower_blocks(), *tiny_ddr.backbone.higher_blocks()]
    assert slices == [tiny_ddr.backbone.stem, *blocks, tiny_ddr.context]
    assert len(calls) == len(slices) - 1


@torch.inference_mode()
def test_the_mask_is_made_of_both_answers_and_a_correction(tiny_ddr: Segmenter) -> None:
    image = torch.randn(1, 3, 32, 40)
    low, high = tiny_ddr.lower(image), tiny_ddr.higher(image)
    correction = tiny_ddr.classifier(tiny_ddr.fusion(high, tiny_ddr.adapt(low)))
    both = 0.7 * tiny_ddr.classify_high(high) + 0.3 * tiny_ddr.classify_low(low)
    assert torch.allclose(tiny_ddr.classify_fused(high, low), correction + both, atol=1e-5)


@torch.inference_mode()
def test_all_readers_share_one_convolution(tiny_ddr: Segmenter) -> None:
    """It ends Sl: selector, predictor and AdaptNet read it as it is, without a copy."""
    image, net = torch.randn(1, 3, 32, 40), tiny_ddr
    low = net.lower(image)
    assert net.encoder is not None
    assert torch.equal(low, net.shared.reduce(net.encoder(image)))
    assert low.shape[1] == net.low_channels == net.config.module_channels
    for seen in (net.predictor.reduce(low), net.selector.reduce(low), net.adapt(low)):
        assert seen is low


def test_a_convolution_of_two_is_refused() -> None:
    with pytest.raises(ConfigError, match="choose one of 0, 1, 3"):
        NetworkConfig(shared_reduction=2)


@pytest.mark.parametrize("blocks", [(), (1, 1), (1, 0, 1), (1, 3, 1)])
def test_encoders_have_three_stages(blocks: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match=r"choose one of \(1, 1, 1\), "):
        NetworkConfig(encoder_blocks=blocks)


def test_an_ensemble_needs_residual_fusion() -> None:
    with pytest.raises(ConfigError, match="residual_fusion"):
        NetworkConfig(ensemble=0.5)


def test_the_full_network_does_without_the_encoder(
    tiny_ddr: Segmenter, make_frame: Callable[..., Frame]
) -> None:
    assert tiny_ddr.encoder is not None
    tiny_ddr.encoder.register_forward_hook(lambda *_: pytest.fail("the encoder ran"))
    assert FullEngine(tiny_ddr).process(make_frame(0)).mask.shape == (48, 64)


def test_an_image_is_resampled_as_features_are() -> None:
    """Where load is shed, the key frame's source is brought to another size."""
    old, new = plan((48, 64), 0), plan((48, 64), 0, 0.5)
    ramp = torch.arange(64.0).expand(1, 3, 48, 64)
    half = resample(ramp, old, new)
    assert half.shape == (1, 3, *new.padded)
    assert torch.allclose(half[0, 0, 0, 1:31], 2 * torch.arange(1.0, 31) + 0.5, atol=0.51)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A network whose Sl is the lower part of its backbone, trained on CamVid."""
    colours = tuple((i, i, i) for i in range(11))
    stages = {"stages": [{"stage": "base", "data": ["CamVid train"], "options": {}}]}
    header = checkpoint.Header(NETWORKS["tiny"], tuple("abcdefghijk"), colours, 0.2, stages)
    checkpoint.save(tmp_path / "base", Segmenter(NETWORKS["tiny"]), header, torch.float32)
    return tmp_path / "base"


@pytest.mark.slow
def test_it_is_trained_with_propagation(base: Path, tmp_path: Path) -> None:
    start = ["--start-from", base, "--network", "tiny_ddr"]
    assert train("base", *start, "--out", tmp_path) == 0
    after = ["--start-from", tmp_path / "base.safetensors"]
    assert train("propagation", *after, "--out", tmp_path) == 0
    trained, header = checkpoint.load(tmp_path / "propagation.safetensors")
    names = [stage["stage"] for stage in header.provenance["stages"]]
    assert names == ["base", "base", "propagation"]
    assert header.provenance["licence"] == "research use only (CamVid)"
    before, _ = checkpoint.load(tmp_path / "base.safetensors")
    parts = changed(checkpoint.weights(before), checkpoint.weights(trained))
    assert parts == {
        "encoder", "shared", "predictor", "fusion", "classifier", "low_classifier",
    }  # fmt: skip
