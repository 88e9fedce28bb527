"""``lowlat-seg bag report``: its figures are those computed directly, its page is complete."""

from __future__ import annotations

import base64
import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

pytest.importorskip("rosbags", reason="bags need the library rosbags")

from lowlat_seg_ros.config import EngineConfig
from lowlat_seg_ros.engine.engine import Engine
from lowlat_seg_ros.lab.data.clip import Clip, load
from lowlat_seg_ros.lab.data.synthetic import RenderedDrive
from lowlat_seg_ros.lab.evaluation.comparison import assumed, stream
from lowlat_seg_ros.lab.metrics import Confusion, accuracy
from lowlat_seg_ros.labels import CAMVID, overlay
from lowlat_seg_ros.network import inference
from lowlat_seg_ros.tools import cli
from lowlat_seg_ros.tools.bag import recording
from lowlat_seg_ros.tools.bag.command import Topics
from lowlat_seg_ros.tools.bag.make import START_NS
from lowlat_seg_ros.tools.bag.storage import BagReader, BagWriter, Raw

FRAMES, THRESHOLD, DELAY, LATENCY_MS = 9, 0.9, 2, 120
#: At 10 Hz with LATENCY_MS for each mask, the newest image being taken when one is done.
SEGMENTED = [0, 1, 2, 3, 4, 6, 7, 8]
PUBLISHED_MS = [120, 240, 360, 480, 600, 720, 840, 960]


