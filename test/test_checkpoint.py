"""Checkpoints: what goes in comes out, and anything else is refused with its reason."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from lowlat_seg_ros.config import NETWORKS, ConfigError
from lowlat_seg_ros.lab.training.pretrained import transfer
from lowlat_seg_ros.network.checkpoint import (
    FORMAT,
    SHA256_SUFFIX,
    CheckpointError,
    Header,
    load,
    read_header,
    save,
    sha256,
    verify,
    weights,
)
from lowlat_seg_ros.network.segmenter import Segmenter

HEADER = Header(
    NETWORKS["tiny"],
    classes=tuple(f"class {i}" for i in range(11)),
    colours=tuple((i, 2 * i, 255) for i in range(11)),
    threshold=0.2,
    provenance={"data": "none", "stages": [{"steps": 3}]},
)


@pytest.fixture
def path(tiny: Segmenter, tmp_path: Path) -> Path:
    target = tmp_path / "folder" / "tiny.safetensors"
    save(target, tiny, HEADER, torch.float32)
    return target


def metadata_of(header: Header) -> dict[str, str]:
    return {"format": FORMAT} | {k: json.dumps(v) for k, v in dataclasses.asdict(header).items()}


def test_round_trip(tiny: Segmenter, path: Path) -> None:
    loaded, header = load(path)
    assert header == HEADER
    assert not loaded.training
    assert loaded.config == tiny.config
    expected = weights(tiny)
    found = weights(loaded)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_half_precision_on_disk_is_float_in_memory(tiny: Segmenter, tmp_path: Path) -> None:
    save(tmp_path / "half.safetensors", tiny, HEADER, torch.float16)
    loaded, _ = load(tmp_path / "half.safetensors")
    for name, tensor in weights(loaded).items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, weights(tiny)[name].half().float())


def test_weight_out_of_half_precision_is_refused(tiny: Segmenter, tmp_path: Path) -> None:
    with torch.no_grad():
        tiny.classifier.weight[0, 0] = 1e6
    with pytest.raises(
        CheckpointError, match=r"classifier\.weight is not finite in torch\.float16"
    ):
        save(tmp_path / "half.safetensors", tiny, HEADER, torch.float16)
    assert not (tmp_path / "half.safetensors").exists()


@pytest.mark.parametrize("keep", [0, 4, 100, 2000, -1])
def test_truncated_file(path: Path, keep: int) -> None:
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match="not a readable safetensors file"):
        load(path)


@pytest.mark.parametrize("content", [b"", b"not a checkpoint at all, but some text", b"\xff" * 64])
def test_wrong_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "wrong").write_bytes(content)
    with pytest.raises(CheckpointError, match="check the path"):
        load(tmp_path / "wrong")


def test_missing_file_and_folder(tmp_path: Path) -> None:
    for wrong in (tmp_path / "nothing", tmp_path):
        with pytest.raises(CheckpointError, match="check the path"):
            read_header(wrong)


def test_file_that_opens_but_cannot_be_read_or_never_ends(tmp_path: Path) -> None:
    """A node that is given a pipe or a device must not wait for its end."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for wrong in (pipe, Path("/dev/zero")):
        for read in (read_header, verify):
            with pytest.raises(CheckpointError, match="is not a regular file; check the path"):
                read(wrong)
    with pytest.raises(CheckpointError, match="check"):
        verify("x" * 5000)
    with pytest.raises(CheckpointError, match="Input/output error"):
        verify("/proc/self/mem")  # a regular file that cannot be read, not even by root


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\0", b"not a digest"])
def test_damaged_file_of_the_hash_is_refused(path: Path, content: bytes) -> None:
    """What a full disk leaves beside the weights must not let any weights pass."""
    beside = Path(f"{path}{SHA256_SUFFIX}")
    beside.write_bytes(content)
    with pytest.raises(CheckpointError, match="copy the file again, or correct"):
        verify(path)
    assert verify(path, sha256(path)) == sha256(path)  # the parameter goes first


def test_someone_elses_safetensors(tmp_path: Path) -> None:
    save_file({"weight": torch.zeros(1)}, tmp_path / "other")
    with pytest.raises(CheckpointError, match="has format None, not"):
        load(tmp_path / "other")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"network": None}, "damaged header"),
        ({"network": "{}}"}, "damaged header"),
        ({"network": '{"backbone": "vgg"}'}, "choose one of resnet18"),
        ({"network": '{"depth": 3}'}, "no setting depth"),
        ({"colours": None}, "damaged header"),
        ({"colours": "[]"}, "0 colours for 11 classes"),
        ({"classes": '["road"]'}, "1 classes for 11 classes"),
        ({"network": '{"split": "layer9"}'}, "impossible network: split is 'layer9'"),
        ({"network": '{"num_classes": 11.0}'}, "impossible network"),
        ({"threshold": None}, "threshold"),
        ({"threshold": '"high"'}, "damaged header"),
        ({"threshold": "NaN"}, r"threshold is nan; it must lie in \[0, 1\]"),
        ({"mood": '"good"'}, "no setting mood"),
        ({"network": '{"fine_carry": "no"}'}, "fine_carry is 'no'; it must be true or false"),
        ({"network": '{"gate": true}'}, "gate is not False though fine_carry is False"),
        ({"network": '{"context_bins": []}'}, "must be 1 to 8 numbers from 1 to 64"),
        ({"network": f'{{"context_bins": {[1] * 10_000}}}'}, "must be 1 to 8 numbers"),
        ({"network": "[" * 100_000}, "damaged header: maximum recursion depth"),
        ({"classes": "[0,1,2,3,4,5,6,7,8,9,10]"}, "each must be a name"),
        ({"colours": f"{[[0, 0, 256]] * 11}"}, r"a colour is \(0, 0, 256\); it must be three"),
        ({"colours": f"{[[0, 0.5, 0]] * 11}"}, "three numbers from 0 to 255"),
        ({"provenance": "[1]"}, "provenance is .*; it must be a mapping"),
        ({"provenance": '{"stages": [1]}'}, "damaged header"),
        ({"provenance": '{"stages": [{"options": {"size": ["high"]}}]}'}, "damaged header"),
        ({"provenance": '{"stages": [{"options": {"size": [1e999]}}]}'}, "damaged header"),
    ],
)
def test_damaged_header(path: Path, change: dict[str, str | None], message: str) -> None:
    tensors = load_file(path)
    merged = metadata_of(HEADER) | change
    save_file(tensors, path, {k: v for k, v in merged.items() if v is not None})
    with pytest.raises(CheckpointError, match=message):
        load(path)


