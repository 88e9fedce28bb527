"""Backbones, sizes and the parts of the network together."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from lowlat_seg_ros.config import DEFAULT_NETWORK, NETWORKS, ConfigError, NetworkConfig, name_of
from lowlat_seg_ros.lab.training.pretrained import load_resnet, widen
from lowlat_seg_ros.network.fast_track import AdaptNet, Classifier
from lowlat_seg_ros.network.resnet import ContextHead, ResNet
from lowlat_seg_ros.network.segmenter import Segmenter

BATCHNORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def torchvision_keys(depths: list[int], bottleneck: bool) -> set[str]:
    """State keys of torchvision's ResNets without ``fc``, written down from its resnet.py."""
    keys = {"conv1.weight"} | {f"bn1.{name}" for name in BATCHNORM}
    for stage, depth in enumerate(depths, start=1):
        for block in range(depth):
            prefix = f"layer{stage}.{block}"
            for conv in (1, 2, 3) if bottleneck else (1, 2):
                keys.add(f"{prefix}.conv{conv}.weight")
                keys |= {f"{prefix}.bn{conv}.{name}" for name in BATCHNORM}
            # The first block of a stage projects its shortcut where shapes change.
            if block == 0 and (stage > 1 or bottleneck):
                keys.add(f"{prefix}.downsample.0.weight")
                keys |= {f"{prefix}.downsample.1.{name}" for name in BATCHNORM}
    return keys


@pytest.mark.parametrize(
    ("name", "depths", "bottleneck", "parameters"),
    [
        ("resnet18", [2, 2, 2, 2], False, 11_176_512),
        ("resnet34", [3, 4, 6, 3], False, 21_284_672),
        ("resnet50", [3, 4, 6, 3], True, 23_508_032),
        ("resnet101", [3, 4, 23, 3], True, 42_500_160),
    ],
)
def test_names_and_sizes_are_torchvisions(
    name: str, depths: list[int], bottleneck: bool, parameters: int
) -> None:
    with torch.device("meta"):
        backbone = ResNet(NetworkConfig(backbone=name))
    assert set(backbone.state_dict()) == torchvision_keys(depths, bottleneck)
    # torchvision's published counts, less 1000 * (outputs + 1) of fc.
    assert sum(p.numel() for p in backbone.parameters()) == parameters


def test_imagenet_file_loads_strictly(tmp_path: Path) -> None:
    source, target = ResNet(NETWORKS["tiny"]), ResNet(NETWORKS["tiny"])
    state = source.state_dict()
    fc = {"fc.weight": torch.zeros(1000, 64), "fc.bias": torch.zeros(1000)}
    torch.save(state | fc, tmp_path / "whole.pth")
    load_resnet(target, str(tmp_path / "whole.pth"))
    for name, tensor in target.state_dict().items():
        assert torch.equal(tensor, state[name])
    del state["layer3.0.conv1.weight"]
    torch.save(state, tmp_path / "missing.pth")
    with pytest.raises(RuntimeError, match=r"layer3\.0\.conv1\.weight"):
        load_resnet(target, str(tmp_path / "missing.pth"))


@pytest.mark.parametrize("upsampling", [1, 2])
@pytest.mark.parametrize("output_stride", [8, 16])
@pytest.mark.parametrize("backbone", ["tiny", "resnet18", "resnet50"])
def test_shapes(backbone: str, output_stride: int, upsampling: int) -> None:
    config = NetworkConfig(
        backbone=backbone,
        output_stride=output_stride,
        high_channels=24,
        classifier_upsampling=upsampling,
        context_skip=4 * (upsampling - 1),
        adapt_context=16 * (upsampling - 1),
        residual_fusion=upsampling > 1,
    )
    net = Segmenter(config).eval()
    with torch.inference_mode():
        low = net.lower(torch.randn(1, 3, 48, 72))
        kept = low.clone()
        high = net.higher(low)
        reduced = net.predictor.reduce(low)
        weights = net.predictor(net.predictor.remember(reduced), reduced)
        selector = net.selector.reduce(low)
        assert low.shape == (1, net.backbone.low_channels, 6, 9)
        assert high.shape == (1, 24, 6, 9)
        assert weights.shape == (1, 81, 6, 9)
        logits = (1, 11, 6 * upsampling, 9 * upsampling)
        assert net.classify_fused(net.propagate(high, weights), low).shape == logits
        assert net.classify_low(low).shape == net.classify_high(high).shape == logits
        deviation = net.selector.deviation(selector, selector)
    assert deviation.shape == (1,)
    assert 0 <= deviation.item() <= 1
    assert torch.equal(low, kept)  # cached by the key frame: nobody may write to it


