"""The loop that all three stages share: schedule, averaging, logging, exact resume."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from tqdm import tqdm

from lowlat_seg_ros.config import ConfigError, check, setting


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
    batch_size: int = setting(8, "images (or pairs) a step", low=1, high=4096)
    learning_rate: float = setting(1e-3, "peak learning rate of AdamW", low=0.0, high=1.0)
    weight_decay: float = setting(0.02, "AdamW's decoupled weight decay", low=0.0, high=1.0)
    warmup_steps: int = setting(100, "steps over which the learning rate rises", low=0, high=10**6)
    average_decay: float = setting(
        0.998, "decay of the averaged weights that are evaluated and saved", low=0.0, high=1.0
    )
    precision: str = setting(
        "auto",
        "bf16 where the processor multiplies it fast, or fp32",
        choices=("auto", "bf16", "fp32"),
    )
    evaluate_every: int = setting(250, "steps between evaluations", low=1, high=10**8)
    save_every: int = setting(250, "steps between resumable checkpoints", low=1, high=10**8)
    seed: int = setting(0, "seed of initialisation, batches and augmentation", low=0, high=2**31)

    def __post_init__(self) -> None:
        check(self)


class Stage(Protocol):
    """One stage of training: what it trains, what it minimises, how it is judged."""

    name: str

    @property
    def segmenter(self) -> torch.nn.Module:
        """The whole network: what is saved, averaged and resumed."""

    def trained(self) -> list[torch.nn.Module]:
        """The modules whose weights change; all others stay frozen, BatchNorm included."""

    def loss(self, batch_size: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        """Draw a batch with ``generator`` alone and return the loss and its named parts."""

    def evaluate(self) -> dict[str, float]:
        """Figures on held-out data, called with the averaged weights in place."""


def precision_of(name: str, device: torch.device) -> torch.dtype:
    """The dtype that convolutions run in: bf16 by request, or where the hardware has it."""
    fast = torch.cuda.is_bf16_supported() if device.type == "cuda" else _cpu_has_bf16()
    return torch.bfloat16 if name == "bf16" or (name == "auto" and fast) else torch.float32


def _cpu_has_bf16() -> bool:
    return "avx512_bf16" in _cpu_flags() or "amx_bf16" in _cpu_flags()


def _cpu_flags() -> str:
    path = Path("/proc/cpuinfo")
    return path.read_text() if path.exists() else ""


def _fingerprint(segmenter: torch.nn.Module) -> str:
    """Digest of the weights that a stage begins with."""
    digest = hashlib.sha256()
    for tensor in segmenter.state_dict().values():
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


class Loop:
    """Trains one stage; resumes exactly from its last checkpoint in ``out``."""

    def __init__(self, stage: Stage, config: LoopConfig, out: Path) -> None:
        self.stage, self.config, self.out = stage, config, out
        self.device = next(stage.segmenter.parameters()).device
        self.dtype = precision_of(config.precision, self.device)
        self.generator = torch.Generator(self.device).manual_seed(config.seed)
        self.modules = stage.trained()
        for parameter in stage.segmenter.parameters():
            parameter.requires_grad_(False)
        self.parameters = [p for m in self.modules for p in m.parameters()]
        for parameter in self.parameters:
            parameter.requires_grad_(True)
        self.optimiser = torch.optim.AdamW(self._groups(), lr=config.learning_rate)
        self.step, self.seconds = 0, 0.0
        self.origin = _fingerprint(stage.segmenter)
        self.average = {k: v.clone() for k, v in self._state().items()}
        out.mkdir(parents=True, exist_ok=True)

    def _groups(self) -> list[dict[str, Any]]:
        """Biases and BatchNorm's scales are not decayed."""
        matrices = [p for p in self.parameters if p.ndim > 1]
        vectors = [p for p in self.parameters if p.ndim <= 1]
        decay = self.config.weight_decay
        return [
            {"params": matrices, "weight_decay": decay},
            {"params": vectors, "weight_decay": 0.0},
        ]

    def _state(self) -> dict[str, Tensor]:
        return {
            name: tensor
            for name, tensor in self.stage.segmenter.state_dict().items()
            if tensor.is_floating_point()
        }

    def _learning_rate(self) -> float:
        """Linear warm-up, then a cosine down to zero."""
        config = self.config
        warm = min(1.0, (self.step + 1) / max(1, config.warmup_steps))
        return (
            config.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * self.step / config.steps))
        )

    @property
    def checkpoint(self) -> Path:
        """The resumable state of this stage."""
        return self.out / f"{self.stage.name}.resume.pt"

    def resume(self) -> bool:
        """Continue from :attr:`checkpoint` if it exists; the steps are those of an unbroken run."""
        if not self.checkpoint.exists():
            return False
        state = torch.load(self.checkpoint, map_location=self.device, weights_only=True)
        if state["origin"] != self.origin:
            raise ConfigError(
                f"{self.checkpoint} was begun from other weights; give another --out, or remove it"
            )
        self.stage.segmenter.load_state_dict(state["segmenter"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.average = state["average"]
        self.step, self.seconds = state["step"], state["seconds"]
        self.generator.set_state(state["generator"].cpu())
        return True

    def save(self) -> None:
        """Write :attr:`checkpoint`, whole or not at all."""
        state = {
            "segmenter": self.stage.segmenter.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "average": self.average,
            "step": self.step,
            "origin": self.origin,
            "seconds": self.seconds,
            "generator": self.generator.get_state(),
        }
        partial = self.checkpoint.with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(self.checkpoint)

    def run(self) -> bool:
        """Train until the last step or ``max_minutes``; True when the stage is finished."""
        config, budget = self.config, self.config.max_minutes * 60
        started, before = time.monotonic(), self.seconds
        with tqdm(total=config.steps, initial=self.step, desc=self.stage.name, unit="step") as bar:
            while self.step < config.steps:
                parts = self._train_step()
                self.step += 1
                self.seconds = before + time.monotonic() - started
                bar.set_postfix({k: f"{v:.3f}" for k, v in parts.items()}, refresh=False)
                bar.update()
                last, over = self.step == config.steps, 0 < budget < time.monotonic() - started
                if last or over or self.step % config.save_every == 0:
                    self.save()
                if last or over or self.step % config.evaluate_every == 0:
                    self._log(parts | self._evaluate(), bar)
                if over and not last:
                    bar.write(f"{config.max_minutes} minutes are over; run it again to go on")
                    return False
        return True

    def _train_step(self) -> dict[str, float]:
        self.stage.segmenter.eval()
        for module in self.modules:
            module.train()
        for group in self.optimiser.param_groups:
            group["lr"] = self._learning_rate()
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            loss, parts = self.stage.loss(self.config.batch_size, self.generator)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 5.0)
        self.optimiser.step()
        # Early averages would remember the initialisation; the decay grows into its value.
        decay = min(self.config.average_decay, (1 + self.step) / (10 + self.step))
        for name, tensor in self._state().items():
            self.average[name].lerp_(tensor, 1 - decay)
        return {"loss": float(loss.detach())} | parts

    @contextlib.contextmanager
    def averaged(self) -> Any:
        """The averaged weights are in the network while the context lasts."""
        own = {name: tensor.clone() for name, tensor in self._state().items()}
        self.stage.segmenter.load_state_dict(self.average, strict=False)
        try:
            yield self.stage.segmenter.eval()
        finally:
            self.stage.segmenter.load_state_dict(own, strict=False)

    def _evaluate(self) -> dict[str, float]:
        with self.averaged(), torch.inference_mode():
            return self.stage.evaluate()

    def _log(self, figures: dict[str, float], bar: Any) -> None:
        bar.write(f"step {self.step}: " + "  ".join(f"{k} {v:.4f}" for k, v in figures.items()))
        path = self.out / f"{self.stage.name}.csv"
        row = {"step": self.step, "seconds": self.seconds, "learning_rate": self._learning_rate()}
        row |= figures
        new = not path.exists()
        with path.open("a", newline="") as file:
            writer = csv.DictWriter(file, list(row))
            if new:
                writer.writeheader()
            writer.writerow(row)
