"""Baselines with weights of their own: trained, saved, loaded and compared."""

from __future__ import annotations

import argparse
import csv
import dataclasses
import json
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path

import pytest
import torch
import training_runs
from safetensors import safe_open
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from training_runs import changed, loop_of, random_pairs, same, step_to

from lowlat_seg_ros.config import NETWORKS, ConfigError, EngineConfig
from lowlat_seg_ros.engine.runner import Runner
from lowlat_seg_ros.frames import Frame
from lowlat_seg_ros.lab.baselines import weights
from lowlat_seg_ros.lab.baselines.learned import METHODS, PAIR_METHODS, Encoded, PairMethod
from lowlat_seg_ros.lab.baselines.stream import Stream
from lowlat_seg_ros.lab.data.augment import Augment
from lowlat_seg_ros.lab.data.clip import Clip
from lowlat_seg_ros.lab.evaluation.catalogue import WITH_WEIGHTS, Spec
from lowlat_seg_ros.lab.evaluation.methods import MethodFactory
from lowlat_seg_ros.lab.training.options import methods
from lowlat_seg_ros.lab.training.pairs import PairStage
from lowlat_seg_ros.labels import CAMVID
from lowlat_seg_ros.network import checkpoint, quantization
from lowlat_seg_ros.network.checkpoint import DEFAULT_CHECKPOINT, CheckpointError, Header
from lowlat_seg_ros.network.segmenter import Segmenter
from lowlat_seg_ros.tools import cli as commands

pytestmark = pytest.mark.usefixtures("rendered_once")


@pytest.fixture
def base(tiny: Segmenter, tmp_path: Path) -> Path:
    path = tmp_path / "base.safetensors"
    header = Header(NETWORKS["tiny"], CAMVID.names, CAMVID.colours, 0.3)
    checkpoint.save(path, tiny, header, torch.float16)
    return path


def train(
    method: str, base: Path, out: Path, crop: str = "32x32", options: Sequence[str] = ()
) -> int:
    words = ["--method", method, "--start-from", base, "--out", out, "--crop", crop]
    return training_runs.train("baseline", *words, *options)


def pair_stage(tiny: Segmenter, *names: str) -> PairStage:
    methods = {}
    for name in names:
        torch.manual_seed(0)
        method = METHODS[name](tiny)
        assert isinstance(method, PairMethod)
        methods[name] = method
    return PairStage(
        "+".join(names), methods, random_pairs(), random_pairs(), Augment((32, 32)), 0.5
    )


def test_the_jaccard_loss_counts_where_it_has_a_weight(tiny: Segmenter) -> None:
    found = {}
    for weight in (0.0, 0.5):
        stage = pair_stage(tiny, "single_frame_trained")
        stage.jaccard = weight
        found[weight] = stage.loss(2, torch.Generator().manual_seed(0))
    (plain, parts), (total, more) = found[0.0], found[0.5]
    assert set(more) - set(parts) == {"jaccard"}
    assert (total - plain).item() == pytest.approx(more["jaccard"], rel=1e-4)
    assert more["jaccard"] > 0


def test_all_that_have_weights_are_in_the_catalogue() -> None:
    assert {spec.name for spec in WITH_WEIGHTS} == set(METHODS)


