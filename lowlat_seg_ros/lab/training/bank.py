"""Training data held in memory as uint8, on the device where it is augmented."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lowlat_seg_ros.lab.data.sequence import Sequence, stack


@dataclass(frozen=True)
class Bank:
    """Images uint8 (N, 3, H, W) RGB and labels uint8 (N, H, W)."""

    images: Tensor
    labels: Tensor

    @classmethod
    def of(cls, sequence: Sequence, device: torch.device) -> Bank:
        """All frames of ``sequence``; they must have one size."""
        images, labels = stack(sequence)
        return cls(torch.from_numpy(images).to(device), torch.from_numpy(labels).to(device))

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """``count`` frames at random, with replacement."""
        index = torch.randint(
            len(self.images), (count,), generator=generator, device=self.images.device
        )
        return self.images[index], self.labels[index]


@dataclass(frozen=True)
class Mixture:
    """Banks and the share of each batch that comes from each; shares sum to one."""

    banks: tuple[Bank, ...]
    shares: tuple[float, ...]

    def counts(self, batch_size: int) -> list[int]:
        """How many of ``batch_size`` come from each bank; the first takes what rounding leaves."""
        counts = [round(batch_size * share) for share in self.shares]
        counts[0] += batch_size - sum(counts)
        return counts
