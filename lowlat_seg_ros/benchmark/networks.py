"""The networks of a benchmark, ready to run."""

from __future__ import annotations

import hashlib

import torch

from lowlat_seg_ros.config import NETWORKS
from lowlat_seg_ros.network import inference
from lowlat_seg_ros.network.checkpoint import DEFAULT_CHECKPOINT
from lowlat_seg_ros.network.ddrnet import DDRNet23Slim
from lowlat_seg_ros.network.segmenter import Segmenter


def shipped(device: torch.device) -> tuple[Segmenter, str]:
    """The network of the package's checkpoint, and what its weights are."""
    segmenter, _ = inference.load(DEFAULT_CHECKPOINT, device)
    digest = hashlib.sha256(DEFAULT_CHECKPOINT.read_bytes()).hexdigest()
    return segmenter, f"{DEFAULT_CHECKPOINT.name}, SHA-256 {digest}"


def with_random_weights(config: str, device: torch.device) -> tuple[Segmenter, str]:
    """The network ``config`` of ``NETWORKS``, and what its weights are."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return inference.prepare(Segmenter(NETWORKS[config]).eval().to(device)), "random"


def ddrnet(num_classes: int, device: torch.device) -> DDRNet23Slim:
    """With random weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return inference.prepare(DDRNet23Slim(num_classes).eval().to(device))
