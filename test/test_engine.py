"""The frame loop: what each mask is made from, when, and what survives errors and resets."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lowlat_seg_ros.config import NETWORKS, ConfigError, EngineConfig
from lowlat_seg_ros.engine import step as step_module
from lowlat_seg_ros.engine.cpu_threads import cores
from lowlat_seg_ros.engine.engine import Engine
from lowlat_seg_ros.engine.postprocess import confidence_of, mask_of
from lowlat_seg_ros.engine.preprocess import plan
from lowlat_seg_ros.engine.runner import Runner
from lowlat_seg_ros.frames import Frame, MaskKind, ResetReason
from lowlat_seg_ros.lab.baselines.stream import FullEngine
from lowlat_seg_ros.network.checkpoint import CheckpointError, Header, save
from lowlat_seg_ros.network.segmenter import Segmenter

MakeFrame = Callable[..., Frame]
ALWAYS, NEVER = 0.0, 1.0  # thresholds of the deviation: every frame a key frame, or none
ONE_THREAD = {"foreground_threads": 1}  # a busy machine must not slow the tests


def engine_of(segmenter: Segmenter, threshold: float, delay: int = 1, **config: object) -> Engine:
    by_deviation = {"key_frame_policy": "deviation"}
    settings = EngineConfig(**(ONE_THREAD | by_deviation | config))  # type: ignore[arg-type]
    return Engine.deterministic(segmenter, settings, threshold=threshold, delay_frames=delay)


class Reference:
    """The network composed by hand from the formulas, for one size of image."""

    def __init__(self, segmenter: Segmenter, frame: Frame) -> None:
        self.net = segmenter
        self.geometry = plan(frame.image.shape[:2], 0)

    def low(self, frame: Frame) -> Tensor:
        return self.net.lower(Runner(self.net).image(frame.image, self.geometry)[0])

    def high(self, frame: Frame) -> Tensor:
        image = Runner(self.net).image(frame.image, self.geometry)[0]
        return self.net.higher(self.net.source(image))

    def carry(self, high: Tensor, key: Tensor, low: Tensor) -> Tensor:
        predictor = self.net.predictor
        weights = predictor(predictor.remember(predictor.reduce(key)), predictor.reduce(low))
        return self.net.propagate(high, weights)

    def mask(self, logits: Tensor) -> np.ndarray:
        return mask_of(logits, self.geometry)


@torch.inference_mode()
def test_masks_are_the_papers(network: Segmenter, make_frame: MakeFrame) -> None:
    """First frame full; then provisional features, then exact ones, each the right mask."""
    frames = [make_frame(i) for i in range(4)]
    ref = Reference(network, frames[0])
    engine = engine_of(network, ALWAYS, delay=1)
    results = [engine.process(frame) for frame in frames]

    low = [ref.low(frame) for frame in frames]
    high = ref.high(frames[0])
    assert (results[0].mask == ref.mask(network.classify_high(high))).all()
    for t in (1, 2, 3):
        # Frame t-1's Sh is due at frame t, so its key frame is exact by then.
        carried = ref.carry(ref.high(frames[t - 1]), low[t - 1], low[t])
        assert (results[t].mask == ref.mask(network.classify_fused(carried, low[t]))).all()
    assert [r.provenance.kind for r in results] == [MaskKind.FULL] + 3 * [MaskKind.PROPAGATED]
    assert all(r.provenance.exact for r in results)
    assert all(len(np.unique(r.mask)) > 3 for r in results)  # so that equality says something


@torch.inference_mode()
def test_provisional_features_are_the_propagated_ones(
    network: Segmenter, make_frame: MakeFrame
) -> None:
    frames = [make_frame(i) for i in range(3)]
    ref = Reference(network, frames[0])
    engine = engine_of(network, ALWAYS, delay=100)
    last = [engine.process(frame) for frame in frames][-1]
    low = [ref.low(frame) for frame in frames]
    provisional = ref.carry(ref.high(frames[0]), low[0], low[1])
    carried = ref.carry(provisional, low[1], low[2])
    assert (last.mask == ref.mask(network.classify_fused(carried, low[2]))).all()
    exact = ref.carry(ref.high(frames[1]), low[1], low[2])
    assert (last.mask != ref.mask(network.classify_fused(exact, low[2]))).any()
    assert not last.provenance.exact
    assert last.provenance.key_stamp_ns == frames[1].stamp_ns


@pytest.mark.parametrize("policy", ["propagate", "as_is", "drop"])
@torch.inference_mode()
def test_late_refinement(network: Segmenter, make_frame: MakeFrame, policy: str) -> None:
    """Frame 1's Sh is due at frame 3, when frame 2 is the key frame."""
    frames = [make_frame(i) for i in range(4)]
    ref = Reference(network, frames[0])
    engine = engine_of(network, ALWAYS, delay=2, late_refinement=policy)
    last = [engine.process(frame) for frame in frames][-1]
    low = [ref.low(frame) for frame in frames]
    exact_of_1 = ref.high(frames[1])
    of_2 = {
        "propagate": lambda: ref.carry(exact_of_1, low[1], low[2]),
        "as_is": lambda: exact_of_1,
        "drop": lambda: ref.carry(
            ref.carry(ref.high(frames[0]), low[0], low[1]), low[1], low[2]
        ),
    }[policy]()  # fmt: skip
    expected = network.classify_fused(ref.carry(of_2, low[2], low[3]), low[3])
    assert (last.mask == ref.mask(expected)).all()
    assert not last.provenance.exact
    counters = engine.counters
    assert (counters.carried, counters.dropped_late) == ((0, 1) if policy == "drop" else (1, 0))


