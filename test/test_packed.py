"""Packed convolutions answer as those that they were made from."""

from __future__ import annotations

import copy
import threading

import pytest
import torch
from torch import Tensor, nn

from lowlat_seg_ros.config import NETWORKS
from lowlat_seg_ros.lab.baselines.ddrnet import DDRNet23Slim
from lowlat_seg_ros.network.fast_track import Classifier
from lowlat_seg_ros.network.inference import can_pack, prepare
from lowlat_seg_ros.network.layers import LAYOUTS, PackedConv2d, PackedResidual, separable
from lowlat_seg_ros.network.propagation import KernelPredictor, PackedKernelPredictor
from lowlat_seg_ros.network.resnet import ARCHITECTURES, Residual, make_block
from lowlat_seg_ros.network.segmenter import Segmenter

pytestmark = pytest.mark.skipif(not can_pack(torch.float32), reason="this PyTorch has no oneDNN")

#: Networks are packed in bfloat16 only where the processor has it.
PRECISIONS = [
    torch.float32,
    pytest.param(
        torch.bfloat16,
        marks=pytest.mark.skipif(
            not can_pack(torch.bfloat16), reason="this processor packs nothing in bfloat16"
        ),
    ),
]


def image(*shape: int) -> Tensor:
    torch.manual_seed(0)
    return torch.randn(shape).contiguous(memory_format=torch.channels_last)


@torch.inference_mode()
@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize("shortcut", [False, True])
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(5, 6, 3, padding=1),
        nn.Conv2d(16, 32, 1, bias=False),
        nn.Conv2d(3, 8, 7, stride=2, padding=3),
        nn.Conv2d(16, 16, 3, padding=4, dilation=4),
    ],
)
def test_a_packed_convolution_answers_as_before(
    conv: nn.Conv2d, relu: bool, shortcut: bool, dtype: torch.dtype
) -> None:
    conv = copy.deepcopy(conv).to(dtype)
    x = image(1, conv.in_channels, 21, 34)
    expected = conv(x.to(dtype)).float()
    other = image(*expected.shape).to(dtype) if shortcut else None
    if other is not None:
        expected = expected + other.float()
    answer = PackedConv2d(conv, "relu" if relu else "none")(x, other)
    assert answer.dtype == dtype
    assert answer.is_contiguous(memory_format=torch.channels_last)
    exact = torch.finfo(dtype).eps * 16
    torch.testing.assert_close(
        answer.float(), expected.relu() if relu else expected, rtol=exact, atol=exact
    )


@torch.inference_mode()
@pytest.mark.parametrize("dtype", PRECISIONS)
def test_a_packed_depthwise_convolution_answers_as_before(dtype: torch.dtype) -> None:
    conv, x = nn.Conv2d(8, 8, 5, stride=2, padding=2, groups=8).to(dtype), image(1, 8, 21, 34)
    torch.testing.assert_close(PackedConv2d(conv, "relu")(x), conv(x.to(dtype)).relu())


@torch.inference_mode()
@pytest.mark.parametrize("dtype", PRECISIONS)
def test_kernels_are_predicted_half_by_half(dtype: torch.dtype) -> None:
    """The key frame's half of the convolution is remembered, the other done for each frame."""
    torch.manual_seed(0)
    plain = KernelPredictor(12, 8, 5).eval()
    nn.init.normal_(plain.logits.weight)  # kernels that differ
    fast = copy.deepcopy(plain)
    fast = prepare(nn.Sequential(fast).eval(), dtype)[0]
    assert isinstance(fast, PackedKernelPredictor)
    assert fast.packed() is fast
    key, current = image(2, 12, 9, 11).chunk(2)
    kept = fast.remember(fast.reduce(key))
    weights = plain(plain.remember(plain.reduce(key)), plain.reduce(current))
    exact = 4 * torch.finfo(dtype).eps
    torch.testing.assert_close(fast(kept, fast.reduce(current)), weights, atol=exact, rtol=exact)
    of_others = fast(fast.remember(fast.reduce(current)), fast.reduce(current))
    assert not torch.allclose(of_others, weights, atol=exact, rtol=exact)


@torch.inference_mode()
def test_it_takes_inputs_of_any_layout_size_and_precision() -> None:
    conv = nn.Conv2d(4, 8, 3, padding=1)
    fast = PackedConv2d(conv)
    once = fast.weight_bytes
    for size in ((1, 4, 9, 7), (1, 4, 30, 40), (2, 4, 9, 7), (1, 4, 1, 1), (1, 4, 8, 7)) * 2:
        x = torch.randn(size)
        torch.testing.assert_close(fast(x), conv(x))
        torch.testing.assert_close(fast(x.double()), conv(x))
    assert fast.weight_bytes == LAYOUTS * once  # not one for each size there ever was


