"""The weights in the package: whole, small enough, described, and of street scenes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from lowlat_seg_ros.config import DEFAULT_NETWORK, NETWORKS
from lowlat_seg_ros.engine.engine import Engine
from lowlat_seg_ros.frames import Frame, MaskKind
from lowlat_seg_ros.lab.data.synthetic import RenderedDrive
from lowlat_seg_ros.lab.metrics import Confusion
from lowlat_seg_ros.labels import CAMVID
from lowlat_seg_ros.network.checkpoint import DEFAULT_CHECKPOINT, load, read_header

ROOT = Path(__file__).parent.parent


def test_the_default_is_the_named_network_with_its_provenance() -> None:
    assert DEFAULT_CHECKPOINT.stat().st_size <= 25_000_000
    header = read_header(DEFAULT_CHECKPOINT)
    assert header.network == NETWORKS[DEFAULT_NETWORK]
    assert header.classes == tuple(CAMVID.names)
    assert header.colours == tuple(CAMVID.colours)
    stages = [stage["stage"] for stage in header.provenance["stages"]]
    later = ["propagation", "selector"]
    assert stages == ["base", "propagation", *later, *later, "base", *later]
    assert header.provenance["licence"] == "research use only (CamVid)"
    card = DEFAULT_CHECKPOINT.with_suffix(".md").read_text()
    for owed in ("research use only", "Cityscapes", "CamVid", "104342d", "Apache-2.0"):
        assert owed in card, owed


def test_the_split_network_s_weights_are_those_of_the_comparison() -> None:
    path = DEFAULT_CHECKPOINT.with_name("resnet18.safetensors")
    assert path.stat().st_size <= 25_000_000
    header = read_header(path)
    assert header.network == NETWORKS["resnet18"]
    assert header.provenance["licence"] == "research use only (CamVid)"
    assert "research use only" in path.with_suffix(".md").read_text()


def test_weights_of_rendered_drives_alone_are_under_the_licence_of_the_project() -> None:
    path = DEFAULT_CHECKPOINT.with_name("efficientnet_lite0_rendered.safetensors")
    assert path.stat().st_size <= 25_000_000
    header = read_header(path)
    assert header.network == NETWORKS["efficientnet_lite0"]
    assert header.provenance["licence"] == "Apache-2.0"
    used = {name for stage in header.provenance["stages"] for name in stage["data"]}
    assert all("rendered" in name for name in used)
    assert "Apache-2.0" in path.with_suffix(".md").read_text()


@pytest.mark.slow
def test_masks_of_a_drive_never_trained_on_are_street_scenes() -> None:
    """Full and propagated masks agree with the exact labels far beyond chance (about 0.05)."""
    segmenter, header = load(DEFAULT_CHECKPOINT)
    drive = RenderedDrive(seed=5, frames=4, rate_hz=10.0, size=(240, 320))
    scores = {kind: Confusion(len(CAMVID)) for kind in (MaskKind.FULL, MaskKind.PROPAGATED)}
    threshold = header.threshold
    with Engine.deterministic(segmenter, threshold=threshold, delay_frames=1) as engine:
        for frame in (drive[index] for index in range(len(drive))):
            result = engine.process(Frame(frame.image, frame.stamp_ns))
            scores[result.provenance.kind].update(frame.label, result.mask)
    for kind, score in scores.items():
        assert score.pixel_accuracy > 0.7, kind
        assert score.miou > 0.3, kind


PAGES = (*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("lowlat_seg_ros/weights/*.md"))


def anchors(page: Path) -> set[str]:
    """What GitHub calls the headings of ``page``, without those in code."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#:]*)(?:#([^)]+))?\)", page.read_text())
    targets = [(page.parent / path if path else page, anchor) for path, anchor in links]
    assert [path for path, _ in targets if not path.exists()] == []
    named = [(path, anchor) for path, anchor in targets if anchor]
    assert [(path, anchor) for path, anchor in named if anchor not in anchors(path)] == []