@pytest.fixture(scope="module")
def masks(shared_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bag of a run over a rendered drive in virtual time."""
    folder: Path = tmp_path_factory.mktemp("masks")
    drive = ["--size", "48x80", "--frames", FRAMES, "--rate", 10, "--out", folder / "drive"]
    assert command("make", *drive) == 0
    words = ["--checkpoint", shared_weights, "--device", "cpu", "--foreground-threads", 1]
    words += ["--max-key-interval", 3, "--deviation-threshold", THRESHOLD]
    words += ["--delay-frames", DELAY, "--latency-ms", LATENCY_MS, "--out", folder / "masks"]
    assert command("run", folder / "drive", *words) == 0
    return folder / "masks"


@pytest.fixture(scope="module")
def reported(masks: Path) -> tuple[dict[str, Any], str]:
    """The figures of that bag and their page."""
    return report(masks)


def command(*words: object) -> int:
    return cli.main(["bag", *map(str, words)])


def report(bag: Path, *words: object) -> tuple[dict[str, Any], str]:
    """The figures and the page."""
    out = bag.parent / "report"
    assert command("report", bag, "--out", out, *words) == 0
    return json.loads((out / "report.json").read_text()), (out / "report.html").read_text()


def embedded(page: str) -> dict[str, Any]:
    (text,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)
    return json.loads(text)


def clip_of_drive() -> Clip:
    drive = RenderedDrive(seed=1, frames=FRAMES, rate_hz=10, size=(48, 80))
    return load("drive", drive, 0, lambda count: None)


def engine(weights: Path) -> Engine:
    network, _ = inference.load(weights, torch.device("cpu"))
    config = EngineConfig(foreground_threads=1, max_key_interval=3)
    return Engine.deterministic(network, config, threshold=THRESHOLD, delay_frames=DELAY)


def copied(bag: Path, out: Path, keep: Callable[[Raw], bool], **facts: Any) -> Path:
    """The messages of ``bag`` that ``keep`` chooses, with other ``facts``."""
    with BagReader(bag) as source, BagWriter(out, "mcap") as target:
        for raw in filter(keep, source.raw()):
            target.copy(raw)
        target.facts = {**source.facts, **facts} if facts else {}
    return out


def error_line(capsys: pytest.CaptureFixture[str]) -> str:
    error = capsys.readouterr().err.splitlines()
    return [line for line in error if "frame/s" not in line][-1]


@pytest.mark.slow
def test_scores_are_those_of_the_engine_s_own_run(
    reported: tuple[dict[str, Any], str], weights: Path
) -> None:
    figures, clip = reported[0], clip_of_drive()
    own = engine(weights)
    made = [own.process(clip.frame(index)).mask for index in SEGMENTED]
    labels = [frame.label for frame in clip.frames]
    expected = accuracy(labels, list(zip(SEGMENTED, made, strict=True)), CAMVID.names)
    found = figures["accuracy"]
    assert found["own"]["frames"] == len(SEGMENTED)
    assert found["own"]["miou"] == pytest.approx(expected.miou, abs=1e-6)
    assert found["own"]["pixel_accuracy"] == pytest.approx(expected.pixel_accuracy, abs=1e-6)
    at_publish = Confusion(len(CAMVID))
    for published_ms, mask in zip(PUBLISHED_MS, made, strict=True):
        at_publish.update(labels[min(published_ms // 100, FRAMES - 1)], mask)
    assert found["miou_at_publish"] == pytest.approx(at_publish.miou, abs=1e-6)
    streamed = stream(engine(weights), clip, assumed(LATENCY_MS), lambda count: None)
    assert found["miou_streaming"] == pytest.approx(streamed, abs=1e-6)
    scores = {found["own"]["miou"], found["miou_at_publish"], found["miou_streaming"]}
    assert len(scores) == 3  # they are not one and the same here


def test_ros2_benchmark_s_figures(reported: tuple[dict[str, Any], str]) -> None:
    figures = reported[0]
    found = {
        name.removeprefix("BasicPerformanceMetrics."): value
        for name, value in figures.items()
        if name.startswith("BasicPerformanceMetrics.")
    }
    latencies = [out - 100 * index for out, index in zip(PUBLISHED_MS, SEGMENTED, strict=True)]
    assert found == pytest.approx({
        "RECEIVED_DURATION": 840, "MEAN_FRAME_RATE": 8 / 0.84, "MEAN_PLAYBACK_FRAME_RATE": 9 / 0.8,
        "NUM_FRAMES_SENT": 9, "NUM_MISSED_FRAMES": 1,
        "FIRST_SENT_RECEIVED_LATENCY": 120, "LAST_SENT_RECEIVED_LATENCY": 160,
        "FIRST_INPUT_LATENCY": 120, "LAST_INPUT_LATENCY": 160, "MAX_LATENCY": max(latencies),
        "MIN_LATENCY": min(latencies), "MEAN_LATENCY": np.mean(latencies),
        "MAX_JITTER": 0, "MIN_JITTER": 0, "MEAN_JITTER": 0, "STD_DEV_JITTER": 0,
    }, abs=1e-5)  # fmt: skip
    steady = figures["latency"]["age"]["steady"]
    expected = np.percentile(latencies[1:], (50, 95, 99, 100))
    assert [steady[name] for name in ("p50", "p95", "p99", "max")] == pytest.approx(expected)
    assert steady["count"] == len(latencies) - 1


def test_every_image_is_in_the_account(reported: tuple[dict[str, Any], str]) -> None:
    figures = reported[0]
    assert figures["account"] == {
        "played": 9, "masks": 8, "superseded": 1, "rejected": 0, "failed": 0
    }  # fmt: skip
    assert figures["unaccounted"] == 0
    assert figures["ledger"]["received"] == figures["counters"]["frames"] == 8
    assert figures["metadata"]["time"] == {"kind": "virtual", "delay_frames": 2, "latency_ms": 120}
    assert figures["stages"]["higher_ms"]["first"] > 0


def test_one_that_is_in_no_account_is_reported(masks: Path, tmp_path: Path) -> None:
    with BagReader(masks) as bag:
        facts = bag.facts["ledger"]
    bag = copied(masks, tmp_path / "other", lambda raw: True, ledger={**facts, "superseded": 0})
    assert command("report", bag, "--out", tmp_path / "report") == 1


def test_the_page_needs_nothing_but_itself(reported: tuple[dict[str, Any], str]) -> None:
    page = reported[1]
    outside = re.sub(r'<script type="application/json".*?</script>', "", page, flags=re.S)
    assert not re.findall(
        r"https?:|//cdn|@import|url\(|<link|<script [^>]*src|<img [^>]*src", outside
    )
    assert "default-src 'none'" in page
    assert len(re.findall("<html", page)) == 1


@pytest.mark.slow
def test_the_page_shows_every_frame(reported: tuple[dict[str, Any], str], weights: Path) -> None:
    figures, page = reported
    data, clip, own = embedded(page), clip_of_drive(), engine(weights)
    assert data["figures"] == figures
    assert [frame["mask"] is not None for frame in data["frames"]] == [
        index in SEGMENTED for index in range(FRAMES)
    ]
    assert data["frames"][3]["stamp"] == "1.300000000"
    assert [entry["index"] for entry in data["pictures"]] == list(range(FRAMES))
    keys = 0
    for index in SEGMENTED:
        result, frame = own.process(clip.frame(index), confidence=True), data["frames"][index]
        said = frame["mask"]
        assert said["kind"] == result.provenance.kind.value
        assert said["key_age_frames"] == result.provenance.key_age_frames
        keys += said["is_key"]
        if result.selection is not None:
            assert said["deviation"] == pytest.approx(result.selection.deviation, abs=1e-6)
            assert said["threshold"] == pytest.approx(THRESHOLD)
        right = (result.mask == clip.frames[index].label)[clip.frames[index].label != 255].mean()
        assert said["right"] == pytest.approx(right, abs=1e-6)
        entry, image = data["pictures"][index], clip.frames[index].image
        mixed = overlay(image, result.mask, CAMVID)
        # JPEG blurs colours, so each is compared with the other.
        assert 2 * distance(entry["input"], image) < distance(entry["input"], mixed)
        assert 2 * distance(entry["overlay"], mixed) < distance(entry["overlay"], image)
        assert decoded(entry["confidence"]).shape == (48, 80, 3)
    assert 1 < keys == figures["key_frames"] < len(SEGMENTED)
    dropped = data["pictures"][5]
    assert (dropped["overlay"], dropped["confidence"]) == (None, None)


def distance(uri: str, picture: np.ndarray) -> float:
    """Mean difference of a pixel's colours."""
    return float(np.abs(decoded(uri).astype(int) - picture).mean())


def decoded(uri: str) -> np.ndarray:
    content = base64.b64decode(uri.removeprefix("data:image/jpeg;base64,"))
    return cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]


