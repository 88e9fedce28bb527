"""How long, how fast and how precisely a stage is trained."""

from __future__ import annotations

from dataclasses import dataclass

from lowlat_seg_ros.config import PRECISIONS, check, setting


@dataclass(frozen=True)
class LoopConfig:
    """How long and how fast a stage is trained."""

    steps: int = setting(
        2000, "optimiser steps; the learning rate reaches zero with the last", low=1, high=10**8
    )
    max_minutes: float = setting(
        0.0,
        "stop and save after this long, to be resumed; 0 for no limit",
        unit="min",
        low=0.0,
        high=1e6,
    )
    batch_size: int = setting(8, "images (or pairs) a step in each process", low=1, high=4096)
    learning_rate: float = setting(1e-3, "peak learning rate of AdamW", low=0.0, high=1.0)
    pretrained_rate: float = setting(
        0.25,
        "learning rate of backbones that began from real images, as a share of the learning rate",
        low=0.0,
        high=1.0,
    )
    weight_decay: float = setting(0.02, "AdamW's decoupled weight decay", low=0.0, high=1.0)
    warmup_steps: int = setting(100, "steps over which the learning rate rises", low=0, high=10**6)
    average_decay: float = setting(
        0.998, "decay of the averaged weights that are evaluated and saved", low=0.0, high=1.0
    )
    precision: str = setting(
        "auto", "bf16 where the processor multiplies it fast, or fp32", choices=PRECISIONS
    )
    log_every: int = setting(50, "steps between rows of losses in the log", low=1, high=10**8)
    evaluate_every: int = setting(250, "steps between evaluations", low=1, high=10**8)
    save_every: int = setting(250, "steps between resumable checkpoints", low=1, high=10**8)
    seed: int = setting(0, "seed of initialisation, batches and augmentation", low=0, high=2**31)

    def __post_init__(self) -> None:
        check(self)
