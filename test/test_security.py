"""Files of others run no code, and the node reads no format that could."""

from __future__ import annotations

import ast
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from lowlat_seg_ros.config import ConfigError
from lowlat_seg_ros.lab.training.pretrained import load_initial
from lowlat_seg_ros.network import checkpoint
from lowlat_seg_ros.network.checkpoint import CheckpointError
from lowlat_seg_ros.network.segmenter import Segmenter

PACKAGE = Path(__file__).parents[1] / "lowlat_seg_ros"

#: Calls that run what a file says, and the parts of the package that may not even load a .pt.
RUNS_CODE = {"eval", "exec", "pickle.load", "pickle.loads", "yaml.unsafe_load", "os.system"}
PRODUCT = (
    "config",
    "frames",
    "images",
    "labels",
    "messages",
    "network",
    "engine",
    "pipeline",
    "ros",
)


class Malicious:
    """Unpickling it makes the folder ``marker``."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("old_format", [False, True], ids=["zip", "old format"])
@pytest.mark.parametrize("name", ["weights.pt", "weights.safetensors"])
def test_malicious_pt_is_refused_by_the_node_and_by_training(
    tiny: Segmenter, tmp_path: Path, name: str, old_format: bool
) -> None:
    file, marker = tmp_path / name, tmp_path / "marker"
    state = {"conv1.weight": Malicious(marker)}
    torch.save(state, file, _use_new_zipfile_serialization=not old_format)
    with pytest.raises(CheckpointError, match="is not a readable safetensors file"):
        checkpoint.load(file)
    with pytest.raises((CheckpointError, ConfigError), match="--init"):
        load_initial(tiny, str(file))
    assert not marker.exists()
    pickle.loads(pickle.dumps(state))  # else the file would be harmless
    assert marker.exists()


def calls(path: Path) -> list[ast.Call]:
    return [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]


def test_no_code_of_the_package_runs_what_a_file_says() -> None:
    for path in PACKAGE.rglob("*.py"):
        product = path.relative_to(PACKAGE).with_suffix("").parts[0] in PRODUCT
        for call in calls(path):
            name = ast.unparse(call.func)
            given = {word.arg: ast.unparse(word.value) for word in call.keywords}
            where = f"{path}:{call.lineno}: {name}"
            assert name not in RUNS_CODE, where
            assert given.get("allow_pickle", "False") == "False", where
            if name == "torch.load":
                assert not product, where
                assert given.get("weights_only") == "True", where
            if name == "yaml.load":
                assert "yaml.BaseLoader" in map(ast.unparse, call.args), where