def drop(state: dict[str, torch.Tensor]) -> None:
    del state["backbone.conv1.weight"]


def add(state: dict[str, torch.Tensor]) -> None:
    state["backbone.fc.weight"] = torch.zeros(1)


def poison(state: dict[str, torch.Tensor]) -> None:
    state["fusion.mix.0.weight"][0, 0, 0, 0] = float("nan")


def reshape(state: dict[str, torch.Tensor]) -> None:
    state["low_classifier.bias"] = torch.zeros(12)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop, r"missing \['backbone\.conv1\.weight'\], unexpected \[\]"),
        (add, r"missing \[\], unexpected \['backbone\.fc\.weight'\]"),
        (poison, r"fusion\.mix\.0\.weight holds values that are not finite"),
        (reshape, r"low_classifier\.bias is \(12,\), not \(44,\)"),
    ],
)
def test_weights_are_loaded_strictly(path: Path, change: object, message: str) -> None:
    tensors = load_file(path)
    change(tensors)  # type: ignore[operator]
    save_file(tensors, path, metadata_of(HEADER))
    with pytest.raises(CheckpointError, match=message):
        load(path)


def test_header_must_name_every_class() -> None:
    with pytest.raises(ConfigError, match="2 classes for 11 classes"):
        dataclasses.replace(HEADER, classes=("road", "sky"))


def test_a_network_of_another_configuration_takes_what_fits(tiny: Segmenter) -> None:
    torch.manual_seed(1)
    plain = dataclasses.replace(
        NETWORKS["tiny"],
        context_skip=0,
        classifier_upsampling=1,
        adapt_context=0,
        residual_fusion=False,
    )
    source = Segmenter(plain).eval()
    target = Segmenter(NETWORKS["tiny"]).eval()
    assert transfer(source, target) == ["adapt.far", "classifier", "context.skip"]
    image = torch.randn(1, 3, 48, 64)
    with torch.inference_mode():
        repeated = source(image).repeat_interleave(2, 2).repeat_interleave(2, 3)
        assert torch.allclose(target(image), repeated, atol=1e-6)
    assert transfer(tiny, target) == []
    for name, tensor in weights(tiny).items():
        assert torch.equal(tensor, weights(target)[name])


def test_a_network_of_other_widths_begins_anew_where_it_differs(tiny: Segmenter) -> None:
    wider = dataclasses.replace(NETWORKS["tiny"], high_channels=16)
    target = Segmenter(wider)
    fresh = transfer(tiny, target)
    assert "fusion.mix" in fresh  # its inputs are others than they were
    assert "high_classifier" in {name.split(".")[0] for name in fresh}
    assert torch.equal(target.backbone.conv1.weight, tiny.backbone.conv1.weight)


def test_large_convolutions_in_eight_bits_of_earlier_versions(
    tiny: Segmenter, tmp_path: Path
) -> None:
    colours = tuple((i, i, i) for i in range(11))
    header = Header(tiny.config, tuple("abcdefghijk"), colours, 0.2)
    save(tmp_path / "whole", tiny, header, torch.float16)
    with safe_open(tmp_path / "whole", framework="pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    name, stored = "backbone.conv1.weight", tensors["backbone.conv1.weight"]
    steps = torch.randint(-127, 128, stored.shape, dtype=torch.int8)
    scale = torch.rand(len(stored))
    save_file(tensors | {name: steps, f"{name}.scale": scale}, tmp_path / "packed", metadata)
    found, expected = weights(load(tmp_path / "packed")[0]), weights(load(tmp_path / "whole")[0])
    assert torch.equal(found.pop(name), steps * scale.view(-1, 1, 1, 1))
    del expected[name]
    assert all(torch.equal(found[other], value) for other, value in expected.items())


def test_height_of_the_training_images_comes_with_the_network(
    tiny: Segmenter, tmp_path: Path
) -> None:
    stages = [{"options": {"size": [240, 320]}}, {"options": {"size": [360, 480]}}]
    for provenance, height in (({"stages": stages}, 360), ({"stages": []}, 0), ({}, 0)):
        told = dataclasses.replace(HEADER, provenance=provenance)
        save(tmp_path / "x.safetensors", tiny, told, torch.float32)
        network, read = load(tmp_path / "x.safetensors")
        assert network.trained_height == read.trained_height == height
