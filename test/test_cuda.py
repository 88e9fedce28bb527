"""The engine on a GPU: streams, CUDA graphs, asynchronous copies. Skipped where there is none."""

from __future__ import annotations

import copy
import dataclasses
import time
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from lowlat_seg_ros.config import EngineConfig
from lowlat_seg_ros.engine.cuda import SIZES, Graphs
from lowlat_seg_ros.engine.engine import Engine
from lowlat_seg_ros.engine.runner import runners
from lowlat_seg_ros.frames import Frame, MaskKind, Segmentation
from lowlat_seg_ros.lab.benchmark.measure import captures
from lowlat_seg_ros.network.segmenter import Segmenter

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")

MakeFrame = Callable[..., Frame]

#: Every frame a key frame.
ALWAYS = EngineConfig(key_frame_policy="deviation", max_key_interval=1)


@pytest.fixture(autouse=True)
def no_tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else fp32 would be rounded to it, and masks of random images differ here and there."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.fixture
def on_gpu(network: Segmenter) -> Segmenter:
    return copy.deepcopy(network).cuda().to(memory_format=torch.channels_last)


def agreement(first: Segmentation, second: Segmentation) -> float:
    return float((first.mask == second.mask).mean())


@pytest.mark.parametrize("network", ["tiny", "tiny_ddr", "tiny_coarse"], indirect=True)
def test_masks_are_those_of_a_cpu(
    network: Segmenter, on_gpu: Segmenter, make_frame: MakeFrame
) -> None:
    """Eager, captured and replayed frames, at two sizes and back; features refined and carried."""
    sizes = [(48, 64)] * 16 + [(40, 56)] * 8 + [(48, 64)] * 8
    config = EngineConfig(key_frame_policy="deviation", max_key_interval=2)
    with (
        Engine.deterministic(network, config, threshold=1.0, delay_frames=1) as cpu,
        Engine.deterministic(on_gpu, config, threshold=1.0, delay_frames=1) as gpu,
    ):
        for index, size in enumerate(sizes):
            frame = make_frame(index, size)
            wanted, found = cpu.process(frame), gpu.process(frame)
            assert found.provenance == wanted.provenance
            assert agreement(found, wanted) >= 0.999, index
            assert (found.selection is None) == (wanted.selection is None)
        assert gpu.counters == cpu.counters
        assert gpu.counters.refined > 0
    done = captures(on_gpu)
    assert done.captured > 0
    assert done.failed == 0


def test_masks_and_key_frames_stay_what_they_were(on_gpu: Segmenter, make_frame: MakeFrame) -> None:
    """Buffers are used again; what was handed out is not."""
    with Engine.deterministic(on_gpu, ALWAYS, threshold=1.0, delay_frames=1) as engine:
        results = [engine.process(make_frame(i), confidence=True) for i in range(8)]
        kept = [(r.mask.copy(), r.confidence.copy()) for r in results if r.confidence is not None]
        for i in range(8, 16):
            engine.process(make_frame(i))
    assert len(kept) == len(results)
    for result, (mask, confidence) in zip(results, kept, strict=True):
        assert (result.mask == mask).all()
        assert (result.confidence == confidence).all()


def test_the_slow_track_refines_while_frames_flow(on_gpu: Segmenter, make_frame: MakeFrame) -> None:
    with Engine(on_gpu, ALWAYS, threshold=1.0) as engine:
        results = [engine.process(make_frame(i)) for i in range(100)]
        while engine.counters.pending:
            time.sleep(0.001)
        counters = engine.counters
    assert counters.refined + counters.carried > 0
    assert counters.failed == counters.degraded == 0
    assert {r.provenance.kind for r in results[1:]} == {MaskKind.PROPAGATED}
    assert captures(on_gpu).failed == 0


def test_masks_have_the_size_that_was_asked_for(on_gpu: Segmenter, make_frame: MakeFrame) -> None:
    """Also once the network's graphs were captured for another one, by an engine that is gone."""
    config = dataclasses.replace(ALWAYS, inference_height=24)
    for at_network_size in (False, True, False):
        with Engine.deterministic(on_gpu, config, threshold=1.0, delay_frames=1) as engine:
            for index in range(4):
                frame = make_frame(index, (48, 64))
                result = engine.process(frame, mask_at_network_size=at_network_size)
                assert result.mask.shape == ((24, 32) if at_network_size else (48, 64))


