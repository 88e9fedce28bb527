"""The gate: what it decides between, and that the engine tells it the age of the features."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lowlat_seg_ros.config import NETWORKS, ConfigError, EngineConfig, NetworkConfig
from lowlat_seg_ros.engine import runner
from lowlat_seg_ros.engine.engine import Engine
from lowlat_seg_ros.engine.key_frame import HighLevel, resampled
from lowlat_seg_ros.engine.preprocess import plan
from lowlat_seg_ros.frames import Frame, MaskKind
from lowlat_seg_ros.lab.data.synthetic import RenderedDrive
from lowlat_seg_ros.lab.training.selector import calibrate_gate
from lowlat_seg_ros.network import gate
from lowlat_seg_ros.network.gate import evidence_of, weigh, weighed
from lowlat_seg_ros.network.segmenter import Segmenter


def decided(gated: Segmenter, trust: float) -> Segmenter:
    """``gated`` with a gate that always says ``trust``, 0 or 1."""
    assert gated.gate is not None
    torch.nn.init.zeros_(gated.gate.last.weight)
    torch.nn.init.constant_(gated.gate.last.bias, 200.0 * (2 * trust - 1))
    return gated


def parts(net: Segmenter) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """F_l, some F_h as Eq. (1) carries it, evidence and the full network's answers."""
    low = net.lower(torch.randn(1, 3, 56, 88))
    high = torch.randn(1, net.config.high_channels, 7, 11)
    answers = net.high_classifier.cells(high)
    reduced = net.predictor.reduce(low)
    residual = torch.rand(1, 4, 7, 11)
    known = evidence_of(reduced.roll(1, 3), reduced, torch.tensor([0.2]), residual)
    return low, net.carried_cells(high), known, answers