def test_provenance_ages(tiny: Segmenter, make_frame: MakeFrame) -> None:
    engine = engine_of(tiny, NEVER)
    for index, stamp_ms in enumerate([50, 150, 250, 400]):
        result = engine.process(make_frame(index, stamp_ms=stamp_ms))
        assert result.provenance.key_age_frames == index
        assert result.provenance.key_age_ms == stamp_ms - 50
        assert result.provenance.key_stamp_ns == 50_000_000
        assert result.stamp_ns == stamp_ms * 1_000_000
        assert result.frame_id == "camera"
    assert engine.counters.key_frames == 1
    assert engine.counters.submitted == 0


def test_key_interval_forces_key_frames(tiny: Segmenter, make_frame: MakeFrame) -> None:
    engine = engine_of(tiny, NEVER, max_key_interval=3)
    results = [engine.process(make_frame(i)) for i in range(8)]
    chosen = [r.selection.is_key for r in results if r.selection is not None]
    assert chosen == [False, False, True, False, False, True, False]
    assert [r.provenance.key_age_frames for r in results] == [0, 1, 2, 3, 1, 2, 3, 1]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"size": (40, 56)}, ResetReason.SIZE_CHANGED),
        ({"frame_id": "other"}, ResetReason.FRAME_ID_CHANGED),
        ({"encoding": "bgr8"}, ResetReason.ENCODING_CHANGED),
        ({"stamp_ms": 50}, ResetReason.TIME_JUMPED_BACK),
        ({"stamp_ms": 5000}, ResetReason.GAP),
    ],
)
def test_each_reset_begins_an_epoch(
    tiny: Segmenter, make_frame: MakeFrame, change: dict[str, object], reason: ResetReason
) -> None:
    engine = engine_of(tiny, ALWAYS, delay=100)
    first, second = engine.process(make_frame(0)), engine.process(make_frame(1))
    assert (first.provenance.reset, second.provenance.reset) == (ResetReason.FIRST_FRAME, None)
    changed = make_frame(2, **change)
    third = engine.process(changed)
    assert third.provenance.reset is reason
    assert third.provenance.kind is MaskKind.FULL
    assert third.provenance.epoch == 1
    assert third.mask.shape == changed.image.shape[:2]
    assert third.counters.dropped_stale == 1
    assert third.counters.resets == getattr(third.counters, f"resets_{reason.value}") == 1
    # Nothing of the old epoch shows: the same as a fresh engine's mask.
    assert (third.mask == engine_of(tiny, ALWAYS).process(changed).mask).all()