@pytest.mark.parametrize(("name", "bytes_each"), [("resnet18", 2), (DEFAULT_NETWORK, 1.1)])
def test_networks_fit_their_files(name: str, bytes_each: float) -> None:
    """25 MB, in half precision or mostly in 8 bits."""
    with torch.device("meta"):
        net = Segmenter(NETWORKS[name])
    assert bytes_each * sum(p.numel() for p in net.parameters()) <= 25_000_000


def test_paper_network_has_the_papers_sizes() -> None:
    with torch.device("meta"):
        net = Segmenter(NETWORKS["paper_resnet101"])
    assert net.backbone.low_channels == 1024
    assert net.predictor.reduction[0].weight.shape == (256, 1024, 3, 3)
    assert net.predictor.logits.out_channels == 81
    assert net.context.project.out_channels == 256
    assert net.classifier.out_channels == 19
    blocks = list(net.backbone.higher_blocks())
    assert len(blocks) == (23 - 3) + 3  # conv4_4 .. conv4_23 and conv5_1 .. conv5_3


def test_a_shared_reduction_travels_with_f_l() -> None:
    """Selector, predictor and AdaptNet read it and nothing else, and Sh reads F_l without it."""
    torch.manual_seed(0)
    net = Segmenter(dataclasses.replace(NETWORKS["tiny"], shared_reduction=1)).eval()
    image, high = torch.randn(1, 3, 32, 40), torch.randn(1, 8, 4, 5)
    with torch.inference_mode():
        low = net.lower(image)
        own = net.backbone.lower(image)
        assert low.shape == (1, net.low_channels, 4, 5)
        assert torch.equal(low[:, :-8], own)
        reduced = net.predictor.reduce(low)
        assert torch.equal(reduced, net.shared.reduce(own))
        assert torch.equal(net.selector.reduce(low), reduced)
        blind = torch.cat([torch.zeros_like(own), reduced], dim=1)
        assert torch.equal(net.classify_low(blind), net.classify_low(low))
        assert torch.equal(net.classify_fused(high, blind), net.classify_fused(high, low))
        deaf = torch.cat([own, torch.zeros_like(reduced)], dim=1)
        assert torch.equal(net.higher(deaf), net.higher(low))


def test_a_shared_reduction_is_all_that_resnet101_fast_changes() -> None:
    fast, paper = NETWORKS["resnet101_fast"], NETWORKS["paper_resnet101"]
    assert dataclasses.replace(fast, shared_reduction=0) == paper
    with torch.device("meta"):
        net = Segmenter(fast)
    shared = net.shared.reduce[0]
    assert shared.weight.shape == (256, 1024, 1, 1)
    readers = (net.predictor, net.selector, net.adapt)
    inputs = {m.in_channels for r in readers for m in r.modules() if isinstance(m, torch.nn.Conv2d)}
    assert inputs == {256, 512}  # none of F_l's 1024, 512 for both frames


def test_block_split_runs_every_block_once() -> None:
    """Sl and Sh together are the network, wherever it is cut."""
    base = NETWORKS["tiny"]
    torch.manual_seed(0)
    whole = ResNet(dataclasses.replace(base, split="layer2")).eval()
    cut = ResNet(dataclasses.replace(base, split="layer3.0")).eval()
    cut.load_state_dict(whole.state_dict())
    image = torch.randn(1, 3, 32, 32)

    def run(backbone: ResNet) -> torch.Tensor:
        x = backbone.lower(image)
        for block in backbone.higher_blocks():
            x = block(x)
        return x

    with torch.inference_mode():
        assert torch.equal(run(whole), run(cut))


@pytest.mark.parametrize(
    ("split", "stride"),
    [
        ("layer1", 8),
        ("layer4", 8),
        ("layer9", 8),
        ("stem", 8),
        ("layer2.7", 8),
        ("", 8),
        ("layer3", 16),
    ],
)
def test_impossible_split(split: str, stride: int) -> None:
    with pytest.raises(ConfigError, match="split is"):
        ResNet(NetworkConfig(split=split, output_stride=stride))


