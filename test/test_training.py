"""Training: two steps of each stage on a tiny net, exact resume, and what the files say."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from lowlat_seg_ros.cli import main
from lowlat_seg_ros.config import NETWORKS, ConfigError
from lowlat_seg_ros.lab.data.augment import Augment
from lowlat_seg_ros.lab.training import cli
from lowlat_seg_ros.lab.training.loop import Loop, LoopConfig
from lowlat_seg_ros.lab.training.losses import (
    class_weights,
    distillation_loss,
    feature_loss,
    segmentation_loss,
)
from lowlat_seg_ros.lab.training.propagation import (
    PropagationLoss,
    PropagationStage,
    carry,
)
from lowlat_seg_ros.lab.training.selector import CalibrationPoint, threshold_for
from lowlat_seg_ros.lab.training.sources import Bank, Mixture, PairBank, TrainingData, pair_banks
from lowlat_seg_ros.lab.training.stills import BaseStage
from lowlat_seg_ros.network import checkpoint
from lowlat_seg_ros.network.checkpoint import CheckpointError
from lowlat_seg_ros.network.encoder import TrunkEncoder
from lowlat_seg_ros.network.segmenter import Segmenter

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("rendered_once")]

COMMON = "--size 48x64 --crop 32x32 --rendered 4 --steps 2 --batch-size 2 --device cpu"


def train(*words: str) -> int:
    """Run ``lowlat-seg train`` in this process."""
    parser = argparse.ArgumentParser()
    cli.configure(parser)
    return cli.run(parser.parse_args([words[0], *COMMON.split(), *words[1:]]))


def base_stage() -> BaseStage:
    torch.manual_seed(0)
    images = torch.randint(0, 256, (4, 3, 48, 64), dtype=torch.uint8)
    labels = torch.randint(0, 11, (4, 48, 64), dtype=torch.uint8)
    bank = Bank(images, labels)
    return BaseStage(Segmenter(NETWORKS["tiny"]), Mixture((bank,), (1.0,)), bank, Augment((32, 32)))


def run(out: Path, steps: list[int]) -> dict[str, torch.Tensor]:
    """Train to each of ``steps`` in turn, every time in a new process' worth of objects."""
    for stop in steps:
        stage = base_stage()
        loop = Loop(stage, LoopConfig(steps=6, batch_size=2, precision="fp32", save_every=1), out)
        loop.resume()
        while loop.step < stop:
            loop._train_step()
            loop.step += 1
        loop.save()
    return stage.segmenter.state_dict() | {f"average.{k}": v for k, v in loop.average.items()}


def test_resume_gives_the_same_weights_as_an_unbroken_run(tmp_path: Path) -> None:
    unbroken, broken = run(tmp_path / "a", [6]), run(tmp_path / "b", [2, 3, 6])
    assert unbroken.keys() == broken.keys()
    for name, tensor in unbroken.items():
        assert torch.equal(tensor, broken[name]), name


def test_a_state_with_one_bare_generator_is_read(tmp_path: Path) -> None:
    """Such were written before several processes could train."""
    unbroken = run(tmp_path / "a", [3])
    run(tmp_path / "b", [2])
    path = tmp_path / "b" / "base.resume.pt"
    state = torch.load(path, weights_only=True)
    torch.save(state | {"generator": state["generator"][0]}, path)
    broken = run(tmp_path / "b", [3])
    assert all(torch.equal(tensor, broken[name]) for name, tensor in unbroken.items())


def test_resume_refuses_other_weights(tmp_path: Path) -> None:
    run(tmp_path, [1])
    stage = base_stage()
    torch.nn.init.ones_(stage.segmenter.low_classifier.weight)
    with pytest.raises(ConfigError, match="other weights"):
        Loop(stage, LoopConfig(), tmp_path).resume()


def test_a_wrong_initial_file_is_named(tmp_path: Path) -> None:
    wrong = tmp_path / "resnet18.pth"
    torch.save({"conv1.weight": torch.zeros(1)}, wrong)
    with pytest.raises(CheckpointError, match=r"resnet18\.pth"):
        train("base", "--network", "tiny", "--init", str(wrong), "--out", str(tmp_path))


def test_training_lowers_the_loss(tmp_path: Path) -> None:
    stage = base_stage()
    loop = Loop(
        stage, LoopConfig(steps=40, batch_size=4, warmup_steps=1, precision="fp32"), tmp_path
    )
    first = stage.loss(4, torch.Generator().manual_seed(1))[0].item()
    assert loop.run()
    stage.segmenter.train()
    assert stage.loss(4, torch.Generator().manual_seed(1))[0].item() < first


def test_only_the_stage_s_modules_change(tmp_path: Path) -> None:
    stage = base_stage()
    before = {k: v.clone() for k, v in stage.segmenter.state_dict().items()}
    Loop(stage, LoopConfig(steps=2, batch_size=2, precision="fp32"), tmp_path).run()
    after = stage.segmenter.state_dict()
    changed = {k.split(".")[0] for k in before if not torch.equal(before[k], after[k])}
    assert changed == {"backbone", "context", "high_classifier", "adapt", "low_classifier"}


def test_all_three_stages_in_a_row_and_what_the_checkpoint_says(tmp_path: Path) -> None:
    assert train("base", "--network", "tiny", "--out", f"{tmp_path}/1") == 0
    start = f"{tmp_path}/1/base.safetensors"
    assert train("propagation", "--start-from", start, "--out", f"{tmp_path}/2") == 0
    start = f"{tmp_path}/2/propagation.safetensors"
    assert train("selector", "--clips", "1", "--start-from", start, "--out", f"{tmp_path}/3") == 0
    header = checkpoint.read_header(tmp_path / "3" / "selector.safetensors")
    stages = header.provenance["stages"]
    assert [stage["stage"] for stage in stages] == ["base", "propagation", "selector"]
    assert header.provenance["licence"] == "Apache-2.0"
    assert 0.0 <= header.threshold <= 0.5
    assert stages[2]["figures"]["calibration"][0][1] >= stages[2]["figures"]["calibration"][-1][1]


