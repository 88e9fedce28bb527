"""Key-frame methods and per-frame ones: which masks they give, and when Sh runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
import torch

from lowlat_seg_ros.config import EngineConfig
from lowlat_seg_ros.engine.engine import Engine
from lowlat_seg_ros.engine.runner import Runner
from lowlat_seg_ros.frames import Frame, FrameError, MaskKind, ResetReason
from lowlat_seg_ros.lab.baselines.carry import Adaptive, Head
from lowlat_seg_ros.lab.baselines.keyed import (
    FeatureChange,
    Fixed,
    KeyedEngine,
    PredictedDeviation,
    Threshold,
    adaptive,
)
from lowlat_seg_ros.lab.baselines.stream import FullEngine, SingleFrameEngine
from lowlat_seg_ros.network.segmenter import Segmenter

MakeFrame = Callable[..., Frame]

#: Small networks gain nothing from more, and wait for each other on a busy machine.
ONE_THREAD = EngineConfig(foreground_threads=1)


def test_key_frames_are_the_full_network_s_and_come_at_the_interval(
    tiny: Segmenter, make_frame: MakeFrame
) -> None:
    keyed, full = adaptive(tiny, Fixed(3), ONE_THREAD), FullEngine(tiny, ONE_THREAD)
    for index in range(7):
        answer, whole = keyed.process(make_frame(index)), full.process(make_frame(index))
        assert answer.provenance.key_age_frames == index % 3
        assert np.array_equal(answer.mask, whole.mask) == (index % 3 == 0)
    assert keyed.counters.key_frames == 3


@pytest.mark.parametrize(
    "network", ["tiny", "tiny_ddr", "tiny_gated", "tiny_coarse"], indirect=True
)
def test_between_key_frames_masks_are_the_engine_s(
    network: Segmenter, make_frame: MakeFrame
) -> None:
    """With the same exact key frame behind them: the engine's first."""
    by_deviation = dataclasses.replace(ONE_THREAD, key_frame_policy="deviation")
    engine = Engine.deterministic(network, by_deviation, threshold=1.0, delay_frames=0)
    keyed = adaptive(network, Fixed(100), ONE_THREAD)
    for index in range(4):
        frame = make_frame(index)
        assert np.array_equal(keyed.process(frame).mask, engine.process(frame).mask)


def test_without_fusion_the_current_frame_s_own_features_do_not_show(
    tiny: Segmenter, make_frame: MakeFrame
) -> None:
    carrier, head = Adaptive(tiny.predictor), Head(tiny.high_classifier)
    plain = KeyedEngine(tiny, carrier, head, Fixed(5), ONE_THREAD)
    fused = adaptive(tiny, Fixed(5), ONE_THREAD)
    masks = [[e.process(make_frame(i)).mask for i in range(2)] for e in (plain, fused)]
    assert np.array_equal(masks[0][0], masks[1][0])
    assert not np.array_equal(masks[0][1], masks[1][1])


def test_a_reset_begins_with_a_key_frame(tiny: Segmenter, make_frame: MakeFrame) -> None:
    keyed = adaptive(tiny, Fixed(100), ONE_THREAD)
    for index in range(2):
        keyed.process(make_frame(index))
    keyed.reset()
    answer = keyed.process(make_frame(2))
    assert answer.provenance.kind is MaskKind.FULL
    assert answer.provenance.reset is ResetReason.REQUESTED
    assert answer.counters.resets == 1


def test_another_size_begins_a_new_epoch(tiny: Segmenter, make_frame: MakeFrame) -> None:
    keyed = adaptive(tiny, Fixed(100), ONE_THREAD)
    keyed.process(make_frame(0))
    answer = keyed.process(make_frame(1, size=(40, 56)))
    assert answer.provenance.reset is ResetReason.SIZE_CHANGED
    assert answer.mask.shape == (40, 56)


@pytest.mark.parametrize("kind", ["feature", "selector"])
def test_a_threshold_takes_every_frame_or_none(
    kind: str, tiny: Segmenter, make_frame: MakeFrame
) -> None:
    measure = FeatureChange() if kind == "feature" else PredictedDeviation()
    for threshold, expected in ((-1.0, 5), (1e9, 1)):
        keyed = adaptive(tiny, Threshold(measure, threshold), ONE_THREAD)
        for index in range(5):
            keyed.process(make_frame(index))
        assert keyed.counters.key_frames == expected


def test_the_change_is_measured_from_the_key_frame(tiny: Segmenter) -> None:
    schedule, runner = Threshold(FeatureChange(), 0.5), Runner(tiny)
    key = torch.ones(1, 2, 3, 3)
    schedule.promote(runner, key)
    assert not schedule.is_key(runner, 1, 1.4 * key)
    # It is 0.6 from the key frame, though only 0.2 from the frame before.
    assert schedule.is_key(runner, 2, 1.6 * key)
    schedule.promote(runner, 1.6 * key)
    assert not schedule.is_key(runner, 1, 1.6 * key)


def test_feature_change_is_relative(tiny: Segmenter) -> None:
    low, measure, runner = torch.rand(1, 4, 5, 5), FeatureChange(), Runner(tiny)
    assert measure.change(runner, low, low) == 0.0
    assert measure.change(runner, low, 1.5 * low) == pytest.approx(0.5, abs=1e-5)
    assert measure.change(runner, 10 * low, 15 * low) == pytest.approx(0.5, abs=1e-5)


def test_single_frame_is_the_engine_s_degraded_mask(
    tiny: Segmenter, make_frame: MakeFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = SingleFrameEngine(tiny, ONE_THREAD)
    masks = [method.process(make_frame(index)).mask for index in range(2)]
    assert method.counters.key_frames == 0

    def broken(*args: object) -> None:
        raise RuntimeError("no memory")

    monkeypatch.setattr(tiny, "higher", broken)  # the engine then falls back to the auxiliary mask
    for index, mask in enumerate(masks):
        engine = Engine.deterministic(tiny, ONE_THREAD, threshold=1.0, delay_frames=0)
        assert np.array_equal(engine.process(make_frame(index)).mask, mask)


def test_masks_do_not_depend_on_earlier_frames_without_key_frames(
    tiny: Segmenter, make_frame: MakeFrame
) -> None:
    method = SingleFrameEngine(tiny, ONE_THREAD)
    alone = method.process(make_frame(3)).mask
    method.process(make_frame(4))
    answer = method.process(make_frame(3, stamp_ms=500))
    assert np.array_equal(answer.mask, alone)
    assert answer.provenance.key_age_frames == 0


def test_an_impossible_frame_is_refused_and_the_next_one_works(
    tiny: Segmenter, make_frame: MakeFrame
) -> None:
    keyed = adaptive(tiny, Fixed(2), ONE_THREAD)
    huge = np.broadcast_to(np.zeros((1, 1, 3), np.uint8), (10_000, 10_000, 3))
    with pytest.raises(FrameError, match="inference_height"):
        keyed.process(Frame(huge, 0))
    assert keyed.process(make_frame(0)).mask.shape == (48, 64)


def test_an_interval_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="interval is 0"):
        Fixed(0)
