"""Networks made ready for inference answer as before."""

from __future__ import annotations

import copy
import hashlib
import itertools
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lowlat_seg_ros.config import NETWORKS, EngineConfig, NetworkConfig
from lowlat_seg_ros.engine.cpu_threads import run_in_temporary_thread
from lowlat_seg_ros.engine.engine import Engine
from lowlat_seg_ros.frames import Frame, MaskKind
from lowlat_seg_ros.lab.baselines.ddrnet import DDRNet23Slim
from lowlat_seg_ros.lab.data.synthetic import RenderedDrive
from lowlat_seg_ros.network import checkpoint, inference
from lowlat_seg_ros.network.checkpoint import DEFAULT_CHECKPOINT
from lowlat_seg_ros.network.inference import precision_of
from lowlat_seg_ros.network.layers import PackedConv2d, num_threads
from lowlat_seg_ros.network.segmenter import Segmenter

CPU = torch.device("cpu")


def trained(network: nn.Module) -> nn.Module:
    """With statistics and scales that are not those of initialisation."""
    torch.manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.running_mean, module.bias):
                nn.init.normal_(tensor, std=0.2)
            for tensor in (module.running_var, module.weight):
                nn.init.uniform_(tensor, 0.5, 2.0)
    return network.eval()


def convolutions(network: nn.Module) -> dict[str, torch.dtype]:
    """The precision of each, by name."""
    plain = {n: m.weight.dtype for n, m in network.named_modules() if isinstance(m, nn.Conv2d)}
    packed = {n: m.dtype for n, m in network.named_modules() if isinstance(m, PackedConv2d)}
    return plain | packed


def every_answer(segmenter: Segmenter, image: Tensor) -> dict[str, Tensor]:
    """What the engine asks of a network, by name."""
    low = segmenter.lower(image)
    high = segmenter.higher(segmenter.source(image, low))
    reduced = segmenter.predictor.reduce(low)
    remembered = segmenter.predictor.remember(reduced.roll(1, dims=3))
    weights = segmenter.predictor(remembered, reduced)
    chosen = segmenter.selector.reduce(low)
    return {
        "low": low,
        "high": high,
        "weights": weights,
        "fused": segmenter.classify_fused(segmenter.propagate(high, weights), low),
        "full": segmenter.classify_high(high),
        "degraded": segmenter.classify_low(low),
        "deviation": segmenter.selector.deviation(chosen.roll(1, dims=3), chosen),
    }


@torch.inference_mode()
@pytest.mark.parametrize("name", ["tiny", "tiny_ddr", "resnet18", "bottlenecks"])
def test_a_prepared_segmenter_answers_as_before(name: str) -> None:
    networks = NETWORKS | {"bottlenecks": NetworkConfig(backbone="resnet50", context_skip=8)}
    plain = trained(Segmenter(networks[name]))
    assert isinstance(plain, Segmenter)
    # The classifiers of a correction begin with zeros, which would hide everything.
    nn.init.normal_(plain.classifier.weight, std=0.1)
    prepared = inference.prepare(copy.deepcopy(plain))
    assert not any(isinstance(module, nn.BatchNorm2d) for module in prepared.modules())
    image = torch.rand(1, 3, 64, 80)
    expected, answers = every_answer(plain, image), every_answer(prepared, image)
    for part, answer in answers.items():
        scale = expected[part].abs().max()
        assert (answer - expected[part]).abs().max() < 1e-4 * scale, part


@torch.inference_mode()
def test_ddrnet_is_folded_wherever_a_convolution_precedes() -> None:
    plain = trained(DDRNet23Slim(11))
    prepared = inference.prepare(copy.deepcopy(plain))
    left = [name for name, part in prepared.named_modules() if isinstance(part, nn.BatchNorm2d)]
    # Those before a convolution: what they read is pooled or summed.
    assert left
    assert all(name.startswith(("context.", "head.0.", "auxiliary.0.")) for name in left)
    fast = inference.prepare(copy.deepcopy(plain), torch.bfloat16)
    full = {name for name, dtype in convolutions(fast).items() if dtype == torch.float32}
    assert full == {"head.3", "auxiliary.3"}  # the logits
    image = torch.rand(1, 3, 64, 80)
    expected = plain(image)
    assert (fast(image) - expected).abs().max() < 0.05 * expected.abs().max()
    assert (prepared(image) - expected).abs().max() < 1e-4 * expected.abs().max()