def test_requested_reset(tiny: Segmenter, make_frame: MakeFrame) -> None:
    engine = engine_of(tiny, NEVER)
    engine.process(make_frame(0))
    engine.reset()
    result = engine.process(make_frame(1))
    assert result.provenance.reset is ResetReason.REQUESTED
    assert result.counters.resets == result.provenance.epoch == 1
    assert engine.process(make_frame(2)).provenance.reset is None


def test_masks_at_the_networks_size(tiny: Segmenter, make_frame: MakeFrame) -> None:
    engine = engine_of(tiny, NEVER, inference_height=24)
    for index, small in enumerate([True, True, False, True]):
        result = engine.process(make_frame(index), confidence=True, mask_at_network_size=small)
        assert result.confidence is not None
        size = (24, 32) if small else (48, 64)
        assert result.mask.shape == result.confidence.shape == size
        assert result.provenance.epoch == 0  # the features are the same
        assert result.provenance.exact
    assert engine.counters.key_frames == 1


def test_repeated_stamp_makes_a_key_frame_once(tiny: Segmenter, make_frame: MakeFrame) -> None:
    engine = engine_of(tiny, NEVER, delay=0)
    stamps_ms = [0, 100, 100, 100, 200, 200]
    results = [engine.process(make_frame(i, stamp_ms=ms)) for i, ms in enumerate(stamps_ms)]
    chosen = [r.selection.is_key for r in results if r.selection is not None]
    assert chosen == [False, True, False, False, True]
    assert [r.provenance.kind for r in results[1:]] == [MaskKind.PROPAGATED] * 5
    assert [r.counters.duplicates for r in results] == [0, 0, 1, 1, 1, 2]
    assert engine.counters.resets == 0


def test_key_frame_by_force(tiny: Segmenter, make_frame: MakeFrame) -> None:
    engine = engine_of(tiny, NEVER, delay=0)
    for index in range(2):
        engine.process(make_frame(index))
    engine.force_key_frame()
    engine.force_key_frame()  # no more than once a frame
    results = [engine.process(make_frame(index)) for index in (2, 3)]
    chosen = [r.selection.is_key for r in results if r.selection is not None]
    assert chosen == [True, False]
    assert [r.provenance.kind for r in results] == [MaskKind.PROPAGATED] * 2
    assert (engine.counters.forced, engine.counters.key_frames) == (1, 2)
    engine.force_key_frame()
    engine.reset()
    full = engine.process(make_frame(4))
    assert (full.provenance.kind, full.counters.forced) == (MaskKind.FULL, 2)
    after = engine.process(make_frame(5)).selection
    assert after is not None
    assert not after.is_key