def test_sh_calls_pause_between_its_blocks() -> None:
    net = Segmenter(NETWORKS["resnet18"]).eval()
    calls: list[int] = []
    with torch.inference_mode():
        net.higher(net.lower(torch.randn(1, 3, 16, 16)), lambda: calls.append(1))
    assert len(calls) == 4


def test_sh_can_be_stopped_at_a_pause() -> None:
    net = Segmenter(NETWORKS["tiny"]).eval()

    def stop() -> None:
        raise InterruptedError

    with torch.inference_mode(), pytest.raises(InterruptedError):
        net.higher(net.lower(torch.randn(1, 3, 16, 16)), stop)


def test_selector_sees_change_whatever_its_direction() -> None:
    """An unchanged frame gives the bias alone, and a change and its opposite differ from it."""
    torch.manual_seed(0)
    selector = Segmenter(NETWORKS["tiny"]).eval().selector
    a, b = (selector.reduce(torch.randn(1, 16, 8, 8)) for _ in range(2))
    with torch.inference_mode():
        still, there, back = selector(a, a), selector(a, b), selector(b, a)
        assert torch.equal(still, selector(b, b))
    assert not torch.allclose(there - still, still - back)


def test_context_head_at_one_cell() -> None:
    config = NETWORKS["resnet18"]
    head = ContextHead(128, 512, config).eval()
    with torch.inference_mode():
        high = head(torch.randn(1, 512, 1, 1), torch.randn(1, 128, 1, 1))
    assert high.shape == (1, 64, 1, 1)


def test_normalise_is_imagenets(tiny: Segmenter) -> None:
    white = tiny.normalise(torch.ones(1, 3, 1, 1)).flatten()
    torch.testing.assert_close(white, torch.tensor([2.2489, 2.4286, 2.6400]), atol=1e-4, rtol=0)


def test_several_answers_per_cell_begin_as_one() -> None:
    one, four = Classifier(8, 5), Classifier(8, 5, upsampling=2)
    widen(four, one)
    features = torch.randn(2, 8, 3, 4)
    repeated = one(features).repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert torch.allclose(four(features), repeated, atol=1e-6)


def test_answers_within_a_cell_lie_where_they_belong() -> None:
    classifier = Classifier(1, 1, upsampling=2)
    with torch.no_grad():
        classifier.weight.zero_()
        classifier.bias.copy_(torch.tensor([0.0, 1.0, 2.0, 3.0]))  # rows first, then columns
    logits = classifier(torch.zeros(1, 1, 2, 2))[0, 0]
    assert logits.tolist() == [[0, 1, 0, 1], [2, 3, 2, 3]] * 2


def test_a_residual_fast_track_begins_as_the_full_network_s_classifier() -> None:
    net = Segmenter(dataclasses.replace(NETWORKS["tiny"], residual_fusion=True)).eval()
    low, high = torch.randn(1, net.backbone.low_channels, 6, 9), torch.randn(1, 8, 6, 9)
    with torch.inference_mode():
        assert torch.equal(net.classify_fused(high, low), net.classify_high(high))


def test_the_far_branch_sees_the_whole_image() -> None:
    torch.manual_seed(0)
    low = torch.randn(1, 16, 24, 32, requires_grad=True)
    for context, far in ((0, False), (8, True)):
        (gradient,) = torch.autograd.grad(
            AdaptNet(16, 8, context).eval()(low)[0, :, 0, 0].sum(), low
        )
        assert bool((gradient[0, :, -1, -1] != 0).any()) == far


@pytest.mark.parametrize("upsampling", [0, 3, 16])
def test_answers_that_do_not_divide_a_cell_are_refused(upsampling: int) -> None:
    with pytest.raises(ConfigError, match="classifier_upsampling"):
        NetworkConfig(classifier_upsampling=upsampling)


def test_a_network_is_called_by_its_name_whatever_its_classes() -> None:
    assert name_of(NETWORKS["resnet101_fast"]) == "resnet101_fast"
    assert (
        name_of(dataclasses.replace(NETWORKS[DEFAULT_NETWORK], num_classes=19)) == DEFAULT_NETWORK
    )
    assert name_of(NetworkConfig(backbone="resnet50")) == "resnet50"
    assert name_of(dataclasses.replace(NETWORKS["resnet18"], module_channels=8)) == "resnet18"
