"""The network that the node runs: checked, loaded, warmed up and measured."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from lowlat_seg_ros.engine.budget import Budget, measure
from lowlat_seg_ros.engine.device import apart
from lowlat_seg_ros.labels import ClassTable
from lowlat_seg_ros.network import checkpoint, inference
from lowlat_seg_ros.network.checkpoint import DEFAULT_CHECKPOINT, Header
from lowlat_seg_ros.network.inference import resolve_device
from lowlat_seg_ros.network.segmenter import Segmenter
from lowlat_seg_ros.ros.params import Settings


@dataclass(frozen=True, eq=False)
class Model:
    """Weights in memory, where they came from and what they cost here."""

    segmenter: Segmenter
    header: Header
    table: ClassTable
    device: torch.device
    path: Path
    sha256: str
    budget: Budget


def load_model(settings: Settings) -> Model:
    """Check the hash, load, and run every stage at the expected size, which takes seconds.

    Raises ``CheckpointError`` for the file or its hash, ``ConfigError`` for the device.
    """
    return apart(partial(_load, settings))


def _load(settings: Settings) -> Model:
    node = settings.node
    path = Path(node.checkpoint or DEFAULT_CHECKPOINT)
    device = resolve_device(node.device)
    sha256 = checkpoint.verify(path, node.checkpoint_sha256)
    segmenter, header = inference.load(path, device, settings.engine.precision)
    table = ClassTable(path.stem, header.classes, header.colours)
    size = node.expected_height, node.expected_width
    budget = measure(segmenter, settings.engine, size)
    return Model(segmenter, header, table, device, path, sha256, budget)
