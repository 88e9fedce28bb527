"""Training: two steps of each stage on a tiny net, exact resume, and what the files say."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from training_runs import COMMON, base_stage, changed, loop_of, random_pairs, same, step_to, train

from lowlat_seg_ros.config import NETWORKS, ConfigError
from lowlat_seg_ros.lab.data.augment import Augment
from lowlat_seg_ros.lab.training.losses import (
    class_weights,
    distillation_loss,
    feature_loss,
    jaccard_loss,
    segmentation_loss,
)
from lowlat_seg_ros.lab.training.pairs import PropagationLoss, PropagationStage, carry
from lowlat_seg_ros.lab.training.selector import threshold_for
from lowlat_seg_ros.lab.training.sources import TrainingData, pairs
from lowlat_seg_ros.network import checkpoint
from lowlat_seg_ros.network.checkpoint import CheckpointError
from lowlat_seg_ros.network.segmenter import Segmenter
from lowlat_seg_ros.network.trunk import TrunkEncoder
from lowlat_seg_ros.tools.cli import main

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("rendered_once")]


def gated_stage() -> PropagationStage:
    """With a network whose Sl is an encoder of its own, and a gate."""
    pairs = random_pairs()  # which also sets the seed
    augment, net = Augment((32, 32), degrade=0.5), Segmenter(NETWORKS["tiny_coarse"])
    weights = PropagationLoss(auxiliary_distillation=0.4, jaccard=0.5)
    return PropagationStage(net, pairs, pairs, augment, weights)


@pytest.mark.parametrize(
    ("make", "trained"),
    [
        (base_stage, {"backbone", "context", "high_classifier", "adapt", "low_classifier"}),
        # With a gate the classifier of the correction has nothing to do.
        (gated_stage, {"encoder", "shared", "predictor", "fusion", "gate", "low_classifier"}),
    ],
)
def test_a_stopped_run_goes_on_exactly_and_only_the_stage_s_modules_change(
    make: Callable[[], PropagationStage], trained: set[str], tmp_path: Path
) -> None:
    states, averages = [], []
    for name, stops in (("unbroken", [5]), ("broken", [1, 3, 5])):
        for stop in stops:  # every time in a new process' worth of objects
            stage = make()
            before = {k: v.clone() for k, v in stage.segmenter.state_dict().items()}
            loop = loop_of(stage, tmp_path / name, steps=5)
            step_to(loop, stop)
        states.append(stage.segmenter.state_dict())
        averages.append(loop.average)
    assert same(*states)
    assert same(*averages)
    assert changed(before, states[0]) == trained
    with loop.averaged(), torch.inference_mode():
        assert {"miou", "aux_miou"} < set(stage.evaluate())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda state: state | {"origin": "another"}, "other weights"),
        (lambda state: state | {"device": "cuda"}, "begun on cuda"),
        # Such were written when several processes could train: a row for each.
        (lambda state: state | {"generator": state["generator"][None]}, None),
    ],
)
def test_what_a_run_can_go_on_from(
    change: Callable[[dict], dict], said: str | None, tmp_path: Path
) -> None:
    step_to(loop_of(base_stage(), tmp_path), 1)
    path = tmp_path / "base.resume.pt"
    torch.save(change(torch.load(path, weights_only=True)), path)
    loop = loop_of(base_stage(), tmp_path)
    if said is None:
        assert loop.resume()
        assert loop.step == 1
    else:
        with pytest.raises(ConfigError, match=said):
            loop.resume()


def test_training_lowers_the_loss(tmp_path: Path) -> None:
    stage = base_stage()
    first = stage.loss(4, torch.Generator().manual_seed(1))[0].item()
    assert loop_of(stage, tmp_path, steps=40, batch_size=4, warmup_steps=1).run()
    stage.segmenter.train()
    assert stage.loss(4, torch.Generator().manual_seed(1))[0].item() < first


def test_all_three_stages_in_a_row_and_what_the_checkpoint_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert train("base", "--network", "tiny", "--output-stride", "16", "--out", tmp_path) == 0
    start = tmp_path / "base.safetensors"
    assert checkpoint.read_header(start).network.output_stride == 16
    again = ("--start-from", start, "--output-stride", "8", "--jaccard", "1")
    again += ("--out", tmp_path / "8")
    assert train("base", *again) == 0
    start = tmp_path / "8" / "base.safetensors"
    assert checkpoint.read_header(start).network.output_stride == 8
    assert train("propagation", "--start-from", start, "--out", tmp_path) == 0
    start = tmp_path / "propagation.safetensors"
    assert train("selector", "--clips", "1", "--start-from", start, "--out", tmp_path) == 0
    header = checkpoint.read_header(tmp_path / "selector.safetensors")
    stages = header.provenance["stages"]
    assert [stage["stage"] for stage in stages] == ["base", "base", "propagation", "selector"]
    assert header.provenance["licence"] == "Apache-2.0"
    assert 0.0 <= header.threshold <= 0.5
    shares = [share for _, share in stages[-1]["figures"]["calibration"]]
    assert shares[0] >= shares[-1]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--rendered 0", "--root or --rendered"),
        ("--init a.pth --start-from b.safetensors", "choose one"),
        ("--rendered-share 1.5", r"--rendered-share is 1.5; it must lie in \[0, 1\]"),
        ("--min-scale 2 --max-scale 1", "the first not above the second"),
        ("--teacher a.pt2", "give both or neither"),
        ("--learning-rate 2", "--learning-rate is 2.0"),
        ("--jaccard=-1", "--jaccard is -1.0; it must be 0 or more"),
    ],
)
def test_options_that_make_no_sense_are_refused(words: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=said):
        train("base", "--network", "tiny", *words.split(), "--out", tmp_path)


def test_a_wrong_initial_file_is_named(tmp_path: Path) -> None:
    wrong = tmp_path / "resnet18.pth"
    torch.save({"conv1.weight": torch.zeros(1)}, wrong)
    with pytest.raises(CheckpointError, match=r"resnet18\.pth"):
        train("base", "--network", "tiny", "--init", wrong, "--out", tmp_path)


@pytest.mark.parametrize("name", ["gpu", "mps", "cuda:99"])
def test_a_device_that_is_not_here_is_one_line(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["base", "--network", "tiny", *COMMON.split(), "--out", str(tmp_path)]
    assert main(["train", *words, "--device", name]) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert repr(name) in line
    assert "choose" in line


def test_sh_can_be_trained_alone(tmp_path: Path) -> None:
    stage = base_stage("tiny_ddr", jaccard=1.0, only_sh=True)
    net = stage.segmenter
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    loop_of(stage, tmp_path, steps=2, warmup_steps=1).run()
    assert changed(before, net.state_dict()) == {"backbone", "context", "high_classifier"}
    with pytest.raises(ConfigError, match="Sl of this one is a part of Sh"):
        base_stage("tiny", only_sh=True)


def test_the_jaccard_loss_is_the_iou_that_decided_masks_lack() -> None:
    """One minus the mean over the classes that are there; void pixels do not count."""
    label = torch.tensor([[0, 0, 0, 1], [0, 1, 1, 2], [255, 255, 2, 2]]).repeat_interleave(3, 0)
    label = label.repeat_interleave(3, 1)[None]
    mask = label.clone()
    mask[:, :3, :3], mask[:, -3:, :3] = 1, 0  # a pixel of class 0 wrong, and one that is void
    logits = 50.0 * torch.nn.functional.one_hot(mask.clamp(max=3), 4).permute(0, 3, 1, 2).float()
    found = jaccard_loss(logits, label)
    assert found.item() == pytest.approx(1 - (3 / 4 + 3 / 4 + 1) / 3, abs=1e-4)
    unsure = torch.zeros_like(logits).requires_grad_(True)
    jaccard_loss(unsure, label).backward()
    assert unsure.grad is not None
    assert 0 < unsure.grad.abs().max() < 1
    assert jaccard_loss(logits, torch.full_like(label, 255)) == 0


def test_void_pixels_do_not_count() -> None:
    logits, label = torch.randn(1, 3, 4, 4), torch.randint(0, 3, (1, 4, 4))
    weights = torch.tensor([1.0, 2.0, 3.0])
    half = label.clone()
    half[:, 2:] = 255
    expected = torch.nn.functional.cross_entropy(logits, half, weights, ignore_index=255)
    assert torch.allclose(segmentation_loss(logits, half, weights), expected)
    assert segmentation_loss(logits, torch.full_like(label, 255), weights) == 0


def test_rare_classes_weigh_more() -> None:
    labels = torch.cat([torch.zeros(90), torch.ones(10), torch.full((50,), 255.0)]).byte()
    weights = class_weights(labels, 2)
    assert weights[1] > weights[0]
    assert weights.mean() == pytest.approx(1.0)


def test_distillation_vanishes_only_for_equal_answers() -> None:
    logits = torch.randn(2, 5, 3, 3)
    assert distillation_loss(logits, logits + 1.0).item() == pytest.approx(0.0, abs=1e-6)
    assert distillation_loss(logits, -logits).item() > 0.1


def test_the_feature_loss_is_a_share_of_the_variance() -> None:
    high = 7.0 * torch.randn(4, 3, 40, 40) + 2.0
    assert feature_loss(high, high).item() == 0.0
    means = high.mean(dim=(0, 2, 3), keepdim=True).expand_as(high)
    assert feature_loss(means, high).item() == pytest.approx(1.0, abs=0.01)


def test_threshold_for_a_wanted_key_share() -> None:
    curve = [(0.0, 1.0), (0.1, 0.3), (0.2, 0.1)]
    assert threshold_for(curve, 0.3) == 0.1
    assert threshold_for(curve, 0.05) == 0.2


def test_features_can_be_carried_there_and_back_and_there_again(tiny: Segmenter) -> None:
    key, now, high = torch.randn(1, 16, 6, 8), torch.randn(1, 16, 6, 8), torch.randn(1, 8, 6, 8)
    with torch.inference_mode():
        there = carry(tiny, key, high, now)
        back = carry(tiny, now, there, key)
        again = carry(tiny, key, high, now, chained=True)
        assert torch.allclose(carry(tiny, key, back, now), again)
        assert not torch.allclose(there, again)


def test_what_began_from_real_images_learns_slower(tmp_path: Path) -> None:
    stage = base_stage("edgetpu")
    rates = {"learning_rate": 1e-2, "pretrained_rate": 0.1, "warmup_steps": 0}
    loop = loop_of(stage, tmp_path, steps=10, **rates)
    loop.train_step()
    rates = {id(p): group["lr"] for group in loop.optimiser.param_groups for p in group["params"]}
    net = stage.base
    assert isinstance(net.encoder, TrunkEncoder)
    for module, rate in ((net.backbone, 1e-3), (net.encoder.trunk, 1e-3), (net.context, 1e-2),
                         (net.encoder.lateral, 1e-2), (net.shared, 1e-2)):  # fmt: skip
        found = {round(rates[id(p)], 9) for p in module.parameters()}
        assert found == {rate}, type(module)
    assert len(rates) == sum(1 for p in net.parameters() if p.requires_grad)


def camvid_of(folder: Path, *names: str) -> TrainingData:
    """A train split with frames of these names."""
    lines = []
    for number, name in enumerate(names):
        for part, pixels in (("train", np.full((48, 64, 3), 10 * number, np.uint8)),
                             ("trainannot", np.full((48, 64), number % 11, np.uint8))):  # fmt: skip
            (folder / part).mkdir(exist_ok=True)
            assert cv2.imwrite(str(folder / part / f"{name}.png"), pixels)
        lines.append(f"train/{name}.png trainannot/{name}.png\n")
    (folder / "train.txt").write_text("".join(lines))
    return TrainingData(folder, 0, (48, 64), torch.device("cpu"))


def test_a_drive_can_be_left_out_and_neighbours_are_real_pairs(tmp_path: Path) -> None:
    names = ("0001TP_000030", "0001TP_000060", "0001TP_000150", "0016E5_000090", "0016E5_000120")
    ends = camvid_of(tmp_path, *names)
    assert tuple(map(len, ends.camvid())) == (3, 2)
    out = dataclasses.replace(ends, hold_out="0016E5")
    train_split, held = out.camvid()
    assert {train_split.drive(i) for i in range(3)} == {"0001TP"}
    assert {held.drive(i) for i in range(2)} == {"0016E5"}
    everything, held = dataclasses.replace(ends, hold_out="none").camvid()
    assert (len(everything), len(held)) == (5, 2)
    with pytest.raises(ConfigError, match=r"choose ends, none or one of the drives 0001TP, 0016E5"):
        dataclasses.replace(ends, hold_out="0006R0").camvid()
    # Frames 60 and 150 are three seconds apart, and no pair reaches from drive to drive.
    trained, judged = pairs(dataclasses.replace(ends, hold_out="none"), 4)
    assert (len(trained), len(judged)) == (4 + 2, 2)
    key, image, _, seconds = trained[-1]
    assert (key.unique().tolist(), image.unique().tolist(), seconds) == ([30], [40], 1.0)
    assert trained[-2][3] == 1.0