def test_stages_make_up_the_latency(on_gpu: Segmenter, make_frame: MakeFrame) -> None:
    with Engine.deterministic(on_gpu, ALWAYS, threshold=1.0, delay_frames=2) as engine:
        timings = [engine.process(make_frame(i)).timing for i in range(8)][4:]
    for timing in timings:
        stages = dataclasses.asdict(timing)
        latency, selector = stages.pop("latency_ms"), stages.pop("selector_ms")
        assert selector > 0
        assert all(stages[f"{name}_ms"] > 0 for name in ("lower", "propagation", "fusion"))
        # Two clocks: the host's sees the last copy a little later.
        assert 0 < sum(stages.values()) < latency + 0.1


def test_a_part_that_cannot_be_captured_runs_without_a_graph(
    caplog: pytest.LogCaptureFixture,
) -> None:
    graphs, stream = Graphs(torch.device("cuda"), priority=0), torch.cuda.Stream()

    def looks(x: Tensor) -> Tensor:
        return x + x.sum().item()  # waits for the GPU, which a graph cannot

    def doubles(x: Tensor) -> Tensor:
        return 2 * x

    with torch.inference_mode(), torch.cuda.stream(stream):
        for value in range(4):
            x = torch.full((3,), float(value), device="cuda")
            assert graphs.run("looks", looks, [x]).tolist() == [4.0 * value] * 3
            assert torch.cuda.current_stream() == stream
            assert graphs.run("doubles", doubles, [x]).tolist() == [2.0 * value] * 3
    assert (graphs.captured, graphs.failed) == (1, 1)
    assert "runs without a CUDA graph" in caplog.text


def test_graphs_read_what_other_graphs_write_where_it_is() -> None:
    graphs = Graphs(torch.device("cuda"), priority=0)
    with torch.inference_mode(), torch.cuda.stream(torch.cuda.Stream()):
        for value in range(5):
            x = torch.full((4,), float(value), device="cuda")
            first = graphs.run("first", lambda x: x + 1, [x])
            second = graphs.run("second", lambda x, y: x * y, [first, x])
            assert second.tolist() == [value * (value + 1.0)] * 4
            assert graphs.writes(first) == graphs.writes(second) == (value > 0)
    assert graphs.captured == 2


def test_what_passes_its_input_on_needs_no_graph() -> None:
    graphs = Graphs(torch.device("cuda"), priority=0)
    x = torch.zeros(3, device="cuda")
    for _ in range(3):
        assert graphs.run("part", lambda x: x, [x]) is x
    assert graphs.captured == graphs.failed == 0


def test_graphs_of_old_sizes_are_let_go() -> None:
    graphs = Graphs(torch.device("cuda"), priority=0)

    def twice(size: int) -> None:
        graphs.use(size)
        for _ in range(2):
            graphs.run("part", lambda x: x + 1, [torch.zeros(size, device="cuda")])

    with torch.inference_mode(), torch.cuda.stream(torch.cuda.Stream()):
        for size in range(1, SIZES + 2):
            twice(size)
        twice(SIZES + 1)
        assert graphs.captured == SIZES + 1
        twice(1)
        assert graphs.captured == SIZES + 2


def test_frames_come_before_the_slow_track(on_gpu: Segmenter) -> None:
    """And a network's streams and graphs outlive an engine, as those of a node's warm-up."""
    priorities = []
    for runner in runners(on_gpu):
        with runner.frame_context():
            priorities.append(torch.cuda.current_stream().priority)
    assert priorities[0] < priorities[1] == 0
    with runners(on_gpu)[0].frame_context():
        first = torch.cuda.current_stream()
    with runners(on_gpu)[0].frame_context():
        assert torch.cuda.current_stream() == first


def test_images_are_sent_by_turns(on_gpu: Segmenter, make_frame: MakeFrame) -> None:
    from lowlat_seg_ros.engine import preprocess

    runner, _ = runners(on_gpu)
    geometry = preprocess.plan((48, 64), 0)
    with torch.inference_mode(), runner.frame_context():
        for index in range(5):
            image = make_frame(index).image
            pixels = torch.from_numpy(preprocess.pixels_of(image, geometry)).cuda()
            wanted = on_gpu.normalise(pixels.permute(2, 0, 1).unsqueeze(0) / 255)
            np.testing.assert_allclose(
                runner.image(image, geometry)[0].cpu().numpy(), wanted.cpu().numpy(), atol=1e-6
            )
