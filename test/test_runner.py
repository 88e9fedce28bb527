"""How the engine runs the network's parts where there is no GPU; test_cuda.py has the other way."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count

import pytest
import torch
from torch import Tensor

from lowlat_seg_ros.engine.postprocess import mask_of
from lowlat_seg_ros.engine.preprocess import plan
from lowlat_seg_ros.engine.runner import Runner, Stopwatch, runners
from lowlat_seg_ros.frames import Frame
from lowlat_seg_ros.lab.benchmark.measure import Captures, captures
from lowlat_seg_ros.network.segmenter import Segmenter

MakeFrame = Callable[..., Frame]


def test_on_a_cpu_there_is_neither_stream_nor_graph(tiny: Segmenter) -> None:
    frames, slow = runners(tiny)
    assert type(frames) is type(slow) is Runner
    assert captures(tiny) == Captures(0, 0)


@torch.inference_mode()
def test_the_parts_are_the_network_s(tiny: Segmenter, make_frame: MakeFrame) -> None:
    run, geometry = Runner(tiny), plan((48, 64), 0)
    images = [run.image(make_frame(i).image, geometry)[0] for i in range(2)]
    pixels = torch.from_numpy(make_frame(0).image).permute(2, 0, 1).unsqueeze(0)
    assert torch.equal(images[0], tiny.normalise(pixels.float() / 255))
    key, low = (run.lower(image) for image in images)
    assert torch.equal(low, tiny.lower(images[1]))
    high = run.higher(key)
    assert torch.equal(high, tiny.higher(key))
    before, now = tiny.predictor.reduce(key), tiny.predictor.reduce(low)
    assert torch.equal(run.reduce(low), now)
    remembered = tiny.predictor.remember(before)
    assert torch.equal(run.remember(before), remembered)
    weights = run.kernels(remembered, now)
    assert torch.equal(weights, tiny.predictor(remembered, now))
    carried = run.propagate(high, weights)
    assert torch.equal(carried, tiny.propagate(high, weights))
    assert run.evidence(before, now, 0.1, None) is None  # there is no gate
    fused, trust = run.fuse(carried, low, now, None, None)
    assert trust is None
    assert torch.equal(fused, tiny.classify_fused(carried, low))
    assert torch.equal(run.classify_high(high), tiny.classify_high(high))
    assert torch.equal(run.classify_low(low), tiny.classify_low(low))
    seen = tiny.selector.reduce(key), tiny.selector.reduce(low)
    assert torch.equal(run.selector_reduce(low), seen[1])
    assert run.deviation(*seen) == tiny.selector.deviation(*seen).item()
    assert (run.mask(fused, geometry) == mask_of(fused, geometry)).all()
    assert run.clone(low) is low


@torch.inference_mode()
def test_sh_can_be_run_slice_by_slice(tiny: Segmenter) -> None:
    """Always the same slices in the same order, which is how a GPU knows them again."""
    low = torch.randn(1, tiny.low_channels, 6, 8)
    orders: list[list[object]] = []

    def higher() -> Tensor:
        order: list[object] = []
        orders.append(order)

        def step(function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
            order.append(function)
            return function(*inputs)

        return tiny.higher(low, step=step)

    assert torch.equal(higher(), tiny.higher(low))
    assert torch.equal(higher(), tiny.higher(low))
    assert orders[0] == orders[1]
    assert len(orders[0]) == len(list(tiny.backbone.higher_blocks())) + 1


def test_stages_may_have_a_clock_of_their_own() -> None:
    """As on a GPU, whose events are read when the mask is out."""
    ticks, marks, read = count(0, 1_000_000), count(), []

    def ms_between(start: int, end: int) -> float:
        read.append((start, end))
        return 10.0 * (end - start)

    watch = Stopwatch(lambda: next(ticks), lambda: next(marks), ms_between)
    with watch.stage("lower_ms"), watch.stage("fusion_ms"):
        pass
    watch.mask_out()
    assert read == []  # nothing is waited for before
    timing = watch.timing()
    assert (timing.lower_ms, timing.fusion_ms) == (30.0, 10.0)
    assert timing.latency_ms == pytest.approx(1.0)  # frame in to mask out, by the host's
