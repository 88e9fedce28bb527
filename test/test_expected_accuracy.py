"""What masks say of their own accuracy: the model, what is observed for it, and shipped weights."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from lowlat_seg_ros.config import EngineConfig
from lowlat_seg_ros.engine.engine import Engine
from lowlat_seg_ros.frames import Frame, MaskKind, ResetReason
from lowlat_seg_ros.lab.calibrate import fit
from lowlat_seg_ros.lab.calibrate.samples import Collector, Samples, rendered
from lowlat_seg_ros.lab.data.degrading import BY_NAME, corrupted
from lowlat_seg_ros.lab.data.synthetic import RenderedDrive
from lowlat_seg_ros.network import checkpoint
from lowlat_seg_ros.network.checkpoint import DEFAULT_CHECKPOINT, CheckpointError
from lowlat_seg_ros.network.expected_accuracy import (
    BANDS,
    AccuracyModel,
    Looker,
    Term,
    observe,
    of_confidence,
    of_image,
    temperature,
)
from lowlat_seg_ros.network.segmenter import Segmenter
from lowlat_seg_ros.tools import cli

#: As diagnostics have it by default (NodeConfig.error_expected_accuracy), which needs ROS.
ERROR_LIMIT = 0.6

LAYOUT = ((-1.0,) * 11,) * BANDS
MODEL = AccuracyModel(
    -1.0, (Term("confidence", 0.0, 4.0, 3.0), Term("age", 0.0, 0.5, -1.0)), LAYOUT
)

rng = np.random.default_rng(0)


def test_a_model_is_flat_beyond_its_range_and_refuses_what_it_cannot_use() -> None:
    bands = np.full((BANDS, 11), 1 / 11)

    def expected(confidence: float, age: float = 0.0) -> float:
        return MODEL({"confidence": confidence, "age": age}, bands)

    assert expected(4.0) == expected(9.0) == pytest.approx(1 / (1 + math.exp(-2)))
    assert expected(0.0) == expected(-5.0) < expected(1.0) < expected(2.0)
    assert expected(2.0, 0.5) < expected(2.0, 0.1) < expected(2.0)
    assert 0 < expected(math.nan) < 0.5  # a network that gives nonsense is not right
    with pytest.raises(ValueError, match="not finite"):
        dataclasses.replace(MODEL, bias=math.nan)
    with pytest.raises(ValueError, match="range of age"):
        dataclasses.replace(MODEL, terms=(Term("age", 1.0, 1.0, 2.0),))


def test_a_checkpoint_keeps_the_model(weights: Path, tmp_path: Path) -> None:
    header, out = checkpoint.read_header(weights), tmp_path / "with.safetensors"
    assert header.accuracy is None
    checkpoint.with_header(weights, dataclasses.replace(header, accuracy=MODEL), out)
    segmenter, found = checkpoint.load(out)
    assert found.accuracy == segmenter.accuracy_model == MODEL
    assert dataclasses.replace(found, accuracy=None) == header
    damaged = dataclasses.replace(MODEL, bias=0.0)
    object.__setattr__(damaged, "bias", "much")
    checkpoint.with_header(weights, dataclasses.replace(header, accuracy=damaged), out)
    with pytest.raises(CheckpointError, match="damaged header"):
        checkpoint.read_header(out)


def test_confidence_is_observed_and_softened_to_what_is_expected() -> None:
    logits = rng.normal(0, 3, (11, 40 * 50)).astype(np.float32)
    values, bands = of_confidence(logits, rows=40)
    powers = torch.from_numpy(logits).softmax(0)
    mean = powers.amax(0).mean().item()
    assert values["confidence"] == pytest.approx(math.log(mean / (1 - mean)), rel=1e-4)
    entropy = -(powers * powers.log()).sum(0).mean().item()
    assert values["entropy"] == pytest.approx(entropy, rel=1e-3)
    assert bands.shape == (BANDS, 11)
    assert bands.sum(axis=1) == pytest.approx(1.0, rel=1e-4)
    half, _ = of_confidence(logits, rows=40, empty=0.5)  # half of the lines never came
    assert half["confidence"] == pytest.approx(math.log(mean / (2 - mean)), rel=1e-4)
    assert half["entropy"] == pytest.approx((entropy + math.log(11)) / 2, rel=1e-3)
    assert half["low_confidence"] == pytest.approx(values["low_confidence"] / 2)
    for expected in (0.3, 0.6, mean):
        soft = (torch.from_numpy(logits) / temperature(logits, expected)).softmax(0)
        assert soft.amax(0).mean().item() == pytest.approx(expected, abs=0.005)


def test_an_image_shows_empty_lines_noise_specks_hidden_places_and_saturation() -> None:
    luma = rng.integers(90, 110, (180, 240)).astype(np.uint8)
    grid = np.full((33, 49, 3), 100, np.uint8)
    usual = of_image(luma, grid)
    assert usual["empty"] == usual["white"] == 0
    cut = luma.copy()
    cut[90:] = 0
    assert of_image(cut, grid)["empty"] == pytest.approx(0.5, abs=0.01)
    noisy = rng.integers(0, 256, luma.shape).astype(np.uint8)
    assert of_image(noisy, grid)["roughness"] > usual["roughness"] + 1
    spoilt = luma.copy()
    spoilt[5::10, 5::10] = 255  # one pixel of a hundred
    assert usual["specks"] == 0
    assert of_image(spoilt, grid)["specks"] == pytest.approx(0.01, abs=0.001)
    hidden = luma.copy()
    hidden[:, 60:] = 100
    assert of_image(hidden, grid)["patchiness"] > usual["patchiness"] + 0.3
    grid[:11] = 255
    assert of_image(luma, grid)["white"] == pytest.approx(1 / 3)


def test_a_look_counts_images_that_do_not_change() -> None:
    looker, image = Looker(), rng.integers(0, 256, (64, 96, 3)).astype(np.uint8)
    other = image.copy()
    other[1, 1] ^= 255  # not on the grid
    seen = [(image, 0), (image.copy(), 1), (image, 1), (image, 2), (other, 3), (other, 4)]
    assert [looker.look(pixels, stamp).unchanged for pixels, stamp in seen] == [0, 1, 1, 2, 0, 1]


def test_without_a_model_nothing_is_claimed(tiny: Segmenter) -> None:
    frame = Frame(rng.integers(0, 256, (64, 96, 3)).astype(np.uint8), 0)
    with Engine.deterministic(tiny, threshold=0.5, delay_frames=1) as engine:
        result = engine.process(frame, confidence=True)
    assert math.isnan(result.expected_accuracy)
    assert result.look is not None
    tiny.accuracy_model = MODEL
    with Engine.deterministic(tiny, threshold=0.5, delay_frames=1) as engine:
        judged = engine.process(frame, confidence=True)
    assert 0 < judged.expected_accuracy < 1
    assert np.array_equal(judged.mask, result.mask)
    assert judged.confidence is not None
    assert judged.confidence.mean() / 255 == pytest.approx(judged.expected_accuracy, abs=0.05)


def test_pixels_are_left_out_by_the_confidence_that_is_published(tiny: Segmenter) -> None:
    tiny.accuracy_model = dataclasses.replace(MODEL, bias=0.0)
    config = EngineConfig(confidence_threshold=0.5)
    frame = Frame(rng.integers(0, 256, (64, 96, 3)).astype(np.uint8), 0)
    with Engine.deterministic(tiny, config, threshold=0.5, delay_frames=1) as engine:
        result = engine.process(frame, confidence=True)
    assert result.confidence is not None
    assert np.array_equal(result.mask == 255, result.confidence < 128)
    assert 0 < (result.mask == 255).mean() < 1


@pytest.mark.parametrize("kind", BY_NAME)
def test_corruptions_grow_with_their_strength_and_are_the_same_each_time(kind: str) -> None:
    image = RenderedDrive(seed=3, frames=1, size=(96, 128))[0].image

    def damage(strength: float) -> float:
        worse = corrupted(image, kind, strength, 5)
        assert worse.dtype == np.uint8
        assert worse.shape == image.shape
        assert np.array_equal(worse, corrupted(image, kind, strength, 5))
        return float(np.abs(worse.astype(int) - image).mean())

    weak, strong = damage(0.2), damage(1.0)
    assert 0 < weak <= strong
    assert weak < strong or kind == "colours"  # which has but one strength


def samples(count: int = 400) -> Samples:
    """Made up: masks are right as often as their confidence says, and less by roughness."""
    confidence, rough = rng.uniform(0, 4, count), rng.uniform(0, 3, count)
    rough[: count // 2] = rng.uniform(0, 1, count // 2)  # the clean half
    right = 1 / (1 + np.exp(-confidence + 1.5 * np.maximum(rough - 1, 0)))
    kind = np.where(np.arange(count) < count // 2, "clean", "noise")
    values = {name: np.zeros(count) for name in (*fit.CONFIDENCE, *fit.UNUSUAL) if name != "layout"}
    values |= {"confidence": confidence, "roughness": rough, "age": rng.uniform(0, 1, count)}
    bands = np.full((count, BANDS, 11), 1 / 11)
    logits, label = np.zeros((count, 11, 6)), np.zeros((count, 6), np.uint8)
    strength = np.ones(count)
    source, scene = np.full(count, "rendered"), np.arange(count)
    return Samples(source, scene, kind, strength, right, bands, logits, label, values)


def test_a_fitted_model_finds_what_makes_masks_wrong() -> None:
    made = samples()
    model = fit.fit(made, np.ones(len(made)))
    expected = fit.predict(model, made)
    assert fit.correlation(expected, made.right) > 0.97
    assert abs(expected.mean() - made.right.mean()) < 0.01
    assert fit.auroc(expected, made.right < fit.BAD) > 0.98
    signs = {**fit.CONFIDENCE, **{name: -side for name, side in fit.UNUSUAL.items()}}
    assert all(term.weight * signs[term.name] > 0 for term in model.terms)
    one = {name: float(value[3]) for name, value in made.values.items()}
    assert model(one, made.bands[3]) == pytest.approx(expected[3], abs=1e-6)


def test_samples_are_of_clean_corrupted_and_frozen_images(tiny: Segmenter) -> None:
    frames, collector = rendered(3, (48, 64), 6), Collector(tiny, seed=0)
    collector.scene(frames, "rendered", 3, kinds=2)
    collector.frozen(frames, "rendered", 3)
    made = collector.samples()
    kinds, counts = np.unique(made.kind, return_counts=True)
    assert dict(zip(kinds, counts, strict=True)).items() >= {"clean": 3, "frozen": 2}.items()
    assert len(made) == 3 * 3 + 2
    assert made.values["unchanged"][made.kind == "frozen"].tolist() == pytest.approx(
        np.log1p([1, 3])
    )
    # The labels beside the logits are theirs.
    hit = made.logits.argmax(axis=1) == made.label
    assert hit.mean() == pytest.approx(made.right.mean(), abs=0.1)
    assert made.values.keys() >= {*fit.CONFIDENCE, *fit.UNUSUAL} - {"layout"}


@pytest.mark.slow
def test_the_command_writes_the_model_and_the_checksum(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    beside = Path(f"{weights}{checkpoint.SHA256_SUFFIX}")
    beside.write_text("0" * 64)
    words = ["--checkpoint", weights, "--minutes", 0.001, "--size", "48x64"]
    words += ["--report", tmp_path / "report"]
    assert cli.main(["calibrate", *map(str, words)]) == 0
    model = checkpoint.read_header(weights).accuracy
    assert model is not None
    assert checkpoint.verify(weights)
    assert "| clean |" in capsys.readouterr().out
    assert (tmp_path / "report" / "reliability.png").is_file()


@pytest.mark.parametrize("option", ["--judge-only", "--only-drive=0001TP"])
def test_what_needs_camvid_says_so(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["calibrate", "--checkpoint", str(DEFAULT_CHECKPOINT), option]) == 2
    assert "needs --root, the folder of CamVid" in capsys.readouterr().err


def test_models_of_earlier_versions_find_all_that_they_look_at() -> None:
    image = rng.integers(0, 256, (64, 96, 3)).astype(np.uint8)
    names = "confidence entropy low_confidence distrust age unchanged roughness blocks white empty"
    terms = tuple(Term(name, 0.0, 1.0, 0.1) for name in [*names.split(), "layout"])
    seen = observe(image, Looker().look(image, 0), torch.randn(1, 11, 16, 24), luma=None)
    assert 0 < AccuracyModel(0.0, terms, LAYOUT)(seen.values, seen.bands) < 1


@pytest.fixture(scope="module")
def shipped() -> Iterator[Engine]:
    with Engine.from_checkpoint(
        DEFAULT_CHECKPOINT, EngineConfig(foreground_threads=1), device="cpu"
    ) as engine:
        yield engine


def full(engine: Engine, image: np.ndarray) -> float:
    engine.reset(ResetReason.REQUESTED)
    result = engine.process(Frame(image, 0))
    assert result.provenance.kind is MaskKind.FULL
    return result.expected_accuracy


def test_shipped_weights_know_when_they_see_nothing(shipped: Engine) -> None:
    noise = rng.integers(0, 256, (360, 480, 3)).astype(np.uint8)
    for image in (np.zeros_like(noise), np.full_like(noise, 255), noise):
        assert full(shipped, image) < ERROR_LIMIT


def test_shipped_weights_expect_less_of_a_corrupted_image(shipped: Engine) -> None:
    image = RenderedDrive(seed=9_000_001, frames=1, size=(360, 480))[0].image
    clean = full(shipped, image)
    assert clean > 0.85
    for kind in ("rain", "rows", "dirt"):
        assert full(shipped, corrupted(image, kind, 1.0, 1)) < clean - 0.04, kind