@torch.inference_mode()
def test_in_bf16_what_is_read_as_numbers_is_full_precision() -> None:
    segmenter = inference.prepare(trained(Segmenter(NETWORKS["resnet18"])), torch.bfloat16)
    assert isinstance(segmenter, Segmenter)
    answers = every_answer(segmenter, torch.rand(1, 3, 64, 80))
    assert {name for name, tensor in answers.items() if tensor.dtype == torch.bfloat16} == {"low"}
    full = {name for name, dtype in convolutions(segmenter).items() if dtype == torch.float32}
    classifiers = {"classifier", "high_classifier", "low_classifier"}
    others = {"context.project", "predictor.logits", "adapt.far.whole", "selector.reduction"}
    assert {name.removesuffix(".convolution") for name in full} == classifiers | others
    assert segmenter.selector.unit.weight.dtype == torch.float32


def test_bf16_is_chosen_where_the_processor_multiplies_it() -> None:
    flags = Path("/proc/cpuinfo").read_text().split()
    fast = "avx512_bf16" in flags or "amx_bf16" in flags
    assert precision_of("auto", CPU) == (torch.bfloat16 if fast else torch.float32)
    assert precision_of("bf16", CPU) == torch.bfloat16
    assert precision_of("fp32", CPU) == torch.float32
    path = DEFAULT_CHECKPOINT.with_name("resnet18.safetensors")  # which has no ranges for 8 bits
    found = convolutions(inference.load(path, CPU)[0])["backbone.conv1"]
    assert found == precision_of(EngineConfig.precision, CPU)


def test_loading_starts_no_pool_of_threads() -> None:
    """Beside a busy core a pool would take thrice as long for so many tiny steps."""

    def load() -> tuple[set[str], set[str], int]:
        with num_threads(3):
            before = set(os.listdir("/proc/self/task"))
            inference.load(DEFAULT_CHECKPOINT, torch.device("cpu"), "auto")
            return before, set(os.listdir("/proc/self/task")), torch.get_num_threads()

    before, after, threads = run_in_temporary_thread(load)
    assert (after - before, threads) == (set(), 3)


@torch.inference_mode()
def test_preparing_twice_changes_nothing_more() -> None:
    prepared = inference.prepare(trained(Segmenter(NETWORKS["tiny"])), torch.bfloat16)
    before = {name: tensor.clone() for name, tensor in prepared.state_dict().items()}
    after = inference.prepare(prepared, torch.bfloat16).state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_the_checkpoint_stays_what_training_goes_on_from() -> None:
    digest = hashlib.sha256(DEFAULT_CHECKPOINT.read_bytes()).hexdigest()
    prepared, header = inference.load(DEFAULT_CHECKPOINT, CPU)
    assert not prepared.training
    assert not any(parameter.requires_grad for parameter in prepared.parameters())
    assert hashlib.sha256(DEFAULT_CHECKPOINT.read_bytes()).hexdigest() == digest
    plain, again = checkpoint.load(DEFAULT_CHECKPOINT)
    assert again == header
    assert plain.state_dict().keys() == Segmenter(header.network).state_dict().keys()
    assert all(parameter.requires_grad for parameter in plain.parameters())


def test_a_network_in_training_is_refused() -> None:
    with pytest.raises(ValueError, match=r"training mode; call its eval\(\)"):
        inference.prepare(Segmenter(NETWORKS["tiny"]))


@pytest.mark.slow
@torch.inference_mode()
def test_masks_in_bf16_agree_with_those_in_full_precision() -> None:
    """What lets ``precision`` be auto: at least 99.9 % of pixels, of full and of carried masks.

    On the mean of two drives: scenes differ by 0.05 %.
    """
    # At the size that the network is for: at half of it twice as many pixels lie on an edge.
    drives = [RenderedDrive(seed, frames=7, rate_hz=15.0, size=(360, 480)) for seed in (3, 4)]
    frames = [[drive[index] for index in range(len(drive))] for drive in drives]
    masks: dict[str, list[np.ndarray]] = {"fp32": [], "bf16": []}
    for (precision, found), scene in itertools.product(masks.items(), frames):
        segmenter, _ = inference.load(DEFAULT_CHECKPOINT, CPU, precision)
        config = EngineConfig(foreground_threads=1, max_key_interval=3, deviation_threshold=1.0)
        with Engine.deterministic(segmenter, config, threshold=1.0, delay_frames=2) as engine:
            results = [engine.process(Frame(frame.image, frame.stamp_ns)) for frame in scene]
        found += [result.mask for result in results]
        kinds = [result.provenance.kind for result in results]
        assert kinds == [MaskKind.FULL] + 6 * [MaskKind.PROPAGATED]
    assert (np.stack(masks["fp32"]) == np.stack(masks["bf16"])).mean() >= 0.999
