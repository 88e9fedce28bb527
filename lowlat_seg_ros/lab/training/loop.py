"""The loop that all stages share: its settings, schedule, averaging, logging and exact resume."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import itertools
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Protocol

import torch
from torch import Tensor
from tqdm import tqdm

from lowlat_seg_ros.config import ConfigError, Rule, check, setting
from lowlat_seg_ros.network.inference import precision_of
from lowlat_seg_ros.network.trunk import Trunk


@dataclass(frozen=True)
class LoopConfig:
    """How long and how fast a stage is trained."""

    steps: int = setting(
        2000,
        "optimiser steps; the learning rate reaches zero with the last",
        Rule(low=1, high=10**8),
    )
    max_minutes: float = setting(
        0.0,
        "stop and save after this time, to be resumed later; 0 for no limit",
        Rule(unit="min", low=0.0, high=1e6),
    )
    batch_size: int = setting(8, "images (or pairs) per step", Rule(low=1, high=4096))
    learning_rate: float = setting(1e-3, "peak learning rate of AdamW", Rule(low=0.0, high=1.0))
    pretrained_rate: float = setting(
        0.25,
        "learning rate of pretrained backbones, as a share of the learning rate",
        Rule(low=0.0, high=1.0),
    )
    weight_decay: float = setting(0.02, "AdamW's decoupled weight decay", Rule(low=0.0, high=1.0))
    warmup_steps: int = setting(
        100, "steps over which the learning rate rises", Rule(low=0, high=10**6)
    )
    average_decay: float = setting(
        0.998, "decay of the averaged weights that are evaluated and saved", Rule(low=0.0, high=1.0)
    )
    precision: str = setting(
        "auto",
        "number format; auto: bf16 if the processor is fast at it, else fp32",
        Rule(choices=("auto", "bf16", "fp32")),
    )
    log_every: int = setting(50, "steps between rows of losses in the log", Rule(low=1, high=10**8))
    evaluate_every: int = setting(250, "steps between evaluations", Rule(low=1, high=10**8))
    save_every: int = setting(250, "steps between resumable checkpoints", Rule(low=1, high=10**8))
    seed: int = setting(
        0, "seed of initialisation, batches and augmentation", Rule(low=0, high=2**31)
    )

    def __post_init__(self) -> None:
        check(self)


class Stage(Protocol):
    """One stage of training: what it trains, what it minimises, how it is judged."""

    name: str

    @property
    def segmenter(self) -> torch.nn.Module:
        """The whole network: what is saved, averaged and resumed."""

    def trained(self) -> list[list[torch.nn.Module]]:
        """The modules whose weights change; all others stay frozen, BatchNorm included.

        In groups whose gradients are clipped separately: there is one group, unless several
        networks that share no weight are trained side by side.
        """

    def loss(self, batch_size: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        """Draw a batch with ``generator`` alone and return the loss and its named parts."""

    def evaluate(self) -> dict[str, float]:
        """Figures on held-out data, called with the averaged weights in place."""


class Loop:
    """Trains one stage; resumes exactly from its last checkpoint in ``out``."""

    def __init__(self, stage: Stage, config: LoopConfig, out: Path) -> None:
        self.stage, self.config, self.out = stage, config, out
        network = stage.segmenter
        self.device = next(network.parameters()).device
        self.dtype = precision_of(config.precision, self.device)
        self.generator = torch.Generator(self.device).manual_seed(config.seed)
        groups = stage.trained()
        self.modules = [module for group in groups for module in group]
        self.clipped = [[p for module in group for p in module.parameters()] for group in groups]
        self.parameters = [parameter for group in self.clipped for parameter in group]
        network.requires_grad_(False)
        for module in self.modules:
            module.requires_grad_(True)
        self.optimiser = self._optimiser()
        self.step, self.seconds = 0, 0.0
        self.losses: list[dict[str, float]] = []  # of the steps since the last row of the log
        # A digest of the weights that the stage begins with: a resumed run must have the same.
        digest = hashlib.sha256()
        for tensor in network.state_dict().values():
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        self.origin = digest.hexdigest()
        self.average = {k: v.clone() for k, v in self._state().items()}
        self.checkpoint = out / f"{stage.name}.resume.pt"
        out.mkdir(parents=True, exist_ok=True)

    def _optimiser(self) -> torch.optim.Optimizer:
        """AdamW, in one pass over the weights where this torch can do it on the device.

        Biases and BatchNorm's scales are not decayed; what began pretrained learns slower.
        """
        config = self.config
        trunks = [m for module in self.modules for m in module.modules() if isinstance(m, Trunk)]
        pretrained = {id(p) for trunk in trunks for p in trunk.parameters()}
        groups: list[dict[str, Any]] = []
        for is_pretrained, share in ((False, 1.0), (True, config.pretrained_rate)):
            own = [p for p in self.parameters if (id(p) in pretrained) == is_pretrained]
            for is_matrix, decay in ((True, config.weight_decay), (False, 0.0)):
                parameters = [p for p in own if (p.ndim > 1) == is_matrix]
                groups.append({"params": parameters, "weight_decay": decay, "share": share})
        groups = [group for group in groups if group["params"]]
        try:
            return torch.optim.AdamW(groups, lr=config.learning_rate, fused=True)
        except RuntimeError:
            return torch.optim.AdamW(groups, lr=config.learning_rate)

    def _state(self) -> dict[str, Tensor]:
        """The tensors that are averaged."""
        state = self.stage.segmenter.state_dict()
        return {name: tensor for name, tensor in state.items() if tensor.is_floating_point()}

    def _learning_rate(self) -> float:
        """Linear warm-up, then a cosine down to zero."""
        config = self.config
        warm = min(1.0, (self.step + 1) / max(1, config.warmup_steps))
        cosine = math.cos(math.pi * self.step / config.steps)
        return config.learning_rate * warm * 0.5 * (1 + cosine)

    def resume(self) -> bool:
        """Continue from ``checkpoint`` if it exists; the steps are those of an unbroken run.

        Raises ConfigError if it was begun from other weights or on another kind of device.
        """
        if not self.checkpoint.exists():
            return False
        # The modules and the optimiser move what they load to their device.
        state = torch.load(self.checkpoint, map_location="cpu", weights_only=True)
        if state["origin"] != self.origin:
            raise ConfigError(
                f"{self.checkpoint} was begun from other weights; give another --out, or remove it"
            )
        if state.get("device", self.device.type) != self.device.type:
            raise ConfigError(
                f"{self.checkpoint} was begun on {state['device']}, whose random numbers "
                f"{self.device.type} cannot go on with; give --device {state['device']}, or "
                "another --out"
            )
        self.stage.segmenter.load_state_dict(state["segmenter"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.average = {name: mean.to(self.device) for name, mean in state["average"].items()}
        self.step, self.seconds = state["step"], state["seconds"]
        self.generator.set_state(state["generator"].flatten())  # older files have a row for it
        return True

    def save(self) -> None:
        """Write ``checkpoint``, whole or not at all."""
        state = {
            "segmenter": self.stage.segmenter.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "average": self.average,
            "step": self.step,
            "origin": self.origin,
            "seconds": self.seconds,
            "generator": self.generator.get_state(),
            "device": self.device.type,
        }
        partial = self.checkpoint.with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(self.checkpoint)

    def run(self) -> bool:
        """Train until the last step or ``max_minutes``; True when the stage is finished."""
        config, allowed = self.config, self.config.max_minutes * 60
        started, before = time.monotonic(), self.seconds
        name = self.stage.name
        bar = tqdm(None, name, config.steps, initial=self.step, unit="step")
        log = Log(self.out, name, self.step)
        with bar:
            while self.step < config.steps:
                parts = self.train_step()
                self.seconds = before + time.monotonic() - started
                shown = itertools.islice(parts.items(), 5)  # the bar has no room for many methods'
                bar.set_postfix({k: f"{v:.3f}" for k, v in shown}, refresh=False)
                bar.update()
                last = self.step == config.steps
                over = 0 < allowed < time.monotonic() - started
                stop = last or over
                if stop or self.step % config.log_every == 0:
                    losses, self.losses = self.losses, []
                    means = {name: fmean(parts[name] for parts in losses) for name in losses[0]}
                    self._write(log, "loss", means)
                if stop or self.step % config.save_every == 0:
                    self.save()
                if stop or self.step % config.evaluate_every == 0:
                    with self.averaged(), torch.inference_mode():
                        figures = self.stage.evaluate()
                    line = "  ".join(f"{key} {figure:.4f}" for key, figure in figures.items())
                    bar.write(f"step {self.step}: {line}")
                    self._write(log, "held_out", figures)
                if over and not last:
                    bar.write(f"{config.max_minutes} minutes are over; run it again to go on")
                    return False
        return True

    def train_step(self) -> dict[str, float]:
        """One step of the optimiser, and of the averages; returns the losses."""
        for group in self.optimiser.param_groups:
            group["lr"] = self._learning_rate() * group.get("share", 1.0)
        parts = self.gradients()
        for parameters in self.clipped:
            torch.nn.utils.clip_grad_norm_(parameters, 5.0)
        self.optimiser.step()
        # Early averages would remember the initialisation; the decay grows into its value.
        decay = min(self.config.average_decay, (1 + self.step) / (10 + self.step))
        for name, tensor in self._state().items():
            self.average[name].lerp_(tensor, 1 - decay)
        self.losses.append(parts)
        self.step += 1
        return parts

    def gradients(self) -> dict[str, float]:
        """Leave the gradient of a batch in the parameters; return the losses."""
        self.stage.segmenter.eval()
        for module in self.modules:
            module.train()
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            loss, parts = self.stage.loss(self.config.batch_size, self.generator)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        return {"loss": float(loss.detach())} | parts

    @contextlib.contextmanager
    def averaged(self) -> Iterator[torch.nn.Module]:
        """The averaged weights are in the network while the context lasts."""
        own = {name: tensor.clone() for name, tensor in self._state().items()}
        self.stage.segmenter.load_state_dict(self.average, strict=False)
        try:
            yield self.stage.segmenter.eval()
        finally:
            self.stage.segmenter.load_state_dict(own, strict=False)

    def _write(self, log: Log, kind: str, figures: dict[str, float]) -> None:
        rate = self.optimiser.param_groups[0]["lr"]  # of the step that was just done
        progress = {"seconds": self.seconds, "learning_rate": rate}
        log.write(kind, self.step, progress | figures)


class Log:
    """Writes ``out/NAME.KIND.csv``, going on after ``step``.

    Rows of later steps, which a run that was killed has left, are dropped: they come again.
    """

    def __init__(self, out: Path, name: str, step: int) -> None:
        self.out, self.name, self.step = out, name, step
        self.begun: set[str] = set()

    def write(self, kind: str, step: int, figures: dict[str, float]) -> None:
        """Add one row of ``figures`` after ``step`` steps; all rows of a ``kind`` have the same."""
        path, row = self.out / f"{self.name}.{kind}.csv", {"step": step} | figures
        rows = [] if kind in self.begun or not path.exists() else self._earlier(path)
        with path.open("a" if kind in self.begun else "w", newline="") as file:
            # The run that is gone on with may have had more losses, by other options.
            writer = csv.DictWriter(file, list(row), extrasaction="ignore")
            if kind not in self.begun:
                writer.writeheader()
            writer.writerows([*rows, row])
        self.begun.add(kind)

    def _earlier(self, path: Path) -> list[dict[str, str]]:
        """The rows up to ``step`` of the run that is gone on with."""
        with path.open(newline="") as file:
            return [row for row in csv.DictReader(file) if int(row["step"]) <= self.step]