def test_pictures_may_be_fewer_than_frames(masks: Path) -> None:
    data = embedded(report(masks, "--pictures", 3)[1])
    assert [entry["index"] for entry in data["pictures"]] == [0, 4, 8]
    assert len(data["frames"]) == FRAMES


def test_names_in_a_bag_cannot_break_the_page(masks: Path, tmp_path: Path) -> None:
    evil = "</title></script><script>alert(1)</script>"
    page = report(copied(masks, tmp_path / "evil", lambda raw: True, source=evil))[1]
    assert "<script>alert" not in page
    assert embedded(page)["figures"]["metadata"]["source"] == evil


def test_without_labels_there_are_no_scores(masks: Path, tmp_path: Path) -> None:
    bare = copied(masks, tmp_path / "bare", lambda raw: raw.topic != Topics.label, source="x")
    figures, page = report(bare)
    assert figures["accuracy"] is None
    assert embedded(page)["frames"][0]["mask"]["right"] is None


def test_without_labels_only_what_is_shown_is_stored(masks: Path, tmp_path: Path) -> None:
    bare = copied(masks, tmp_path / "bare", lambda raw: raw.topic != Topics.label, source="x")
    for path, stored in ((bare, {0, 4, 8}), (masks, set(SEGMENTED))):
        with BagReader(path) as bag:
            found = recording.read(bag, Topics(), CAMVID, 3)
        assert found.shown == (0, 4, 8)
        assert {p.index for p in found.published if p.segmentation.mask.size} == stored
    page = report(bare, "--pictures", 3)[1]
    assert all(entry["overlay"] for entry in embedded(page)["pictures"])


def test_labels_of_other_classes_are_not_scored(masks: Path, tmp_path: Path) -> None:
    other = copied(masks, tmp_path / "other", lambda raw: True, classes=["a", "b"])
    figures = report(other)[0]
    assert figures["accuracy"] is None
    assert "other classes" in figures["notes"][0]


