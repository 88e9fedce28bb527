"""What the loop asks of a stage of training."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor


class Stage(Protocol):
    """One stage of training: what it trains, what it minimises, how it is judged."""

    name: str

    @property
    def segmenter(self) -> torch.nn.Module:
        """The whole network: what is saved, averaged and resumed."""

    def trained(self) -> list[list[torch.nn.Module]]:
        """The modules whose weights change; all others stay frozen, BatchNorm included.

        In groups whose gradients are clipped apart: one, unless several networks that have nothing
        to do with each other are trained side by side.
        """

    def loss(self, batch_size: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        """Draw a batch with ``generator`` alone and return the loss and its named parts."""

    def evaluate(self) -> dict[str, float]:
        """Figures on held-out data, called with the averaged weights in place."""
