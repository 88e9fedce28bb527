"""Baselines with weights of their own: trained, saved, loaded and compared."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from lowlat_seg_ros import cli as commands
from lowlat_seg_ros.config import NETWORKS, ConfigError
from lowlat_seg_ros.data.labels import CAMVID
from lowlat_seg_ros.data.transforms import Augment
from lowlat_seg_ros.evaluation.catalogue import WITH_WEIGHTS
from lowlat_seg_ros.network import checkpoint
from lowlat_seg_ros.network.baselines import weights
from lowlat_seg_ros.network.baselines.learned import METHODS, PAIR_METHODS, Encoded, PairMethod
from lowlat_seg_ros.network.checkpoint import CheckpointError, Header
from lowlat_seg_ros.network.segmenter import Segmenter
from lowlat_seg_ros.training import cli
from lowlat_seg_ros.training.baseline import PairStage
from lowlat_seg_ros.training.loop import Loop, LoopConfig
from lowlat_seg_ros.training.propagation import PairBank


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def base(tiny: Segmenter, tmp_path: Path) -> Path:
    path = tmp_path / "base.safetensors"
    header = Header(NETWORKS["tiny"], CAMVID.names, CAMVID.colours, 0.3)
    checkpoint.save(path, tiny, header, torch.float16)
    return path


def train(method: str, base: Path, out: Path, crop: str = "32x32") -> int:
    common = "baseline --size 48x64 --rendered 4 --steps 2 --batch-size 2 --device cpu"
    common += f" --precision fp32 --crop {crop}"
    parser = argparse.ArgumentParser()
    cli.configure(parser)
    words = ["--method", method, "--start-from", str(base), "--out", str(out)]
    return cli.run(parser.parse_args([*common.split(), *words]))


def pairs() -> PairBank:
    torch.manual_seed(0)
    images = torch.randint(0, 256, (2, 4, 3, 48, 64), dtype=torch.uint8)
    return PairBank(images[0], images[1], torch.randint(0, 11, (4, 48, 64), dtype=torch.uint8))


def pair_stage(name: str, tiny: Segmenter) -> PairStage:
    method = METHODS[name](tiny)
    assert isinstance(method, PairMethod)
    return PairStage(name, method, pairs(), pairs(), Augment((32, 32)))


def test_all_that_have_weights_are_in_the_catalogue() -> None:
    assert {spec.name for spec in WITH_WEIGHTS} == set(METHODS)


@pytest.mark.slow
def test_every_method_trains_saves_and_plays(base: Path, tmp_path: Path) -> None:
    out = tmp_path / "baselines"
    for name in METHODS:
        crop = "32x32" if name in PAIR_METHODS else "128x128"
        assert train(name, base, out, crop) == 0
    path = tmp_path / "figures.json"
    common = "evaluate --size 48x64 --frames 6 --device cpu --foreground-threads 1"
    chosen = ",".join(["full", "adaptive", *METHODS])
    options = ["--methods", chosen, "--checkpoint", base, "--baselines", out, "--json", path]
    assert commands.main([*common.split(), *map(str, options)]) == 0
    found = json.loads(path.read_text())
    assert found["left_out"] == {}
    methods = found["methods"]
    assert set(methods) == {"full", "adaptive", *METHODS}
    for name in PAIR_METHODS:
        share = {"grfp": 1.0, "single_frame_trained": 0.0, "single_frame_wide": 0.0}.get(
            name, 2 / 6
        )
        assert methods[name]["key_share"] == pytest.approx(share), name
        # On key frames all that carry the base network's features give its masks.
        if share == 2 / 6:
            key = methods["adaptive"]["miou_by_distance"]["0"]
            assert methods[name]["miou_by_distance"]["0"] == key, name
    assert methods["ddrnet23_slim"]["key_share"] == 1.0


def test_methods_without_weights_are_named(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = "evaluate --size 48x64 --frames 2 --device cpu --foreground-threads 1"
    common += " --methods single_frame,dff,unified"
    assert commands.main([*common.split(), "--checkpoint", str(base)]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    for name in ("dff", "unified"):
        assert f"Left out: {name}: no weights" in shown
        assert f"train baseline --method {name}" in shown


@pytest.mark.parametrize("name", sorted(PAIR_METHODS))
def test_a_step_changes_the_method_and_leaves_the_base_network(
    name: str, tiny: Segmenter, tmp_path: Path
) -> None:
    stage = pair_stage(name, tiny)
    before = {k: v.clone() for k, v in stage.segmenter.state_dict().items()}
    config = LoopConfig(steps=2, batch_size=2, warmup_steps=0, precision="fp32")
    assert Loop(stage, config, tmp_path).run()
    after = stage.segmenter.state_dict()
    changed = {k.split(".")[0] for k in before if not torch.equal(before[k], after[k])}
    assert changed == {"learned"}


def test_training_a_baseline_lowers_its_loss(tiny: Segmenter, tmp_path: Path) -> None:
    stage = pair_stage("dff", tiny)

    def loss() -> float:
        with torch.inference_mode():
            return stage.loss(4, torch.Generator().manual_seed(1))[0].item()

    first = loss()
    config = LoopConfig(steps=30, batch_size=4, warmup_steps=1, precision="fp32")
    assert Loop(stage, config, tmp_path).run()
    assert loss() < first


@pytest.mark.parametrize("name", ["tiny", "resnet18"])
def test_the_wide_network_costs_what_the_fast_track_costs(name: str) -> None:
    """Counted while they run, after Sl, at 8x8 locations."""
    base = Segmenter(NETWORKS[name]).eval()
    method = METHODS["single_frame_wide"](base)
    work = []
    for module in [*base.modules(), *method.learned.modules()]:
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(
                lambda conv, inputs, output: work.append(output.numel() * conv.weight[0].numel())
            )

    def cost(run: Callable[[], object]) -> int:
        work.clear()
        run()
        return sum(work)

    image, config = torch.randn(1, 3, 64, 64), base.config
    with torch.inference_mode():
        low, high = base.lower(image), torch.randn(1, config.high_channels, 8, 8)
        lower = cost(lambda: base.lower(image))
        reduced = base.predictor.reduce(low)
        fast = config.kernel_size**2 * config.high_channels * 64
        fast += cost(lambda: base.predictor(reduced, base.predictor.reduce(low)))
        fast += cost(lambda: base.classify_fused(high, low))
        wide = cost(lambda: method.learned["network"](image)) - lower
    assert 0.8 * fast < wide <= fast


def test_single_frame_does_not_look_at_the_key_frame(tiny: Segmenter) -> None:
    method = METHODS["single_frame_trained"](tiny).eval()
    assert isinstance(method, PairMethod)
    image = torch.randn(2, 1, 3, 48, 64)
    keys = [Encoded(picture, torch.zeros(0), torch.zeros(0)) for picture in image]
    now = Encoded(torch.randn(1, 3, 48, 64), torch.zeros(0), torch.zeros(0))
    with torch.inference_mode():
        assert torch.equal(method.pair(keys[0], now), method.pair(keys[1], now))


def test_ddrnet_refuses_crops_that_are_too_small_for_it(base: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="crop at least 128"):
        train("ddrnet23_slim", base, tmp_path, "120x160")


def test_fused_methods_start_from_the_base_network_s_adaptnet(tiny: Segmenter) -> None:
    method = METHODS["clockwork"](tiny)
    own, shared = method.learned["head"].adapt, tiny.adapt
    for mine, base in zip(own.parameters(), shared.parameters(), strict=True):
        assert torch.equal(mine, base)
        assert mine is not base  # so that training it leaves the base network alone


def test_what_was_saved_is_loaded(tiny: Segmenter, tmp_path: Path) -> None:
    stage = pair_stage("dff", tiny)
    torch.nn.init.normal_(stage.method.learned["head"].classifier.weight)
    path = weights.save(tmp_path, "dff", stage.method, {"licence": "none"})
    assert path == tmp_path / "dff.safetensors"
    assert path.stat().st_size < 3e6  # the base network is not in it
    loaded = weights.load(tmp_path, "dff", tiny)
    for mine, other in zip(stage.method.learned.parameters(), loaded.learned.parameters(),
                           strict=True):  # fmt: skip
        torch.testing.assert_close(mine, other, atol=1e-3, rtol=1e-3)
    assert not loaded.learned.training


def test_weights_of_another_base_network_are_refused(tiny: Segmenter, tmp_path: Path) -> None:
    weights.save(tmp_path, "unified", METHODS["unified"](tiny), {})
    with torch.no_grad():
        tiny.predictor.logits.weight.add_(1.0)  # propagation may be trained on
    weights.load(tmp_path, "unified", tiny)
    with torch.no_grad():
        tiny.high_classifier.bias.add_(1.0)
    with pytest.raises(CheckpointError, match="another base network"):
        weights.load(tmp_path, "unified", tiny)


def test_files_that_are_something_else_are_refused(
    tiny: Segmenter, base: Path, tmp_path: Path
) -> None:
    weights.save(tmp_path, "unified", METHODS["unified"](tiny), {})
    (tmp_path / "unified.safetensors").rename(tmp_path / "clockwork.safetensors")
    with pytest.raises(CheckpointError, match="unified"):
        weights.load(tmp_path, "clockwork", tiny)
    (tmp_path / "dff.safetensors").write_bytes(base.read_bytes())
    with pytest.raises(CheckpointError, match="--method dff"):
        weights.load(tmp_path, "dff", tiny)
    (tmp_path / "grfp.safetensors").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="not a readable"):
        weights.load(tmp_path, "grfp", tiny)
    method = METHODS["unified"](tiny)
    with torch.no_grad():
        method.learned["carrier"].logits.fill_(float("nan"))
    with pytest.raises(CheckpointError, match="not finite"):
        weights.save(tmp_path, "unified", method, {})