def test_a_bag_that_others_recorded_says_no_facts(
    masks: Path, reported: tuple[dict[str, Any], str], tmp_path: Path
) -> None:
    """As ``ros2 bag record`` leaves one, with labels that somebody added."""
    foreign = copied(masks, tmp_path / "foreign", lambda raw: raw.topic != Topics.confidence)
    figures, page = report(foreign)
    assert figures["account"]["superseded"] == 1  # by the newest statistics
    assert figures["counters"] == reported[0]["counters"]
    assert figures["accuracy"]["own"]["miou"] == reported[0]["accuracy"]["own"]["miou"]
    assert embedded(page)["pictures"][0]["confidence"] is None


def test_a_bag_without_statistics_is_reported_as_far_as_it_says(
    masks: Path, reported: tuple[dict[str, Any], str], tmp_path: Path
) -> None:
    bare = copied(masks, tmp_path / "bare", lambda raw: raw.topic != Topics.statistics)
    assert command("report", bare, "--out", tmp_path / "report") == 1
    figures = json.loads((tmp_path / "report" / "report.json").read_text())
    assert (figures["ledger"], figures["counters"], figures["unaccounted"]) == (None, None, 1)
    assert figures["key_frames"] == reported[0]["key_frames"]
    assert f"no statistics on {Topics.statistics}" in figures["notes"][0]


def test_recording_of_a_looped_bag(masks: Path, tmp_path: Path) -> None:
    """Each stamp comes twice, and each mask is of the image of its own time."""
    with BagReader(masks) as source, BagWriter(tmp_path / "looped", "mcap") as target:
        for shift_ns in (0, 2 * 10**9):
            for raw in source.raw():
                target.copy(dataclasses.replace(raw, time_ns=raw.time_ns + shift_ns))
    with BagReader(masks) as once, BagReader(tmp_path / "looped") as twice:
        first, both = (recording.read(bag, Topics(), CAMVID, 50) for bag in (once, twice))
    assert [mask.index for mask in both.published] == SEGMENTED + [9 + i for i in SEGMENTED]
    assert recording.score(both).own.iou == recording.score(first).own.iou
    latency = [mask.published_ns - both.arrivals[mask.index].arrived_ns for mask in both.published]
    assert latency[:8] == latency[8:]


@pytest.mark.parametrize("topic", [Topics.image, Topics.mask, Topics.report])
def test_a_missing_topic_ends_in_one_line(
    topic: str, masks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lacking = copied(masks, tmp_path / "lacking", lambda raw: raw.topic != topic)
    capsys.readouterr()
    assert command("report", lacking, "--out", tmp_path / "report") == 2
    error = capsys.readouterr().err
    assert f"has no topic {topic} of type" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "report").exists()


def test_what_does_not_belong_together_is_reported(
    masks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images_of_another_day = copied(
        masks, tmp_path / "b", lambda raw: raw.topic != Topics.image or raw.time_ns > 10**18
    )
    with BagReader(masks) as source, BagWriter(tmp_path / "c", "mcap") as target:
        for raw in source.raw():
            if raw.topic in (Topics.mask, Topics.report):
                target.copy(raw)
        header = target.messages.header(7 * START_NS, "camera")
        image = target.messages.image(header, np.zeros((4, 4, 3), np.uint8), "rgb8")
        target.write(Topics.image, image, START_NS)
    assert command("report", images_of_another_day, "--out", tmp_path / "r") == 2
    assert "has no topic" in error_line(capsys)
    assert command("report", tmp_path / "c", "--out", tmp_path / "r") == 2
    assert "has no mask with a frame report" in error_line(capsys)
    assert command("report", masks, "--out", tmp_path / "r", "--pictures", 0) == 2
    assert "--pictures is 0" in error_line(capsys)
    assert command("report", masks, "--out", tmp_path / "r", "--label-topic", Topics.image) == 2
    assert "must come as mono8" in error_line(capsys)
