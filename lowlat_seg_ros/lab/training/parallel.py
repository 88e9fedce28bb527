"""Training in several processes, on one machine or on many, as ``torchrun`` starts them.

Each process holds the whole network and draws batches of its own; their gradients are averaged, so
that all take the same step. DistributedDataParallel does the same for a module's ``forward``, but a
stage's loss calls parts of the network one by one, freezes others and may leave some unused. One
all-reduce after the backward pass is as exact and fits any loss. What it gives up is the overlap of
communication with the backward pass: 50 MB a step for ``resnet18``.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from lowlat_seg_ros.config import ConfigError
from lowlat_seg_ros.network.inference import resolve_device

#: How long processes wait for one that renders its data, evaluates or saves.
PATIENCE = timedelta(hours=1)

Value = TypeVar("Value")


@dataclass(frozen=True)
class Ranks:
    """The ``count`` processes that train together, seen from the one with number ``rank``.

    Every method must be called by all of them, in the same order. One process alone, the default,
    waits for nobody.
    """

    rank: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """Whether this process is the one that evaluates, logs and saves."""
        return self.rank == 0

    @torch.no_grad()
    def average(self, tensors: list[Tensor]) -> None:
        """Put the mean over the processes into ``tensors``, float32 of any shapes, in place.

        The result is the same in all processes to the last bit, as each sum is made once and sent.
        """
        if self.count == 1:
            return
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        dist.all_reduce(flat)
        flat /= self.count
        means = flat.split([tensor.numel() for tensor in tensors])
        for tensor, mean in zip(tensors, means, strict=True):
            tensor.copy_(mean.view_as(tensor))

    def from_first(self, value: Value) -> Value:
        """The first process' ``value``, in all of them; its tensors must lie on the CPU."""
        box = [value]
        if self.count > 1:
            dist.broadcast_object_list(box, src=0)
        return box[0]

    def gather(self, value: Value) -> list[Value]:
        """Every process' ``value`` by rank; its tensors must lie on the CPU."""
        values: list[Any] = [value] * self.count
        if self.count > 1:
            dist.all_gather_object(values, value)
        return values


def device_of(name: str) -> torch.device:
    """``auto``, ``cpu``, ``cuda`` or ``cuda:N`` -> this process' device, a GPU for each process.

    Raises ConfigError if the device is absent, or is one GPU for several processes.
    """
    device = resolve_device(name)
    if device.type != "cuda" or _launched() == 1:
        return device
    if ":" in name:
        raise ConfigError(f"device is {name!r}, one GPU for {_launched()} processes; choose cuda")
    mine, found = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if mine >= found:
        raise ConfigError(
            f"there are {found} GPUs for more than {mine} processes on this machine; start at most "
            f"{found}, or give --device cpu"
        )
    return resolve_device(f"cuda:{mine}")


@contextmanager
def joined(device: torch.device) -> Iterator[Ranks]:
    """The processes of this launch, as ``torchrun`` describes it in the environment.

    Networks on the CPU talk over gloo, on GPUs over NCCL.
    """
    if _launched() == 1:
        yield Ranks()
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    # What is not on a GPU, such as generators' states, is sent over gloo in either case.
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=PATIENCE)
    try:
        yield Ranks(dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()


def _launched() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))
