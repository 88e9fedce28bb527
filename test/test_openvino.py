"""The fast track as programs of OpenVINO: what PyTorch answers in 8 bits, kept for later starts."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from lowlat_seg_ros.config import NETWORKS, ConfigError, EngineConfig
from lowlat_seg_ros.engine.engine import Engine
from lowlat_seg_ros.engine.openvino import OpenVinoRunner
from lowlat_seg_ros.engine.own_core import OwnCore, threads
from lowlat_seg_ros.engine.runner import Runner, runners, runtime_of
from lowlat_seg_ros.frames import Frame
from lowlat_seg_ros.lab.baselines.ddrnet import DDRNet23Slim
from lowlat_seg_ros.lab.data.synthetic import RenderedDrive
from lowlat_seg_ros.lab.quantize import prepare_in_8_bits
from lowlat_seg_ros.network import inference, programs, quantization
from lowlat_seg_ros.network.checkpoint import DEFAULT_CHECKPOINT
from lowlat_seg_ros.network.inference import can_pack
from lowlat_seg_ros.network.layers import PackedConv2d, plain
from lowlat_seg_ros.network.quantization import QuantizedConv2d, Range, Ranges, image_range
from lowlat_seg_ros.network.segmenter import Segmenter
from lowlat_seg_ros.network.trunk import centred

pytest.importorskip("openvino", reason="needs the library openvino (pip install openvino)")
pytestmark = pytest.mark.skipif(
    not (can_pack(torch.float32) and quantization.works()),
    reason="this processor or PyTorch has no right convolutions in 8 bits",
)

CPU = torch.device("cpu")

#: Programs of Sl, its second half also for two cores; and of all that a frame needs.
OF_SL, PROGRAMS = (3, 7) if len(os.sched_getaffinity(0)) > 1 else (2, 4)
RENDERED = DEFAULT_CHECKPOINT.with_name("efficientnet_lite0_rendered.safetensors")


def frames(count: int, size: tuple[int, int]) -> list[np.ndarray]:
    drive = RenderedDrive(seed=3, frames=count, size=size)
    return [drive[index].image for index in range(count)]


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Where programs are kept, empty."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "lowlat_seg_ros"


@pytest.mark.parametrize(
    ("kernel", "stride", "padding"), [(6, 4, 2), (3, 2, 1), (5, 2, 2), (2, 4, 1), (3, 1, 1)]
)
def test_the_first_convolution_is_pytorchs(kernel: int, stride: int, padding: int) -> None:
    """Pixels side by side are channels of one there, wherever its kernel begins."""
    conv = nn.Conv2d(3, 8, kernel, stride, padding).requires_grad_(False)
    spans = Ranges(image_range(centred(128, 128)), Range(0.0, 2.0))
    quick = QuantizedConv2d(PackedConv2d(conv, "relu"), spans, stays=True)
    image = torch.randint(0, 256, (1, 3, 24, 40), dtype=torch.uint8)
    image = image.contiguous(memory_format=torch.channels_last)
    traced = programs.TraceableConv2d(quick)
    request = programs.compile_program(lambda x: plain(traced(x)), image).create_infer_request()
    found = request.infer([programs.in_memory(image).numpy()])[0]
    with torch.inference_mode():
        expected = programs.in_memory(plain(quick(image)))
    assert quick.output is not None
    step = quick.output.scale  # sums that lie between two bytes may be rounded to either
    torch.testing.assert_close(torch.from_numpy(found), expected, rtol=0, atol=1.01 * step)
    assert (torch.from_numpy(found) - expected).abs().mean() < 0.02 * step


@pytest.mark.slow
@torch.inference_mode()
@pytest.mark.parametrize("weights", [DEFAULT_CHECKPOINT, RENDERED], ids=lambda path: path.stem)
def test_parts_answer_as_in_pytorch_at_every_size(weights: Path) -> None:
    segmenter, _ = inference.load(weights, CPU, "int8")
    compiled, as_it_is = runners(segmenter, "openvino")[0], Runner(segmenter)
    assert isinstance(compiled, OpenVinoRunner)
    for size in ((360, 480), (184, 248), (360, 480)):
        image, then = (
            torch.from_numpy(pixels)[None].permute(0, 3, 1, 2) for pixels in frames(2, size)
        )
        low, expected = compiled.lower(image), as_it_is.lower(image).float()
        assert low.shape == expected.shape
        assert (low - expected).abs().mean() < 0.06 * expected.abs().mean()
        # From here on both get the same.
        low = as_it_is.lower(image)
        reduced, before = as_it_is.reduce(low), as_it_is.reduce(as_it_is.lower(then))
        remembered, high = as_it_is.remember(before), as_it_is.higher(image)
        kernels = as_it_is.kernels(remembered, reduced)
        assert (compiled.kernels(remembered, reduced) - kernels).abs().mean() < 1e-3
        carried = torch.nn.functional.pixel_unshuffle(as_it_is.answers(high), 2)
        residual = torch.zeros(1, 4, *low.shape[2:])
        evidence = as_it_is.evidence(before, reduced, 0.1, residual)
        cells = as_it_is.carried_cells(high)
        given = (cells, low, reduced, evidence, carried)
        pairs = [r.fuse(*given) for r in (compiled, as_it_is)]
        single = [r.classify_low(low) for r in (compiled, as_it_is)]
        for logits, theirs in (tuple(logits for logits, _ in pairs), tuple(single)):
            assert logits.shape == theirs.shape
            assert (logits.argmax(1) == theirs.argmax(1)).float().mean() > 0.98
        (_, trust), (_, their_trust) = pairs
        assert trust is not None
        assert their_trust is not None
        assert (trust - their_trust).abs().mean() < 0.02


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores")
@torch.inference_mode()
def test_two_cores_that_share_layers_give_the_same(folder: Path) -> None:
    """Also where the frame is on its own core already; the other threads are not."""
    cores, before = os.sched_getaffinity(0), threads()
    segmenter, _ = inference.load(DEFAULT_CHECKPOINT, CPU, "int8")
    runner = OpenVinoRunner(segmenter)
    image = torch.from_numpy(frames(1, (360, 480))[0])[None].permute(0, 3, 1, 2)
    alone = runner.lower(image).clone()
    own_core = OwnCore()
    for _ in range(2):
        runner.shares = own_core.enter()
        assert runner.shares
        try:
            shared = runner.lower(image).clone()
        finally:
            own_core.leave()
        assert torch.equal(shared, alone)
    begun = {thread: os.sched_getaffinity(thread) for thread in threads() - before}
    assert min(cores) not in set().union(*begun.values())
    assert len(list(folder.iterdir())) == OF_SL


@pytest.mark.slow
def test_cameras_share_programs_and_nothing_else(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled, compile_program = [], programs.compile_program
    monkeypatch.setattr(
        programs,
        "compile_program",
        lambda *args, **kwargs: (compiled.append(args), compile_program(*args, **kwargs))[1],
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
    # Both halves of Sl, kernels and fusion, all but the first one also for two cores.
    assert len(compiled) == PROGRAMS
    of_pytorch = [np.stack(list(masks(engine("pytorch"), images))) for images in cameras]
    assert (np.stack(of_pytorch) == np.stack(alone)).mean() > 0.985
    # A process that starts later compiles nothing, and its masks are the same.
    segmenter, header = inference.load(DEFAULT_CHECKPOINT, CPU, "int8")
    again = [np.stack(list(masks(engine("openvino"), images))) for images in cameras]
    assert np.array_equal(alone, again)
    assert len(compiled) == PROGRAMS
    assert len(list(folder.iterdir())) == PROGRAMS


@torch.inference_mode()
def test_a_kept_program_that_is_damaged_is_made_again(folder: Path) -> None:
    segmenter, _ = inference.load(DEFAULT_CHECKPOINT, CPU, "int8")
    image = torch.zeros(1, 3, 64, 96, dtype=torch.uint8)
    low = OpenVinoRunner(segmenter).lower(image).clone()
    whole = {file: file.read_bytes() for file in folder.iterdir()}
    for file, content in whole.items():
        file.write_bytes(content[:-100])
    segmenter, _ = inference.load(DEFAULT_CHECKPOINT, CPU, "int8")
    assert torch.equal(OpenVinoRunner(segmenter).lower(image), low)
    assert len(whole) == OF_SL
    assert all(len(file.read_bytes()) > len(content) - 100 for file, content in whole.items())


@torch.inference_mode()
def test_a_kept_program_that_openvino_does_not_read_is_made_again(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    segmenter, _ = inference.load(DEFAULT_CHECKPOINT, CPU, "int8")
    image = torch.zeros(1, 3, 64, 96, dtype=torch.uint8)
    low = OpenVinoRunner(segmenter).lower(image).clone()
    file, *_ = folder.iterdir()
    whole = file.read_bytes()
    programs._write(file, b"whole, but no program")
    segmenter, _ = inference.load(DEFAULT_CHECKPOINT, CPU, "int8")
    assert torch.equal(OpenVinoRunner(segmenter).lower(image), low)
    assert "which is made again" in caplog.text
    assert len(file.read_bytes()) > len(whole) // 2


@torch.inference_mode()
def test_without_a_folder_each_start_compiles(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def no_home(_: type[Path]) -> Path:
        raise RuntimeError("Could not determine home directory.")

    compiled, compile_program = [], programs.compile_program
    monkeypatch.setattr(
        programs,
        "compile_program",
        lambda *args, **kwargs: (compiled.append(args), compile_program(*args, **kwargs))[1],
    )
    (tmp_path / "file").touch()
    monkeypatch.setattr(Path, "home", classmethod(no_home))
    for home in (str(tmp_path / "file"), "", ""):
        monkeypatch.setenv("XDG_CACHE_HOME", home)
        segmenter, _ = inference.load(DEFAULT_CHECKPOINT, CPU, "int8")
        low = OpenVinoRunner(segmenter).lower(torch.zeros(1, 3, 64, 96, dtype=torch.uint8))
        assert low.shape == (1, 64, 8, 12)
    assert len(compiled) == 3 * OF_SL


@torch.inference_mode()
def test_inputs_of_any_layout_and_type_and_results_that_are_kept() -> None:
    """Each input is copied then, and every copy must live until the program has run."""
    segmenter, _ = inference.load(DEFAULT_CHECKPOINT, CPU, "int8")
    runner = OpenVinoRunner(segmenter)
    torch.manual_seed(0)
    first, second = (torch.randn(1, 64, 45, 60) for _ in range(2))  # NCHW
    as_in_memory = [x.contiguous(memory_format=torch.channels_last) for x in (first, second)]
    expected = [Runner(segmenter).kernels(*pair) for pair in (as_in_memory, as_in_memory[::-1])]
    kept = runner.clone(runner.kernels(first, second))
    other = runner.kernels(second.bfloat16(), first.bfloat16())
    assert (expected[0] - expected[1]).abs().mean() > 5e-3
    for result, right in zip((kept, other), expected, strict=True):
        assert (result - right).abs().mean() < 1e-3


def test_a_fingerprint_tells_weights_and_settings_apart() -> None:
    first, _ = inference.load(DEFAULT_CHECKPOINT, CPU, "int8")
    same, _ = inference.load(DEFAULT_CHECKPOINT, CPU, "int8")
    other, _ = inference.load(DEFAULT_CHECKPOINT, CPU, "fp32")
    assert programs.fingerprint(first) == programs.fingerprint(same)
    assert programs.fingerprint(first) != programs.fingerprint(other)
    changed = next(m for m in same.modules() if isinstance(m, quantization.QuantizedConv2d))
    changed.kernel[0, 0, 0, 0] ^= 1
    assert programs.fingerprint(first) != programs.fingerprint(same)


@torch.inference_mode()
def test_a_network_that_is_compared_is_compiled_too() -> None:
    segmenter, _ = inference.load(DEFAULT_CHECKPOINT, CPU, "int8")
    torch.manual_seed(0)
    image = torch.from_numpy(frames(1, (64, 96))[0])[None].permute(0, 3, 1, 2)
    network = prepare_in_8_bits(
        DDRNet23Slim(11).eval(), [image], segmenter.statistics, torch.float32
    )
    runner = OpenVinoRunner(segmenter)
    logits, expected = runner.run("other", network, image), network(image)
    assert runner._requests["other", 1][1] is not None
    assert (logits.argmax(1) == expected.argmax(1)).float().mean() > 0.9


def test_a_network_that_is_not_in_8_bits_is_refused() -> None:
    segmenter = inference.prepare(Segmenter(NETWORKS["tiny_ddr"]).eval())
    with pytest.raises(ConfigError, match="set precision to int8; or set runtime to pytorch"):
        Engine(segmenter, EngineConfig(runtime="openvino"), threshold=0.1)
    assert runtime_of(segmenter, "auto") == "pytorch"


class NoCounterpart(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.igamma(x, x)


@torch.inference_mode()
def test_what_openvino_cannot_compile_pytorch_runs(caplog: pytest.LogCaptureFixture) -> None:
    segmenter, _ = inference.load(DEFAULT_CHECKPOINT, CPU, "int8")
    segmenter.predictor = NoCounterpart()  # type: ignore[assignment]
    runner, x = OpenVinoRunner(segmenter, falls_back=True), torch.ones(1, 4, 8, 8)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            answer = runner.run("kernels", segmenter.predictor, x)
            assert torch.equal(answer, torch.igamma(x, x))
    assert caplog.text.count("OpenVINO does not run kernels") == 1
    with pytest.raises(ConfigError, match="set runtime to auto or pytorch"):
        OpenVinoRunner(segmenter).run("kernels", segmenter.predictor, x)
