"""Sl as a program of OpenVINO: what PyTorch answers in 8 bits, at any size, and clear errors."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from lowlat_seg_ros.config import NETWORKS, ConfigError, EngineConfig
from lowlat_seg_ros.engine import openvino
from lowlat_seg_ros.engine.engine import Engine
from lowlat_seg_ros.engine.runner import Runner, runners
from lowlat_seg_ros.frames import Frame
from lowlat_seg_ros.lab.data.synthetic import RenderedDrive
from lowlat_seg_ros.network import inference, quantization
from lowlat_seg_ros.network.checkpoint import DEFAULT_CHECKPOINT
from lowlat_seg_ros.network.inference import can_pack
from lowlat_seg_ros.network.layers import PackedConv2d
from lowlat_seg_ros.network.quantization import QuantizedConv2d, Range, Ranges
from lowlat_seg_ros.network.segmenter import Segmenter

pytest.importorskip("openvino", reason="needs the library openvino (pip install openvino)")
pytestmark = pytest.mark.skipif(
    not (can_pack(torch.float32) and quantization.works()),
    reason="this processor or PyTorch has no right convolutions in 8 bits",
)

CPU = torch.device("cpu")
RENDERED = DEFAULT_CHECKPOINT.with_name("efficientnet_lite0_rendered.safetensors")


def frames(count: int, size: tuple[int, int]) -> list[np.ndarray]:
    drive = RenderedDrive(seed=3, frames=count, size=size)
    return [drive[index].image for index in range(count)]


@pytest.mark.slow
@torch.inference_mode()
@pytest.mark.parametrize("weights", [DEFAULT_CHECKPOINT, RENDERED], ids=lambda path: path.stem)
def test_sl_answers_as_in_pytorch_at_every_size(weights: Path) -> None:
    segmenter, _ = inference.load(weights, CPU, "int8")
    compiled, as_it_is = runners(segmenter, "openvino")[0], Runner(segmenter)
    for size in ((360, 480), (184, 248), (360, 480)):
        image = torch.from_numpy(frames(1, size)[0])[None].permute(0, 3, 1, 2)
        low, expected = compiled.lower(image), as_it_is.lower(image).float()
        assert low.shape == expected.shape
        assert (low - expected).abs().mean() < 0.06 * expected.abs().mean()
        classes = [segmenter.classify_low(x).argmax(1) for x in (low, expected)]
        assert (classes[0] == classes[1]).float().mean() > 0.98


@pytest.mark.slow
def test_cameras_share_a_program_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled, compile_for = [], openvino.compile_for
    monkeypatch.setattr(
        openvino, "compile_for", lambda *args: (compiled.append(args), compile_for(*args))[1]
    )
    segmenter, header = inference.load(DEFAULT_CHECKPOINT, CPU, "int8")
    one = frames(6, (180, 240))
    cameras = [one, one[::-1]]

    def engine(runtime: str) -> Engine:
        config = EngineConfig(runtime=runtime)
        return Engine.deterministic(segmenter, config, threshold=header.threshold, delay_frames=1)

    def masks(engine: Engine, images: list[np.ndarray]) -> Iterator[np.ndarray]:
        for number, image in enumerate(images):
            yield engine.process(Frame(image, stamp_ns=number * 66_000_000)).mask

    alone = [np.stack(list(masks(engine("openvino"), images))) for images in cameras]
    in_turn = zip(*(masks(engine("openvino"), images) for images in cameras), strict=True)
    together = [np.stack(each) for each in zip(*in_turn, strict=True)]
    assert np.array_equal(alone, together)
    assert len(compiled) == 1
    of_pytorch = [np.stack(list(masks(engine("pytorch"), images))) for images in cameras]
    assert (np.stack(of_pytorch) == np.stack(alone)).mean() > 0.985


def test_a_network_that_is_not_in_8_bits_is_refused() -> None:
    segmenter = inference.prepare(Segmenter(NETWORKS["tiny_ddr"]).eval())
    with pytest.raises(ConfigError, match="set precision to int8, or set runtime to pytorch"):
        Engine(segmenter, EngineConfig(runtime="openvino"), threshold=0.1)


def test_a_layer_without_counterpart_is_named() -> None:
    ranges = Ranges(Range(-1.0, 1.0), Range(-1.0, 1.0))
    conv = QuantizedConv2d(PackedConv2d(nn.Conv2d(3, 8, 3, padding=1)), ranges, stays=False)
    with pytest.raises(ConfigError, match=r"avg_pool2d.*set runtime to pytorch"):
        openvino.compile_for(nn.Sequential(conv, nn.AvgPool2d(2)), torch.Size([1, 3, 16, 16]))