@torch.inference_mode()
def test_threads_with_inputs_of_different_sizes_do_not_disturb_each_other() -> None:
    """Several cameras share one network, and so do frames and Sh."""
    conv = nn.Conv2d(32, 32, 3, padding=1)
    fast, wrong, go = PackedConv2d(conv), [], threading.Barrier(4)

    def use(side: int) -> None:
        with torch.inference_mode():
            x = torch.randn(1, 32, side, side)
            expected = conv(x)
            go.wait()
            for _ in range(100):
                if not torch.allclose(fast(x), expected, atol=1e-5):
                    wrong.append(side)

    threads = [threading.Thread(target=use, args=(side,)) for side in (4, 8, 12, 16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@torch.inference_mode()
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kind", ["basic", "bottleneck", "ddrnet", "ddrnet_wide"])
def test_a_packed_block_answers_as_before(kind: str, stride: int) -> None:
    if kind.startswith("ddrnet"):
        block: nn.Module = Residual(16, 16, stride, widen=2 if kind == "ddrnet_wide" else 1)
    else:
        wide = kind == "bottleneck"
        architecture = ARCHITECTURES["resnet50" if wide else "resnet18"]
        block = make_block(architecture.block, 16, 4 if wide else 16, stride, 1)
    network = nn.Sequential(block, nn.ReLU(inplace=True)).eval()
    x = image(1, 16, 12, 10)
    before = x.clone()
    expected = network(x.clone())
    fast = prepare(network)
    assert isinstance(fast[0], PackedResidual)
    assert isinstance(fast[1], nn.Identity)
    assert isinstance(fast[0].last, PackedConv2d)
    assert fast[0].last.activation == "relu"
    torch.testing.assert_close(fast(x), expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(x, before)  # the sum is not made in place


@torch.inference_mode()
def test_a_relu_is_taken_in_only_where_it_follows_a_convolution() -> None:
    pooled = nn.Sequential(nn.Conv2d(4, 8, 3), nn.MaxPool2d(2), nn.ReLU())
    nested = nn.Sequential(nn.Sequential(nn.Conv2d(4, 8, 3), nn.Identity()), nn.ReLU())
    x = image(1, 4, 12, 12)
    for network, relus in ((pooled, 1), (nested, 0), (separable(4, 8), 0)):
        expected = network.eval()(x)
        prepare(network)
        assert sum(isinstance(part, nn.ReLU) for part in network.modules()) == relus
        torch.testing.assert_close(network(x), expected, rtol=1e-4, atol=1e-4)


@torch.inference_mode()
@pytest.mark.parametrize("upsampling", [1, 2, 4])
def test_a_packed_classifier_arranges_its_answers_as_before(upsampling: int) -> None:
    classifier = Classifier(8, 3, upsampling)
    fast, x = classifier.packed(), image(1, 8, 5, 6)
    torch.testing.assert_close(fast(x), classifier(x))
    torch.testing.assert_close(fast.arrange(fast.cells(x)), classifier(x))


def test_all_convolutions_of_every_network_are_packed() -> None:
    for name in ("tiny", "tiny_ddr", "resnet18", "resnet101_fast"):
        network = prepare(Segmenter(NETWORKS[name]).eval())
        assert not [part for part in network.modules() if isinstance(part, nn.Conv2d)], name
    other = prepare(DDRNet23Slim(11).eval())
    assert not [part for part in other.modules() if isinstance(part, nn.Conv2d)]


@torch.inference_mode()
def test_copies_share_the_weights() -> None:
    network = prepare(Segmenter(NETWORKS["tiny_ddr"]).eval())
    other, x = copy.deepcopy(network), image(1, 3, 32, 40)
    assert torch.equal(other.lower(x), network.lower(x))


def test_without_onednn_networks_stay_as_they_are(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    can_pack.cache_clear()
    monkeypatch.delattr(torch._C._nn, "mkldnn_reorder_conv2d_weight")
    network = prepare(Segmenter(NETWORKS["tiny"]).eval())
    can_pack.cache_clear()
    assert any(isinstance(part, nn.Conv2d) for part in network.modules())
    assert not any(isinstance(part, PackedConv2d) for part in network.modules())
    assert "not packed" in caplog.text