@torch.inference_mode()
@pytest.mark.parametrize("least", [0.3, 0.5, 1.0])
def test_pixels_of_little_confidence_are_unlabelled(
    tiny: Segmenter, make_frame: MakeFrame, least: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In each kind of mask, from the next frame on, and nothing else changes.

    The confidence that is asked for is the one that was made for the mask.
    """
    made: list[Tensor] = []

    def counted(logits: Tensor, *rest: Any) -> np.ndarray:
        made.append(logits)
        return confidence_of(logits, *rest)

    monkeypatch.setattr(step_module, "confidence_of", counted)
    plain, strict = (engine_of(tiny, NEVER) for _ in range(2))
    plain.process(make_frame(0))
    strict.process(make_frame(0))
    strict.reconfigure(dataclasses.replace(strict.config, confidence_threshold=least))
    for index in (1, 2):
        whole = plain.process(make_frame(index), confidence=True)
        found = strict.process(make_frame(index), confidence=True)
        assert whole.confidence is not None
        unsure = whole.confidence < 255 * least
        assert unsure.any()
        assert len(made) == index * 2  # once for each of the two
        np.testing.assert_array_equal(found.mask, np.where(unsure, 255, whole.mask))
        np.testing.assert_array_equal(found.confidence, whole.confidence)
        plain.reset()
        strict.reset()  # the next one is a full frame


def test_confidence_is_the_masks_own_and_made_when_asked_for(
    tiny: Segmenter, make_frame: MakeFrame
) -> None:
    engine = engine_of(tiny, NEVER)
    full = engine.process(make_frame(0), confidence=True)
    fast = engine.process(make_frame(1), confidence=True)
    ref = Reference(tiny, make_frame(0))
    low = [ref.low(make_frame(i)) for i in range(2)]
    high = tiny.higher(low[0])
    fused = tiny.classify_fused(ref.carry(high, low[0], low[1]), low[1])
    for result, logits in ((full, tiny.classify_high(high)), (fast, fused)):
        assert result.confidence is not None
        assert (result.confidence == confidence_of(logits, ref.geometry)).all()
        assert result.confidence.shape == result.mask.shape
    assert engine.process(make_frame(2)).confidence is None


def test_selector_runs_after_the_mask_is_out(tiny: Segmenter, make_frame: MakeFrame) -> None:
    ran: list[str] = []
    tiny.selector.register_forward_hook(lambda *_: ran.append("selector"))
    engine = engine_of(tiny, ALWAYS)
    engine.process(make_frame(0))
    step = engine.segment(make_frame(1))
    assert ran == []
    result = engine.finish(step)
    assert ran == ["selector"]
    assert step.timing.selector_ms == 0.0
    assert step.mask is result.mask
    assert result.selection is not None
    assert result.selection.is_key
    assert 0 <= result.selection.deviation <= 1
    assert result.timing.selector_ms > 0
    assert result.timing.latency_ms == step.timing.latency_ms


@pytest.mark.parametrize("size", [(1, 1), (7, 5), (8, 8), (49, 67), (1, 200)])
@pytest.mark.parametrize("inference_height", [0, 32])
def test_mask_has_the_inputs_size(
    tiny: Segmenter, make_frame: MakeFrame, size: tuple[int, int], inference_height: int
) -> None:
    engine = engine_of(tiny, ALWAYS, inference_height=inference_height)
    for index in range(3):
        result = engine.process(make_frame(index, size=size))
        assert result.mask.shape == size
        assert result.mask.dtype == np.uint8
        assert result.mask.max() < tiny.config.num_classes


def test_dynamic_settings_take_effect_on_the_next_frame(
    tiny: Segmenter, make_frame: MakeFrame
) -> None:
    engine = engine_of(tiny, NEVER)
    engine.process(make_frame(0))
    engine.reconfigure(
        EngineConfig(deviation_threshold=0.0, slow_track_min_share=0.5, **ONE_THREAD)
    )
    selection = engine.process(make_frame(1)).selection
    assert selection is not None
    assert (selection.threshold, selection.is_key) == (0.0, True)
    with pytest.raises(ConfigError, match="inference_height is -1 until a new engine is made"):
        engine.reconfigure(EngineConfig(inference_height=64, **ONE_THREAD))
    assert engine.config.deviation_threshold == 0.0


def test_training_mode_is_refused(tiny: Segmenter) -> None:
    with pytest.raises(ValueError, match="call its eval"):
        engine_of(tiny.train(), NEVER)


def test_engine_from_a_checkpoint(tiny: Segmenter, make_frame: MakeFrame, tmp_path: Path) -> None:
    classes = tuple(f"class{i}" for i in range(11))
    header = Header(NETWORKS["tiny"], classes, ((0, 0, 0),) * 11, threshold=0.125)
    save(tmp_path / "tiny.safetensors", tiny, header, torch.float32)
    config = EngineConfig(precision="fp32")
    with Engine.from_checkpoint(tmp_path / "tiny.safetensors", config, "cpu") as engine:
        assert engine.header == header
        first = engine.process(make_frame(0))
        assert (first.mask == engine_of(tiny, NEVER).process(make_frame(0)).mask).all()
        selection = engine.process(make_frame(1)).selection
        assert selection is not None
        assert selection.threshold == 0.125
    with pytest.raises(RuntimeError, match="closed"):
        engine.process(make_frame(2))


@pytest.mark.parametrize("device", ["tpu", "cuda:64", "meta", "cuda:x"])
def test_device_that_is_not_there(device: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"device is '{device}'"):
        Engine.from_checkpoint(tmp_path / "none", device=device)


def test_missing_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="check the path"):
        Engine.from_checkpoint(tmp_path / "none.safetensors", device="cpu")


def test_full_engine_segments_each_frame_by_itself(tiny: Segmenter, make_frame: MakeFrame) -> None:
    full = FullEngine(tiny, EngineConfig(**ONE_THREAD))
    for index in range(3):
        result = full.process(make_frame(index))
        alone = engine_of(tiny, NEVER).process(make_frame(index))
        assert (result.mask == alone.mask).all()
        assert result.provenance.kind is MaskKind.FULL
        assert (result.counters.frames, result.provenance.key_age_ms) == (index + 1, 0.0)
    full.reset()
    assert full.process(make_frame(3)).provenance.reset is ResetReason.REQUESTED


def test_the_first_frame_uses_the_cores_of_both_tracks(
    tiny: Segmenter, make_frame: MakeFrame
) -> None:
    config = EngineConfig(foreground_threads=1, slow_track_threads=1)
    seen = []
    tiny.context.register_forward_pre_hook(lambda *_: seen.append(torch.get_num_threads()))
    with Engine.deterministic(tiny, config, threshold=1.0, delay_frames=1) as engine:
        for index in range(2):
            engine.process(make_frame(index))
            seen.append(torch.get_num_threads())
    assert seen == [min(cores(), 2), 1, 1]


@pytest.mark.parametrize("delay", [1, 3])
def test_features_of_a_provisional_key_frame_are_older_than_it(
    tiny: Segmenter, make_frame: MakeFrame, delay: int
) -> None:
    """Each frame becomes the key frame, and what Sh saw is ``delay`` frames old when it arrives."""
    engine = engine_of(tiny, 0.0, delay=delay, max_key_interval=1)
    ages = [engine.process(make_frame(i, stamp_ms=100 * i)).provenance for i in range(7)]
    assert ages[0].features_age_ms == 0.0
    assert all(source.key_age_ms == 100.0 for source in ages[1:])
    late = [source.features_age_ms for source in ages[1 + delay :]]
    assert min(late) == 100.0 * delay
    assert max(late) < 100.0 * (2 * delay + 1)


@pytest.mark.parametrize("delay", [1, 2, 3])
def test_sh_runs_back_to_back_on_the_newest_frame(
    tiny: Segmenter, make_frame: MakeFrame, delay: int
) -> None:
    """Without any deviation: each result is ``delay`` frames old, and the next job begins there."""
    engine = engine_of(tiny, NEVER, delay=delay, key_frame_policy="when_free")
    results = [engine.process(make_frame(i)) for i in range(13)]
    keys = [i for i, r in enumerate(results) if r.selection is not None and r.selection.is_key]
    assert keys == list(range(1, 13, delay))
    arrived = [i for i, r in enumerate(results[1:], 1) if r.provenance.exact and i > 1]
    assert arrived == list(range(1 + delay, 13, delay))
    assert all(results[i].provenance.key_age_frames == delay for i in arrived)
    counters = engine.counters
    assert counters.superseded == counters.carried == counters.dropped_late == 0