def test_the_output_stride_can_change_between_stages(tmp_path: Path) -> None:
    assert (
        train("base", "--network", "tiny", "--output-stride", "16", "--out", f"{tmp_path}/1") == 0
    )
    start = f"{tmp_path}/1/base.safetensors"
    assert (
        train("base", "--start-from", start, "--output-stride", "8", "--out", f"{tmp_path}/2") == 0
    )
    header = checkpoint.read_header(tmp_path / "2" / "base.safetensors")
    assert header.network.output_stride == 8


def test_nothing_to_train_on_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--root or --rendered"):
        train("base", "--network", "tiny", "--out", str(tmp_path), "--rendered", "0")


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


def test_threshold_for_a_wanted_key_share() -> None:
    curve = [CalibrationPoint(0.0, 1.0), CalibrationPoint(0.1, 0.3), CalibrationPoint(0.2, 0.1)]
    assert threshold_for(curve, 0.3) == 0.1
    assert threshold_for(curve, 0.05) == 0.2


def test_the_feature_loss_is_a_share_of_the_variance() -> None:
    high = 7.0 * torch.randn(4, 3, 40, 40) + 2.0
    assert feature_loss(high, high).item() == 0.0
    means = high.mean(dim=(0, 2, 3), keepdim=True).expand_as(high)
    assert feature_loss(means, high).item() == pytest.approx(1.0, abs=0.01)


def test_features_can_be_carried_there_and_back_and_there_again(tiny: Segmenter) -> None:
    key, now, high = torch.randn(1, 16, 6, 8), torch.randn(1, 16, 6, 8), torch.randn(1, 8, 6, 8)
    with torch.inference_mode():
        there = carry(tiny, key, high, now)
        back = carry(tiny, now, there, key)
        again = carry(tiny, key, high, now, chained=True)
        assert torch.allclose(carry(tiny, key, back, now), again)
        assert not torch.allclose(there, again)


def test_an_initial_file_and_a_checkpoint_are_one_too_many(tmp_path: Path) -> None:
    both = ("--init", "a.pth", "--start-from", "b.safetensors")
    with pytest.raises(ConfigError, match="choose one"):
        train("base", *both, "--out", str(tmp_path))


def test_a_state_of_another_kind_of_device_is_refused(tmp_path: Path) -> None:
    run(tmp_path, [1])
    path = next(tmp_path.glob("*.resume.pt"))
    torch.save(torch.load(path, weights_only=True) | {"device": "cuda"}, path)
    with pytest.raises(ConfigError, match="begun on cuda"):
        run(tmp_path, [2])


def gated_stage() -> PropagationStage:
    """On pairs of random pixels, with a network whose Sl is an encoder of its own, and a gate."""
    torch.manual_seed(0)
    images = torch.randint(0, 256, (2, 4, 3, 48, 64), dtype=torch.uint8)
    labels, ages = torch.randint(0, 11, (4, 48, 64), dtype=torch.uint8), torch.rand(4)
    bank = PairBank(images[0], images[1], labels, ages)
    weights = PropagationLoss(auxiliary_distillation=0.4)
    net = Segmenter(NETWORKS["tiny_gated"])
    return PropagationStage(net, bank, bank, Augment((32, 32), degrade=0.5), weights)


def test_the_gate_is_trained_and_a_stopped_run_goes_on_exactly(tmp_path: Path) -> None:
    states = []
    for name, stops in (("unbroken", (4,)), ("broken", (1, 3, 4))):
        for stop in stops:
            stage = gated_stage()
            before = {k: v.clone() for k, v in stage.segmenter.state_dict().items()}
            loop = Loop(stage, LoopConfig(steps=4, batch_size=2, precision="fp32"), tmp_path / name)
            loop.resume()
            while loop.step < stop:
                loop._train_step()
                loop.step += 1
            loop.save()
        states.append(stage.segmenter.state_dict())
    unbroken, broken = states
    assert all(torch.equal(unbroken[name], broken[name]) for name in unbroken)
    changed = {name.split(".")[0] for name in before if not torch.equal(before[name], broken[name])}
    # Without gate_corrects the classifier of the correction has nothing to do.
    assert changed == {"encoder", "shared", "predictor", "fusion", "gate", "low_classifier"}
    figures = stage.evaluate()
    assert set(figures) == {"miou", "full_miou", "aux_miou"}


def test_what_began_from_real_images_learns_slower(tmp_path: Path) -> None:
    torch.manual_seed(0)
    bank = Bank(torch.zeros(1, 3, 48, 64, dtype=torch.uint8), torch.zeros(1, 48, 64).byte())
    stage = BaseStage(
        Segmenter(NETWORKS["edgetpu"]), Mixture((bank,), (1.0,)), bank, Augment((32, 32))
    )
    config = LoopConfig(steps=10, learning_rate=1e-2, pretrained_rate=0.1, warmup_steps=0)
    loop = Loop(stage, config, tmp_path)
    loop._train_step()
    rates = {id(p): group["lr"] for group in loop.optimiser.param_groups for p in group["params"]}
    net = stage.segmenter
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
    pairs, judged = pair_banks(dataclasses.replace(ends, hold_out="none"), 4)
    assert len(pairs.images) == 4 + 2
    assert pairs.ages[-2:].tolist() == [1.0, 1.0]
    assert pairs.key_images[-1].unique().tolist() == [30]
    assert pairs.images[-1].unique().tolist() == [40]
    assert len(judged.ages) == 2
