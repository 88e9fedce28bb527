"""``lowlat-seg evaluate``: one run, one table, figures that add up."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from lowlat_seg_ros.config import NETWORKS, ConfigError, EngineConfig
from lowlat_seg_ros.engine.cpu_threads import cores, foreground_threads
from lowlat_seg_ros.engine.engine import Engine
from lowlat_seg_ros.lab.baselines.keyed import (
    FeatureChange,
    Fixed,
    PredictedDeviation,
    Threshold,
    adaptive,
)
from lowlat_seg_ros.lab.baselines.stream import FullEngine
from lowlat_seg_ros.lab.data.clip import Clip
from lowlat_seg_ros.lab.data.sequence import LabelledFrame
from lowlat_seg_ros.lab.evaluation import methods
from lowlat_seg_ros.lab.evaluation.catalogue import GROUPS, INTERVALS, catalogue, choose
from lowlat_seg_ros.lab.evaluation.comparison import measure
from lowlat_seg_ros.lab.evaluation.methods import Replay, low_features
from lowlat_seg_ros.lab.metrics import Confusion
from lowlat_seg_ros.labels import CAMVID, CITYSCAPES
from lowlat_seg_ros.network import checkpoint
from lowlat_seg_ros.network.checkpoint import Header
from lowlat_seg_ros.network.segmenter import Segmenter
from lowlat_seg_ros.tools import cli

pytestmark = pytest.mark.slow

REQUIRED = {"miou", "pixel_accuracy", "class_accuracy", "vc8", "key_share", "avg_ms", "max_ms"}

#: Small networks gain nothing from more, and wait for each other on a busy machine.
ONE_THREAD = EngineConfig(foreground_threads=1)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def ignore(steps: int) -> None:
    """No progress is shown."""


@pytest.fixture
def clip() -> Clip:
    """Two drives of six and four frames whose images drift slowly, labels at random."""
    rng = np.random.default_rng(0)
    frames = []
    for index in range(10):
        image = rng.integers(0, 256, (48, 64, 3)) if index in (0, 6) else frames[-1].image
        image = np.clip(image + rng.integers(-20, 21, image.shape), 0, 255).astype(np.uint8)
        label = rng.integers(0, 11, (48, 64), np.uint8)
        label[:4] = 255
        frames.append(LabelledFrame(image, label, index * 100_000_000, str(index)))
    return Clip("noise", CAMVID, 10.0, tuple(frames), ("a",) * 6 + ("b",) * 4)


def evaluate(*words: object) -> int:
    common = "evaluate --size 48x64 --frames 6 --device cpu --foreground-threads 1"
    return cli.main([*common.split(), *map(str, words)])


def figures(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def test_every_method_is_in_the_table_and_in_the_json(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "deep" / "figures.json"
    assert evaluate("--checkpoint", weights, "--methods", "all", "--json", path) == 0
    found, shown = figures(path), capsys.readouterr().out
    named = {spec.name for spec in catalogue(4)}
    assert set(found["methods"]) | set(found["left_out"]) == named
    assert {"full", "single_frame", "adaptive", "adaptive_low_latency"} <= set(found["methods"])
    for name, row in found["methods"].items():
        assert set(row) >= REQUIRED, name
        assert 0 <= row["miou"] <= 1
        assert 0 < row["avg_ms"] <= row["max_ms"]
        assert name in shown
        assert list(row["class_iou"]) == list(CAMVID.names)
        known = [iou for iou in row["class_iou"].values() if iou is not None]
        assert row["miou"] == pytest.approx(sum(known) / len(known), abs=1e-5)
    assert found["methods"]["full"]["key_share"] == 1.0
    assert found["methods"]["single_frame"]["key_share"] == 0.0
    assert found["methods"]["schedule_fixed_2"]["key_share"] == 0.5
    assert found["facts"]["provenance"] == {"licence": "none"}
    assert found["facts"]["frames"] == 6
    assert found["complete"] is True


def test_each_method_says_how_many_threads_it_used(weights: Path, tmp_path: Path) -> None:
    path, chosen = tmp_path / "figures.json", "full,adaptive,adaptive_low_latency"
    words = ("--checkpoint", weights, "--methods", chosen, "--json", path)
    few = max(1, cores() - 1)
    for given, expected in (
        (("--foreground-threads", 2), {2}),
        (("--foreground-threads", 0, "--slow-track-priority", "normal"), {cores(), few}),
    ):
        assert evaluate(*words, *given) == 0
        used = {name: row["threads"] for name, row in figures(path)["methods"].items()}
        assert set(used.values()) == expected
        assert used["full"] == used["adaptive"] == max(expected)
        assert used["adaptive_low_latency"] == min(expected)


def test_a_run_that_is_stopped_keeps_what_it_has(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(methods.keyed, "adaptive", interrupted)
    path, chosen = tmp_path / "figures.json", "full,dff,adaptive"
    assert evaluate("--checkpoint", weights, "--methods", chosen, "--json", path) == 130
    found = figures(path)
    assert found["complete"] is False
    assert set(found["methods"]) == {"full"}
    assert set(found["left_out"]) == {"dff"}
    assert [entry.name for entry in tmp_path.glob("figures*")] == ["figures.json"]


def test_the_page_says_what_was_run_but_not_where(weights: Path, tmp_path: Path) -> None:
    out = tmp_path / "docs"
    words = ("--checkpoint", weights, "--methods", "full*,grfp,adaptive*4", "--baselines", tmp_path)
    assert evaluate(*words, "--delay-frames", 2, "--out", out) == 0
    page = (out / "results.md").read_text()
    command = re.findall(r"^lowlat-seg .*", page, re.MULTILINE)[0]
    assert "--frames 6 --size 48x64 --methods 'full*,grfp,adaptive*4'" in command
    assert "--checkpoint tiny.safetensors" in command
    assert "--out" not in command
    assert str(tmp_path) not in page
    headings = re.findall(r"^\| \*\*(.+?)\*\*|^\| `(\w+)`", page, re.MULTILINE)
    rows = [first or second for first, second in headings]
    # In the tables of methods, of intervals and of classes.
    assert rows == 3 * [
        GROUPS["per_frame"], "full", "full_os16", "full_half",
        GROUPS["low_latency"], "adaptive_low_latency_4",
    ]  # fmt: skip
    assert "- `grfp`: no weights in the folder given" in page
    assert "| IoU in % | Sky | Building |" in page


def test_accuracy_is_the_same_on_every_run(weights: Path, tmp_path: Path) -> None:
    rows = []
    for name in ("a", "b"):
        path = tmp_path / name
        chosen = "full,adaptive,adaptive_low_latency,schedule_threshold_2"
        assert evaluate("--checkpoint", weights, "--methods", chosen, "--json", path) == 0
        rows.append({
            method: {k: v for k, v in row.items() if not k.endswith(("_ms", "_cores"))}
            for method, row in figures(path)["methods"].items()
        })  # fmt: skip
    assert rows[0] == rows[1]


def test_scores_are_those_of_one_pooled_matrix(tiny: Segmenter, clip: Clip) -> None:
    expected = Confusion(11)
    by_age = {age: Confusion(11) for age in range(3)}
    method = adaptive(tiny, Fixed(3), ONE_THREAD)
    for index, frame in enumerate(clip.frames):
        if index == 6:
            method.reset()
        mask = method.process(clip.frame(index)).mask
        expected.update(frame.label, mask)
        by_age[(index if index < 6 else index - 6) % 3].update(frame.label, mask)
    result = measure(adaptive(tiny, Fixed(3), ONE_THREAD), clip, {2}, ignore)
    assert result.miou == expected.miou
    assert result.pixel_accuracy == expected.pixel_accuracy
    assert result.class_accuracy == expected.class_accuracy
    assert result.by_distance == {age: matrix.miou for age, matrix in by_age.items()}
    assert result.key_share == 0.4
    assert set(result.masks) == {2}


def test_first_frames_of_drives_do_not_count_as_latency(tiny: Segmenter, clip: Clip) -> None:
    result = measure(FullEngine(tiny, ONE_THREAD), clip, (), ignore)
    assert [m.index for m in result.moments if m.first] == [0, 6]
    steady = [m.latency_ms for m in result.moments if not m.first]
    assert result.max_ms == max(steady)
    assert result.avg_ms == pytest.approx(sum(steady) / 8)


def test_the_threads_told_are_those_that_frames_had(tiny: Segmenter, clip: Clip) -> None:
    """Not the one that is left to the selector once the mask is out."""
    with Engine.deterministic(tiny, threshold=0.1, delay_frames=1) as engine:
        assert measure(engine, clip, (), ignore).threads == foreground_threads(EngineConfig())


def test_temporal_consistency_does_not_reach_across_drives(tiny: Segmenter, clip: Clip) -> None:
    still = dataclasses.replace(
        clip, frames=tuple(dataclasses.replace(f, label=clip.frames[0].label)
                              for f in clip.frames)
    )  # fmt: skip
    assert math.isnan(
        measure(FullEngine(tiny, ONE_THREAD), still, (), ignore).vc8
    )  # no drive has 8 frames
    one = dataclasses.replace(still, drives=("a",) * 10)
    assert 0 <= measure(FullEngine(tiny, ONE_THREAD), one, (), ignore).vc8 <= 1


@pytest.mark.parametrize("kind", ["feature", "selector"])
def test_thresholds_give_the_wanted_share(kind: str, tiny: Segmenter, clip: Clip) -> None:
    measured = FeatureChange() if kind == "feature" else PredictedDeviation()
    lows = low_features(tiny, clip, EngineConfig(), ignore)
    replay = Replay(measured, tiny, lows, clip)
    for interval in (1, 2, 5):
        threshold = replay.threshold(interval)
        result = measure(
            adaptive(tiny, Threshold(measured, threshold), ONE_THREAD),
            clip,
            (),
            ignore,
        )
        keys = round(result.key_share * 10)
        assert abs(keys - replay.keys(threshold)) <= 1  # features were kept in half precision
        assert abs(keys - 10 / interval) <= 2


def test_a_checkpoint_at_output_stride_16_has_no_os16_method(tmp_path: Path) -> None:
    config = dataclasses.replace(NETWORKS["tiny"], output_stride=16)
    path, out = tmp_path / "w.safetensors", tmp_path / "f.json"
    header = Header(config, CAMVID.names, CAMVID.colours, 0.3)
    checkpoint.save(path, Segmenter(config), header, torch.float32)
    assert evaluate("--checkpoint", path, "--methods", "full*", "--json", out) == 0
    assert "would equal full" in figures(out)["left_out"]["full_os16"]
    assert set(figures(out)["methods"]) == {"full", "full_half"}


def test_choosing_methods() -> None:
    specs = catalogue(4)
    assert [s.name for s in choose("single_frame, full", specs)] == ["full", "single_frame"]
    assert len(choose("schedule_threshold_*", specs)) == len(INTERVALS)
    assert choose("all", specs) == list(specs)
    names = [spec.name for spec in catalogue(3)]
    assert len(set(names)) == len(names)
    assert "adaptive_low_latency_4" in names
    for wrong in ("full,flying", " "):
        with pytest.raises(ConfigError, match="--methods"):
            choose(wrong, specs)


def test_a_checkpoint_for_other_classes_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate("--checkpoint", untrained(tmp_path / "two.safetensors", ("a", "b"))) == 2
    assert "has 2 classes" in capsys.readouterr().err


def write(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), pixels)


def untrained(path: Path, names: tuple[str, ...]) -> Path:
    config = dataclasses.replace(NETWORKS["tiny"], num_classes=len(names))
    header = Header(config, names, ((0, 0, 0),) * len(names), 0.3)
    checkpoint.save(path, Segmenter(config), header, torch.float32)
    return path


def test_cityscapes_snippets_are_played_up_to_the_annotated_frame(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for sequence in range(2):
        stem = f"bonn/bonn_{sequence:06d}"
        for frame in range(30):
            image = rng.integers(0, 256, (32, 64, 3), np.uint8)
            write(tmp_path / f"leftImg8bit_sequence/val/{stem}_{frame:06d}_leftImg8bit.png", image)
        label = rng.integers(0, 19, (32, 64), np.uint8)
        write(tmp_path / f"gtFine/val/{stem}_000019_gtFine_labelTrainIds.png", label)
    path, out = untrained(tmp_path / "w.safetensors", CITYSCAPES.names), tmp_path / "f.json"
    common = "evaluate --dataset cityscapes --device cpu --foreground-threads 1 --methods adaptive"
    words = ["--root", tmp_path, "--checkpoint", path, "--json", out]
    assert cli.main([*common.split(), *map(str, words)]) == 0
    found = figures(out)
    assert found["facts"]["frames"] == 40
    assert found["facts"]["rate_hz"] == 17
    row = found["methods"]["adaptive"]
    assert row["key_share"] == 0.2
    scored = [age for age, miou in row["miou_by_distance"].items() if miou is not None]
    assert scored == ["4"]  # the 20th frame of both, every fifth being a key frame
    assert row["miou"] == row["miou_by_distance"]["4"]
    assert row["vc8"] is None


def test_a_folder_of_the_user_s_own(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for index in range(3):
        write(tmp_path / f"yard/images/{index}.png", rng.integers(0, 256, (32, 48, 3), np.uint8))
        write(tmp_path / f"yard/labels/{index}.png", rng.integers(0, 2, (32, 48), np.uint8))
    (tmp_path / "yard/classes.yaml").write_text(
        "classes: [{name: a, colour: [0, 0, 0]}, {name: b, colour: [1, 1, 1]}]"
    )
    path, out = untrained(tmp_path / "w.safetensors", ("a", "b")), tmp_path / "f.json"
    common = "evaluate --dataset folder --device cpu --foreground-threads 1 --methods full --rate 8"
    words = ["--root", tmp_path / "yard", "--checkpoint", path, "--json", out]
    assert cli.main([*common.split(), *map(str, words)]) == 0
    facts = figures(out)["facts"]
    assert (facts["dataset"], facts["frames"], facts["rate_hz"]) == ("yard", 3, 8)


@pytest.mark.skipif("CAMVID_ROOT" not in os.environ, reason="CAMVID_ROOT does not name CamVid")
def test_camvid_s_clip(weights: Path, tmp_path: Path) -> None:
    path = tmp_path / "f.json"
    data = ["--dataset", "camvid", "--root", os.environ["CAMVID_ROOT"]]
    words = ["--methods", "full,adaptive", "--checkpoint", weights, "--json", path]
    assert evaluate(*data, *words) == 0
    assert figures(path)["facts"]["dataset"] == "CamVid val"
    assert "1.3 s" in figures(path)["facts"]["note"]
