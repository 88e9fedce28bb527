"""The networks of a benchmark, ready to run."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from lowlat_seg_ros.config import NETWORKS
from lowlat_seg_ros.lab.baselines.ddrnet import DDRNet23Slim
from lowlat_seg_ros.network import inference
from lowlat_seg_ros.network.inference import precision_of
from lowlat_seg_ros.network.segmenter import Segmenter

Network = TypeVar("Network", bound=nn.Module)


def loaded(path: Path, device: torch.device, precision: str) -> tuple[Segmenter, str]:
    """The network of the checkpoint at ``path``, and what its weights are.

    Raises ``CheckpointError``.
    """
    segmenter, _ = inference.load(path, device, precision)
    return segmenter, f"{path.name}, SHA-256 {hashlib.sha256(path.read_bytes()).hexdigest()}"


def with_random_weights(config: str, device: torch.device, precision: str) -> tuple[Segmenter, str]:
    """The network ``config`` of ``NETWORKS``, and what its weights are."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return _ready(Segmenter(NETWORKS[config]), device, precision), "random"


def ddrnet(num_classes: int, device: torch.device, precision: str) -> DDRNet23Slim:
    """With random weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return _ready(DDRNet23Slim(num_classes), device, precision)


def _ready(network: Network, device: torch.device, precision: str) -> Network:
    """As :func:`~lowlat_seg_ros.network.inference.load` gives them."""
    return inference.prepare(network.eval().to(device), precision_of(precision, device))