@pytest.mark.slow
def test_every_method_trains_saves_and_plays(base: Path, tmp_path: Path) -> None:
    out = tmp_path / "baselines"
    assert train("all", base, out) == 0
    assert train("ddrnet23_slim", base, out, "128x128") == 0
    played = {*METHODS} - {"sh_small"}  # which is for a Sh that reads images of any size
    path = tmp_path / "figures.json"
    common = "evaluate --size 48x64 --frames 6 --device cpu --foreground-threads 1"
    chosen = ",".join(["full", "adaptive", *sorted(played)])
    options = ["--methods", chosen, "--checkpoint", base, "--baselines", out, "--json", path]
    assert commands.main([*common.split(), *map(str, options)]) == 0
    found = json.loads(path.read_text())
    assert found["left_out"] == {}
    methods = found["methods"]
    assert set(methods) == {"full", "adaptive", *played}
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
    common += " --methods single_frame,dff,unified,ddrnet23_slim"
    assert commands.main([*common.split(), "--checkpoint", str(base)]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "Left out: dff, unified: no weights" in shown
    assert "train baseline --method dff,unified --start-from" in shown
    assert "train baseline --method ddrnet23_slim --start-from" in shown


@pytest.mark.slow
def test_what_a_network_cannot_be_compared_with_is_not_advised(
    base: Path, gated: Segmenter, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of one that carries its answers, and of a split one: training would refuse what was said."""
    config, path = NETWORKS["tiny_gated"], tmp_path / "gated.safetensors"
    checkpoint.save(path, gated, Header(config, CAMVID.names, CAMVID.colours, 0.3), torch.float16)
    common = "evaluate --size 48x64 --frames 2 --device cpu --foreground-threads 1"
    methods = "full,dff,single_frame_trained,sh_small"
    assert commands.main([*common.split(), "--methods", methods, "--checkpoint", str(path)]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "train baseline --method single_frame_trained --start-from" in shown
    assert "Left out: dff: the network carries its answers besides F_h" in shown
    assert "Left out: sh_small: Sh of this network reads no smaller images" in shown
    assert commands.main([*common.split(), "--methods", methods, "--checkpoint", str(base)]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "train baseline --method single_frame_trained,dff --start-from" in shown


class WatchedRunner(Runner):
    """Counts the parts that it runs, and says whether one runs now."""

    parts, running = 0, False

    def run(self, name: Hashable, function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        self.parts, self.running = self.parts + 1, True
        try:
            return super().run(name, function, *inputs)
        finally:
            self.running = False


@pytest.mark.parametrize(
    "spec", [s for s in WITH_WEIGHTS if s.name != "sh_small"], ids=lambda s: s.name
)
def test_every_method_runs_through_the_engine_s_runner(
    spec: Spec, tiny: Segmenter, make_frame: Callable[..., Frame]
) -> None:
    """On a GPU, what bypasses it has no CUDA graph: the comparison would be unfair."""
    method, runner = METHODS[spec.name](tiny).eval(), WatchedRunner(tiny)
    header = Header(NETWORKS["tiny"], CAMVID.names, CAMVID.colours, 0.3)
    clip = Clip("none", CAMVID, 10.0, (), ())
    baselines = {spec.name: method}
    factory = MethodFactory(tiny, header, EngineConfig(foreground_threads=1), clip, {}, baselines)
    engine = factory.build(spec)
    assert isinstance(engine, Stream)
    engine.runner = runner
    outside: list[nn.Module] = []

    def note(module: nn.Module, inputs: object) -> None:
        if not runner.running:
            outside.append(module)

    for module in method.learned.modules():
        module.register_forward_pre_hook(note)
    for index in range(3):
        engine.process(make_frame(index, size=(64, 64)))
    assert runner.parts >= 3
    assert not outside


@pytest.mark.parametrize("name", sorted(PAIR_METHODS))
def test_a_step_changes_the_method_and_leaves_the_base_network(
    name: str, tiny: Segmenter, tmp_path: Path
) -> None:
    stage = pair_stage(tiny, name)
    before = {k: v.clone() for k, v in stage.segmenter.state_dict().items()}
    loop_of(stage, tmp_path, steps=1, warmup_steps=0).train_step()
    assert changed(before, stage.segmenter.state_dict()) == {"learned"}


@pytest.mark.slow
def test_side_by_side_each_becomes_what_it_becomes_alone(
    base: Path, tiny: Segmenter, tmp_path: Path
) -> None:
    """Batches, first weights, optimiser, clipping, averages and BatchNorm's statistics alike."""
    names = ("single_frame_trained", "dff", "unified_fused", "grfp")
    many = ["--steps", "4", "--learning-rate", "0.01", "--warmup-steps", "0"]
    assert train(",".join(names), base, tmp_path / "together", options=many) == 0
    for name in names:
        assert train(name, base, tmp_path / name, options=many) == 0
        alone = weights.load(tmp_path / name, name, tiny).learned.state_dict()
        together = weights.load(tmp_path / "together", name, tiny).learned.state_dict()
        first = METHODS[name](tiny).learned.state_dict()
        assert any(not torch.equal(alone[key], first[key]) for key in alone)
        for key, tensor in alone.items():
            assert torch.equal(together[key], tensor), f"{name} {key}"


def test_gradients_of_methods_side_by_side_are_clipped_apart(
    tiny: Segmenter, tmp_path: Path
) -> None:
    stage, alone = (
        pair_stage(tiny, *names)
        for names in (("dff_no_fuse", "image_difference"), ("image_difference",))
    )
    loud, quiet = (method.learned for method in stage.methods.values())
    with torch.no_grad():
        loud["head"].classifier.weight.mul_(1e3)  # its gradients are far larger than the other's
    for one in (stage, alone):
        loop_of(one, tmp_path, steps=1, warmup_steps=0).train_step()

    def norm(module: torch.nn.Module) -> float:
        grads = [p.grad.flatten() for p in module.parameters() if p.grad is not None]
        return torch.cat(grads).norm().item()

    assert norm(loud) == pytest.approx(5.0, rel=1e-3)
    expected = norm(alone.methods["image_difference"].learned)
    assert norm(quiet) == pytest.approx(expected, rel=1e-5)


@pytest.mark.slow
def test_methods_side_by_side_resume_exactly(tiny: Segmenter, tmp_path: Path) -> None:
    states = []
    for name, stops in (("unbroken", [3]), ("broken", [1, 3])):
        for stop in stops:
            stage = pair_stage(tiny, "dff", "unified")
            step_to(loop_of(stage, tmp_path / name, steps=3, warmup_steps=0), stop)
        states.append(stage.segmenter.state_dict())
    assert same(*states)


@pytest.mark.slow
def test_each_method_s_file_and_log_tell_of_it(base: Path, tmp_path: Path) -> None:
    assert train("dff,unified", base, tmp_path) == 0
    with (tmp_path / "dff+unified.held_out.csv").open(newline="") as file:
        row = list(csv.DictReader(file))[-1]
    for name in ("dff", "unified"):
        with safe_open(str(tmp_path / f"{name}.safetensors"), framework="pt") as weights_file:
            provenance = json.loads(weights_file.metadata()["provenance"])
        stage = provenance["stages"][-1]
        assert stage["figures"].keys() == {"miou", "full_miou"}
        assert stage["figures"]["miou"] == pytest.approx(float(row[f"{name}/miou"]))
        assert stage["options"]["method"] == ["dff", "unified"]


def test_the_names_of_methods() -> None:
    assert methods("all") == tuple(PAIR_METHODS)
    assert methods("unified, dff,unified") == ("unified", "dff")
    assert methods("ddrnet23_slim") == ("ddrnet23_slim",)
    for wrong, told in (
        ("dff,flying", "no method 'flying'"),
        ("dff,ddrnet23_slim", "a run of its own"),
        (" ", "no method is named"),
    ):
        with pytest.raises(argparse.ArgumentTypeError, match=told):
            methods(wrong)


@pytest.mark.slow
def test_training_a_baseline_lowers_its_loss(tiny: Segmenter, tmp_path: Path) -> None:
    stage = pair_stage(tiny, "dff")

    def loss() -> float:
        with torch.inference_mode():
            return stage.loss(4, torch.Generator().manual_seed(1))[0].item()

    first = loss()
    assert loop_of(stage, tmp_path, steps=30, batch_size=4, warmup_steps=1).run()
    assert loss() < first


@pytest.mark.parametrize("name", ["tiny", "tiny_ddr", "tiny_gated", "tiny_coarse", "resnet18"])
def test_the_wide_network_costs_what_the_fast_track_costs(name: str) -> None:
    """Counted while they run, after Sl, at 8x8 locations."""
    base = Segmenter(NETWORKS[name]).eval()
    method = METHODS["single_frame_wide"](base)

    def cost(run: Callable[[], object]) -> int:
        with FlopCounterMode(display=False) as counter:
            run()
        return counter.get_total_flops() // 2

    image, config = torch.randn(1, 3, 64, 64), base.config
    with torch.no_grad():
        low, high = base.lower(image), torch.randn(1, config.high_channels, 8, 8)
        known, answers = torch.rand(1, 6, 8, 8), base.high_classifier.cells(high)
        cells = base.carried_cells(high)
        assert base.encoder is None or base.config.shared_reduction
        before = base.lower if base.encoder is None else base.encoder
        lower = cost(lambda: before(image))
        remembered = base.predictor.remember(base.predictor.reduce(low))
        fast = config.kernel_size**2 * cells.numel()
        fast += cost(lambda: base.predictor(remembered, base.predictor.reduce(low)))
        fast += cost(lambda: base.lower(image)) - lower
        carried = (known, answers) if base.gate is not None else ()
        fast += cost(lambda: base.classify_fused(cells, low, *carried))
        wide = cost(lambda: method.learned["network"](image)) - lower
    assert 0.8 * fast < wide <= fast


@pytest.mark.parametrize("name", ["single_frame_trained", "single_frame_wide"])
@pytest.mark.parametrize("kernel", [None, 0, 1, 3])
def test_single_frame_begins_as_the_auxiliary_mask(
    name: str, kernel: int | None, network: Segmenter
) -> None:
    """However F_l is reduced."""
    if kernel is not None:
        config = dataclasses.replace(network.config, shared_reduction=kernel)
        network = Segmenter(config).eval()
    method, image = METHODS[name](network).eval(), torch.randn(1, 3, 48, 64)
    with torch.inference_mode():
        expected = network.classify_low(network.lower(image))
        assert torch.allclose(method.learned["network"](image), expected, atol=1e-5)


def test_adaptive_kernels_read_what_is_shared(network: Segmenter) -> None:
    """They do not begin with a convolution of their own on top of it."""
    method = METHODS["adaptive_no_fuse"](network)
    own = {name for name in method.state_dict() if "reduction" in name}
    assert bool(own) == (not network.config.shared_reduction)


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
    method = METHODS["dff"](tiny)
    torch.nn.init.normal_(method.learned["head"].classifier.weight)
    path = weights.save(tmp_path, "dff", method, {"licence": "none"})
    assert path == tmp_path / "dff.safetensors"
    assert path.stat().st_size < 3e6  # the base network is not in it
    loaded = weights.load(tmp_path, "dff", tiny)
    for mine, other in zip(method.learned.parameters(), loaded.learned.parameters(),
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


@pytest.mark.slow
def test_the_small_sh_begins_as_sh_and_is_trained_and_played(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config, path = NETWORKS["edgetpu"], tmp_path / "edgetpu.safetensors"
    net = Segmenter(config).eval()
    checkpoint.save(path, net, Header(config, CAMVID.names, CAMVID.colours, 0.3), torch.float16)
    small = METHODS["sh_small"](net).learned["network"].eval()
    with torch.inference_mode():
        image = torch.randn(1, 3, 64, 96)
        net.read_at(0.5)
        torch.testing.assert_close(small(image), net(image))
    out, words = tmp_path / "baselines", ("--degrade", "0.5")
    assert train("sh_small", path, out, options=words) == 0
    common = "evaluate --size 48x64 --frames 2 --device cpu --foreground-threads 1"
    chosen = ["--methods", "sh_small", "--checkpoint", path, "--baselines", out]
    assert commands.main([*common.split(), *map(str, chosen)]) == 0


@pytest.mark.slow
@pytest.mark.skipif(not quantization.works(), reason="no right convolutions in 8 bits here")
def test_networks_that_read_images_run_in_8_bits_as_the_default_one_does(tmp_path: Path) -> None:
    """Untrained it is the network that it begins as, so its masks are those of single_frame."""
    base, _ = checkpoint.load(DEFAULT_CHECKPOINT, torch.device("cpu"))
    method = METHODS["single_frame_trained"](base)
    weights.save(tmp_path, "single_frame_trained", method, {})
    command = "evaluate --size 180x240 --frames 10 --precision int8 --methods"
    chosen = ["single_frame,single_frame_trained", "--baselines", str(tmp_path)]
    out = tmp_path / "figures.json"
    assert commands.main([*command.split(), *chosen, "--json", str(out)]) == 0
    found = json.loads(out.read_text())["methods"]
    one, other = (found[name] for name in chosen[0].split(","))
    assert one["miou"] > 0.3
    assert other["miou"] == pytest.approx(one["miou"], abs=0.03)
    assert other["pixel_accuracy"] == pytest.approx(one["pixel_accuracy"], abs=0.02)


def test_the_small_sh_needs_a_sh_that_reads_images_of_any_size(tiny: Segmenter) -> None:
    with pytest.raises(ConfigError, match="not for a split tiny"):
        METHODS["sh_small"](tiny)
    with pytest.raises(ConfigError, match="has no scale of its own"):
        tiny.read_at(0.5)


def test_images_normalised_in_another_way_are_refused(tiny: Segmenter, tmp_path: Path) -> None:
    """DDRNet shares no weight with the base network, but the way images are prepared."""
    weights.save(tmp_path, "ddrnet23_slim", METHODS["ddrnet23_slim"](tiny), {})
    weights.load(tmp_path, "ddrnet23_slim", tiny)
    other = Segmenter(NETWORKS["edgetpu"])
    with pytest.raises(CheckpointError, match="normalised in another way"):
        weights.load(tmp_path, "ddrnet23_slim", other)
