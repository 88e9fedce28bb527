"""Convolutions in 8 bits: close to those in float32, alone and inside whole networks."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lowlat_seg_ros.config import NETWORKS, ConfigError
from lowlat_seg_ros.lab.quantize import best_range, observe
from lowlat_seg_ros.labels import CAMVID
from lowlat_seg_ros.network import checkpoint, inference, quantization
from lowlat_seg_ros.network.checkpoint import DEFAULT_CHECKPOINT, Header
from lowlat_seg_ros.network.inference import can_pack
from lowlat_seg_ros.network.layers import PackedConv2d, PackedResidual
from lowlat_seg_ros.network.quantization import (
    Grid,
    Quantized,
    QuantizedConv2d,
    Range,
    Ranges,
    quantised,
)
from lowlat_seg_ros.network.segmenter import Segmenter, new_trunk
from lowlat_seg_ros.tools import cli

pytestmark = pytest.mark.skipif(
    not (can_pack(torch.float32) and quantization.works()),
    reason="this processor or PyTorch has no right convolutions in 8 bits",
)

CPU = torch.device("cpu")


def image(*shape: int) -> Tensor:
    torch.manual_seed(0)
    return torch.randn(shape).contiguous(memory_format=torch.channels_last)


def span(x: Tensor) -> Range:
    return Range(float(x.min()), float(x.max()))


@torch.inference_mode()
@pytest.mark.parametrize("stays", [False, True])
@pytest.mark.parametrize(
    ("activation", "shortcut"),  # no network has a ReLU6 after a sum, nor has oneDNN in PyTorch
    [("relu6", None), *itertools.product(("none", "relu"), (None, "numbers", "bytes"))],
)
@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(5, 6, 3, padding=1),
        nn.Conv2d(16, 32, 1, bias=False),
        nn.Conv2d(3, 8, 6, stride=4, padding=2),
        nn.Conv2d(16, 16, 3, padding=2, dilation=2, groups=16),
    ],
)
def test_a_convolution_in_8_bits_is_near_the_exact_one(
    conv: nn.Conv2d, activation: str, shortcut: str | None, stays: bool
) -> None:
    x = image(1, conv.in_channels, 22, 34)
    y = conv(x)
    other = image(*y.shape)
    total = y if shortcut is None else y + other
    exact = {"none": total, "relu": total.relu(), "relu6": total.clamp(0, 6)}[activation]
    quick = QuantizedConv2d(
        PackedConv2d(conv, activation), Ranges(span(x), span(exact)), stays=stays
    )
    grid = Grid.over(span(other))
    given: dict[str | None, Tensor | Quantized | None] = {
        None: None, "numbers": other, "bytes": Quantized(quantised(other, grid), grid),
    }  # fmt: skip
    before = copy.deepcopy(given[shortcut])
    found = quick(x, given[shortcut])
    assert isinstance(found, Quantized) is stays
    step = (exact.max() - exact.min()) / 255
    noise = (found.to(torch.float32) - exact).abs()
    assert noise.mean() < step
    assert noise.max() < 6 * step
    after = given[shortcut]  # which others may still read
    if isinstance(before, Quantized) and isinstance(after, Quantized):
        assert torch.equal(before.values, after.values)
    elif before is not None:
        assert torch.equal(before, after)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_values_beyond_the_grid_are_clipped_and_the_others_rounded(dtype: torch.dtype) -> None:
    grid = Grid.over(Range(-1.0, 4.0))
    x = torch.linspace(-3, 6, 4097 * 3).view(1, 3, 17, 241).to(dtype)
    found = (quantised(x, grid).float() - grid.zero) * grid.scale
    low, high = -grid.zero * grid.scale, (255 - grid.zero) * grid.scale
    assert (found - x.float().clamp(low, high)).abs().max() <= grid.scale * 0.501 + 1e-6
    assert quantised(x, grid).is_contiguous(memory_format=torch.channels_last)


def test_zero_is_on_every_grid() -> None:
    for low, high in ((0.5, 3.0), (-3.0, -0.5), (-0.013, 6.0), (0.0, 0.0)):
        grid = Grid.over(Range(low, high))
        assert 0 <= grid.zero <= 255
        assert grid.scale > 0


def test_a_range_leaves_out_what_would_make_its_grid_coarse() -> None:
    one_is_large = np.append(np.linspace(0, 1, 10**6), 2.0)
    assert best_range(one_is_large).high < 1.3
    even = np.linspace(-1, 1, 10_001)
    assert best_range(even) == Range(-1.0, 1.0)


@torch.inference_mode()
@pytest.mark.parametrize("name", ["mobilenet_edgetpu", "efficientnet_lite0"])
def test_a_trunk_in_8_bits_reads_bytes_and_keeps_its_features(name: str) -> None:
    torch.manual_seed(1)
    trunk = new_trunk(name, whole=True).eval()
    pixels = torch.randint(0, 256, (1, 3, 64, 96), dtype=torch.uint8)
    pixels = pixels.contiguous(memory_format=torch.channels_last)
    x = trunk.statistics.normalise(pixels / 255)
    exact, quick = (
        inference.prepare(nn.Sequential(copy.deepcopy(trunk)).eval())[0] for _ in range(2)
    )
    ranges = observe(exact, lambda: exact.features(x))
    quantization.quantize(quick, ranges)
    assert not any(isinstance(m, PackedConv2d) for m in quick.modules())
    assert any(isinstance(m, PackedResidual) for m in quick.modules())
    for found, expected in zip(quick.features(pixels), exact.features(x), strict=True):
        spread = expected.std()
        assert (found.to(torch.float32) - expected).abs().mean() < 0.1 * spread


def gated(path: Path) -> Path:
    torch.manual_seed(0)
    segmenter = Segmenter(NETWORKS["edgetpu"])
    header = Header(NETWORKS["edgetpu"], CAMVID.names, CAMVID.colours, 0.5)
    checkpoint.save(path, segmenter, header, torch.float16)
    return path


def test_the_command_adds_the_ranges_and_changes_no_weight(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = gated(tmp_path / "plain.safetensors"), tmp_path / "new" / "quick.safetensors"
    command = ["quantize", str(path), "--out", str(out), "--scenes", "1", "--size", "64x96"]
    assert cli.main(command) == 0
    assert "of the pixels are as in float32" in capsys.readouterr().out
    (plain, before), (quick, after) = checkpoint.load(path), checkpoint.load(out)
    assert before.ranges == {}
    assert len(after.ranges) > 130
    assert before.provenance == after.provenance
    for name, tensor in plain.state_dict().items():
        assert torch.equal(tensor, quick.state_dict()[name]), name
    network, _ = inference.load(out, CPU, "int8")
    assert network.input_dtype == torch.uint8
    copied = copy.deepcopy(network)  # as each camera of a benchmark has its own
    x = torch.randint(0, 256, (1, 3, 64, 96), dtype=torch.uint8)
    with torch.inference_mode():
        assert torch.equal(network(x), copied(x))
    used = {n for n, m in network.named_modules() if isinstance(m, QuantizedConv2d)}
    assert used == set(after.ranges)
    # And in the other precisions it is the network that it was.
    assert inference.load(out, CPU, "fp32")[0].input_dtype == torch.float32


def test_8_bits_without_ranges_are_refused_with_the_fix(tmp_path: Path) -> None:
    path = gated(tmp_path / "plain.safetensors")
    with pytest.raises(ConfigError, match="lowlat-seg quantize"):
        inference.load(path, CPU, "int8")
    assert inference.load(path, CPU, "auto")[0].input_dtype != torch.uint8


def test_8_bits_that_are_wrong_here_are_refused_and_not_chosen(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))  # or an earlier answer counts
    monkeypatch.setattr(quantization, "works", lambda: False)
    segmenter, header = checkpoint.load(DEFAULT_CHECKPOINT, CPU)
    with pytest.raises(ConfigError, match="choose auto"):
        inference.ranges_for("int8", segmenter, header)
    assert inference.ranges_for("auto", segmenter, header) == {}


def test_ranges_of_another_network_are_refused() -> None:
    network = inference.prepare(Segmenter(NETWORKS["tiny"]).eval())
    with pytest.raises(ValueError, match="no packed convolution is called nowhere"):
        quantization.quantize(network, {"nowhere": Ranges(Range(0, 1), Range(0, 1))})


def test_networks_without_a_trunk_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "tiny.safetensors"
    header = Header(NETWORKS["tiny"], CAMVID.names, CAMVID.colours, 0.5)
    checkpoint.save(path, Segmenter(NETWORKS["tiny"]), header, torch.float16)
    assert cli.main(["quantize", str(path), "--out", str(tmp_path / "x.safetensors")]) == 2
    assert "backbone tiny" in capsys.readouterr().err


@pytest.mark.parametrize("runtime", ["pytorch", "auto"])
def test_auto_follows_what_was_measured_once(
    runtime: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    segmenter, header = checkpoint.load(DEFAULT_CHECKPOINT, CPU)
    compared: list[bool] = []

    def beats(quick: Callable[[], object], other: Callable[[], object], answer: bool) -> bool:
        quick()  # both run, whatever they take
        other()
        compared.append(answer)
        return answer

    for answer in (True, False):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / str(answer)))
        monkeypatch.setattr(quantization, "beats", partial(beats, answer=answer))
        for _ in range(2):  # the second time it is known
            assert bool(inference.ranges_for("auto", segmenter, header, runtime)) is answer
    assert compared == [True, False]
    assert inference.ranges_for("bf16", segmenter, header) == {}
    assert inference.ranges_for("int8", segmenter, header) == header.ranges


def test_the_clearly_faster_of_two_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(quantization.time, "perf_counter", lambda: now[0])

    def taking(seconds: float) -> Callable[[], None]:
        def run() -> None:
            now[0] += seconds

        return run

    assert quantization.beats(taking(8.4), taking(10.0))
    assert not quantization.beats(taking(8.6), taking(10.0))