def decide(net: Segmenter, *parts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Logits and trust, of what :func:`parts` returns."""
    low, high, known, answers = parts
    cells = net.fuse(high, low, known, answers, net.predictor.reduce(low))
    return net.split_trust(net.decide(cells, answers))


@torch.inference_mode()
def test_no_trust_is_the_single_frame_and_full_trust_what_was_carried(gated: Segmenter) -> None:
    low, high, known, answers = parts(gated)
    alone = decided(gated, 0.0).classify_fused(high, low, known, answers)
    assert torch.equal(alone, gated.classify_low(low))
    carried = decided(gated, 1.0).classify_fused(high, low, known, answers)
    torch.testing.assert_close(carried, gated.high_classifier.arrange(answers))


@torch.inference_mode()
def test_the_calibration_raises_trust_where_features_are_fresh(gated: Segmenter) -> None:
    assert gated.gate is not None
    low, high, known, answers = parts(gated)
    trusts = {}
    for age in (0.0, 1.0):
        for calibration in ((0.0, 0.0), (2.0, -2.0)):
            gated.gate.calibration.copy_(torch.tensor(calibration))
            known[:, 1] = age
            trusts[age, calibration] = decide(gated, low, high, known, answers)[1]
    assert (trusts[0.0, (2.0, -2.0)] > trusts[0.0, (0.0, 0.0)]).all()
    # At the age of 1 both numbers add up to nothing.
    torch.testing.assert_close(trusts[1.0, (2.0, -2.0)], trusts[1.0, (0.0, 0.0)])


def test_calibrating_the_gate_finds_what_gives_the_best_masks(gated: Segmenter) -> None:
    drive = RenderedDrive(seed=0, frames=18, rate_hz=15.0, size=(64, 96))
    frames = [drive[index] for index in range(18)]
    figures = calibrate_gate(gated, [frames])
    assert gated.gate is not None
    found = gated.gate.calibration.tolist()
    assert found == [figures["gate_constant"], figures["gate_share_of_age"]]
    assert figures["gate_miou"] >= figures["gate_miou_before"]


@torch.inference_mode()
def test_the_trust_is_told_for_each_answer(gated: Segmenter) -> None:
    low, high, known, answers = parts(gated)
    logits, trust = decide(gated, low, high, known, answers)
    assert trust is not None
    assert trust.shape == (1, 1, *logits.shape[2:])
    assert 0 < trust.min() < trust.max() < 1
    with pytest.raises(ValueError, match="a network with a gate needs all three"):
        gated.fuse(high, low, known)


@torch.inference_mode()
def test_coarse_cells_are_means_of_four() -> None:
    net = Segmenter(NETWORKS["tiny_coarse"]).eval()
    low = net.lower(torch.randn(1, 3, 56, 88))
    reduced = net.predictor.reduce(low)
    assert reduced.shape[2:] == (4, 6)
    high = torch.randn(1, net.config.high_channels, 7, 11)
    cells = net.carried_cells(high)
    torch.testing.assert_close(cells[..., 1, 2], high[..., 2:4, 4:6].mean((2, 3)))
    torch.testing.assert_close(cells[..., 3, 5], high[..., 6, 10])  # the edge's is that of what is
    weights = net.predictor(net.predictor.remember(reduced), reduced)
    assert net.propagate(cells, weights).shape == cells.shape


@torch.inference_mode()
def test_a_key_frame_at_another_size_fits_its_frames(gated: Segmenter) -> None:
    """Also where there are odd numbers of cells, and back again."""
    config = EngineConfig(inference_height=0)
    engine = Engine.deterministic(gated, config, threshold=1.0, delay_frames=1)
    engine.process(Frame(np.zeros((56, 88, 3), np.uint8), 0))
    (key, _), image = engine._cache.snapshot(), torch.randn(1, 3, 56, 88)
    assert key is not None
    for scale in (3 / 4, 1 / 8, 1 / 2, 1.0):
        geometry = plan((56, 88), 0, scale)
        key = resampled(key, geometry)
        height, width = geometry.padded
        low = gated.lower(image[:, :, :height, :width])
        weights = gated.predictor(key.remembered, gated.predictor.reduce(low))
        assert key.high is not None
        carried = gated.propagate(key.high.features, weights)
        assert carried.shape[2:] == gated.carried_cells(low).shape[2:]


def test_coarse_cells_without_answers_of_their_own_are_refused() -> None:
    with pytest.raises(ConfigError, match="propagation_stride is 16 without fine_carry"):
        NetworkConfig(propagation_stride=16)


@torch.inference_mode()
def test_answers_are_weighed_point_by_point() -> None:
    own, carried = torch.zeros(1, 3 * 4, 2, 2), torch.ones(1, 3 * 4, 2, 2)
    trust = torch.tensor([0.0, 0.25, 0.5, 1.0]).view(1, 4, 1, 1).expand(1, 4, 2, 2)
    pixels = torch.nn.functional.pixel_shuffle(weighed(own, carried, trust), 2)
    assert pixels.shape == (1, 3, 4, 4)
    assert torch.equal(pixels[0, 1, :2, :2], torch.tensor([[0.0, 0.25], [0.5, 1.0]]))


@pytest.mark.parametrize("cells", [(5, 7), (3, 4)])
def test_the_compiled_evidence_is_that_of_pytorch(cells: tuple[int, int]) -> None:
    """With gradients PyTorch computes it."""
    pytest.importorskip("numba", reason="numba compiles it")
    assert gate.compiled_evidence() is not None
    key, now, residual = torch.rand(1, 8, *cells), torch.rand(1, 8, *cells), torch.rand(1, 4, 5, 7)
    with torch.no_grad():
        compiled = evidence_of(key, now, torch.tensor([0.3]), residual)
    torch.testing.assert_close(compiled, evidence_of(key, now, torch.tensor([0.3]), residual))


def test_the_compiled_step_weighs_as_pytorch_does() -> None:
    """With gradients PyTorch does it, and where shapes do not fit."""
    pytest.importorskip("numba", reason="numba compiles it")
    assert gate.compiled_weighing(3, 2) is not None
    own, carried = torch.randn(2, 1, 3 * 4, 5, 7)
    cells = torch.cat([own, torch.rand(1, 4, 5, 7)], dim=1)
    with torch.no_grad():
        compiled = weigh(cells, carried, 2)
    torch.testing.assert_close(compiled, weigh(cells, carried, 2))
    with torch.no_grad(), pytest.raises(RuntimeError):
        weigh(cells, carried[:, :, 1:], 2)


def test_evidence_grows_with_age_and_change() -> None:
    reduced, residual = torch.rand(2, 8, 3, 4), torch.rand(2, 4, 3, 4)
    same = evidence_of(reduced, reduced, torch.tensor([0.0, 1.0]), residual)
    assert same.shape == (2, 2 + 4, 3, 4)
    assert (same[:, 0] == 0).all()
    assert (same[0, 1] == 0).all()
    assert (same[1, 1] > 0.9).all()
    assert (same[:, 2:] > same[:, :1]).all()
    other = evidence_of(reduced + 0.5, reduced, torch.tensor([0.1, 0.2]), residual)
    torch.testing.assert_close(other[:, 0], torch.full((2, 3, 4), 0.5))


def test_the_engine_says_how_old_the_features_are(
    gated: Segmenter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the stamp of the frame that Sh has seen, through key frames that were carried."""
    ages = []
    monkeypatch.setattr(
        runner,
        "evidence_of",
        lambda key, now, age, residual: (
            ages.append(age.item()) or evidence_of(key, now, age, residual)
        ),
    )
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (7, 64, 96, 3), np.uint8)
    config = EngineConfig(key_frame_policy="when_free")
    engine = Engine.deterministic(gated, config, threshold=1.0, delay_frames=3)
    results = [engine.process(Frame(x, n * 100_000_000)) for n, x in enumerate(images)]
    # Frame 1 becomes the key frame, and its exact features are there from frame 4 on.
    assert ages == pytest.approx([0.1, 0.2, 0.3, 0.3, 0.4, 0.5])
    assert [r.provenance.exact for r in results[1:]] == [True, False, False, True, False, False]
    assert results[0].provenance.kind is MaskKind.FULL
    assert results[0].trust is None
    assert all(0 < r.trust < 1 for r in results[1:])


def test_age_is_counted_in_frames_where_stamps_stand_still() -> None:
    seen = HighLevel(torch.empty(0), stamp_ns=500_000_000, index=10)
    assert seen.age_s(700_000_000, 13) == pytest.approx(0.2)
    assert seen.age_s(500_000_000, 13) == pytest.approx(3 / 15)
    assert seen.age_s(500_000_000, 10) == 0


def test_a_sh_that_fails_is_not_given_every_frame(
    gated: Segmenter, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine.deterministic(gated, threshold=1.0, delay_frames=1)
    image = np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)
    engine.process(Frame(image, 0))
    monkeypatch.setattr(gated, "higher", lambda source, *_: torch.full((1, 8, 8, 12), torch.nan))
    for number in range(1, 8):
        engine.process(Frame(image, number * 10**8))
    assert engine.counters.failed == 1
    assert engine.counters.key_frames == 2


def test_a_network_without_a_gate_tells_no_trust(tiny: Segmenter) -> None:
    image = np.zeros((64, 96, 3), np.uint8)
    engine = Engine.deterministic(tiny, threshold=1.0, delay_frames=1)
    assert [engine.process(Frame(image, n)).trust for n in range(3)] == [None] * 3
