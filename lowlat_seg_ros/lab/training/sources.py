"""Where the stages get their data: CamVid's train split, rendered drives, warped stills.

All of it is held in memory on the device where it is augmented. Stills are images uint8 (N, 3, H,
W) RGB and labels uint8 (N, H, W); pairs are key images, current images, current labels, and seconds
from key to current frame float32 (N,).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import TensorDataset
from tqdm import trange

from lowlat_seg_ros.config import ConfigError
from lowlat_seg_ros.lab.data.augment import Augment
from lowlat_seg_ros.lab.data.camvid import CamVid
from lowlat_seg_ros.lab.data.pairs import Pair, make_pair, pair_of
from lowlat_seg_ros.lab.data.sequence import (
    LabelledFrame,
    Sequence,
    Subset,
    frames_of,
    split_holdout,
    stack,
)
from lowlat_seg_ros.lab.data.synthetic import RenderedDrive

#: Frames a second of rendered drives, and the lags in frames of training pairs (Sec. 4 has 2 to 10;
#: a frame right after its key frame is met as well, and where Sh is slow one long after it).
RATE_HZ = 15.0
LAGS = (1, 20)

#: Real pairs are neighbours in a drive that are at most this far apart.
NEIGHBOURS_S = 1.5

#: First seeds of the rendered drives that are trained on, judged on, and calibrated on. Smaller
#: seeds, which the demo and evaluations use, are never seen in training.
TRAINED_SEED, HELD_OUT_SEED, CALIBRATION_SEED = 1_000_000, 2_000_000, 3_000_000


def draw(data: TensorDataset, count: int, generator: torch.Generator) -> tuple[Tensor, ...]:
    """``count`` rows at random, with replacement."""
    device = data.tensors[0].device
    rows: tuple[Tensor, ...] = data[
        torch.randint(len(data), (count,), generator=generator, device=device)
    ]
    return rows


@dataclass(frozen=True)
class Mixture:
    """Stills (images, labels) and the share of each batch that comes from each; they sum to one."""

    parts: tuple[TensorDataset, ...]
    shares: tuple[float, ...]

    def batch(
        self, size: int, augment: Augment, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Augmented frames of all parts: float [0, 1] (N, 3, h, w) and labels int64 (N, h, w)."""
        counts = [round(size * share) for share in self.shares]
        counts[0] += size - sum(counts)  # what rounding leaves
        drawn = []
        for part, count in zip(self.parts, counts, strict=True):
            if count:
                images, labels = draw(part, count, generator)
                drawn.append(augment(images, labels, generator))
        return torch.cat([images for images, _ in drawn]), torch.cat([label for _, label in drawn])


@dataclass(frozen=True)
class TrainingData:
    """``root`` is CamVid's folder or None; ``rendered`` counts rendered frames (or pairs).

    ``hold_out``: what of CamVid's train split is held out to judge on: the ``ends`` of all drives,
    one drive by its name, or ``none``: then figures are of frames that were trained on.
    """

    root: Path | None
    rendered: int
    size: tuple[int, int]
    device: torch.device
    hold_out: str = "ends"

    def __post_init__(self) -> None:
        if self.root is None and self.rendered < 1:
            raise ConfigError("there is nothing to train on; give --root or --rendered 1 or more")

    def camvid(self) -> tuple[Sequence, Sequence]:
        """CamVid's train split: (train, held out), as ``hold_out`` says."""
        assert self.root is not None
        frames = CamVid(self.root, "train")
        if self.hold_out == "ends":
            return split_holdout(frames)
        if self.hold_out == "none":
            return frames, split_holdout(frames)[1]
        drives = [frames.drive(index) for index in range(len(frames))]
        if self.hold_out not in drives:
            raise ConfigError(
                f"--hold-out is {self.hold_out!r}; choose ends, none or one of the drives "
                f"{', '.join(sorted(set(drives)))}"
            )
        held = [index for index, drive in enumerate(drives) if drive == self.hold_out]
        others = [index for index, drive in enumerate(drives) if drive != self.hold_out]
        return Subset(frames, others), Subset(frames, held)

    def drive(self, seed: int, frames: int) -> RenderedDrive:
        return RenderedDrive(seed=seed, frames=frames, rate_hz=RATE_HZ, size=self.size)

    def drives(self, count: int, seed: int, frames: int) -> list[list[LabelledFrame]]:
        """``count`` drives of ``frames`` consecutive rendered frames."""
        seeds = trange(seed, seed + count, desc="rendering", unit="drive")
        return [frames_of(self.drive(seed, frames)) for seed in seeds]

    def clip(self, frames: list[LabelledFrame]) -> Tensor:
        """Images uint8 (T, 3, H, W) of consecutive frames."""
        return torch.from_numpy(stack(frames)[0]).to(self.device)


def stills(data: TrainingData, rendered_share: float) -> tuple[Mixture, TensorDataset]:
    """Labelled stills to train on, CamVid's first, and those to judge on."""
    if data.root is None:
        held_out = _rendered_stills(data, 32, HELD_OUT_SEED)
        return Mixture((_rendered_stills(data, data.rendered, TRAINED_SEED),), (1.0,)), held_out
    camvid, held_out = (_tensors(data, *stack(frames_of(part))) for part in data.camvid())
    if data.rendered == 0:
        return Mixture((camvid,), (1.0,)), held_out
    rendered = _rendered_stills(data, data.rendered, TRAINED_SEED)
    return Mixture((camvid, rendered), (1 - rendered_share, rendered_share)), held_out


def _tensors(data: TrainingData, *arrays: np.ndarray) -> TensorDataset:
    return TensorDataset(*(torch.from_numpy(array).to(data.device) for array in arrays))


def _rendered_stills(data: TrainingData, count: int, seed: int) -> TensorDataset:
    """``count`` frames, each of a drive of its own, so that as many scenes as possible are seen."""
    return _tensors(data, *stack([drive[0] for drive in data.drives(count, seed, frames=1)]))


def pairs(data: TrainingData, warped: int) -> tuple[TensorDataset, TensorDataset]:
    """Pairs to train on, warped stills and rendered ones, and pairs to judge on, never seen."""
    own = _rendered_pairs(data, data.rendered, TRAINED_SEED)
    if data.root is None:
        held_out = _rendered_pairs(data, 24, HELD_OUT_SEED)
    else:
        train, held = data.camvid()
        own += _warped_pairs(train, warped, seed=0) + _real_pairs(train)
        held_out = _warped_pairs(held, len(held), seed=1)
    return _stacked(data, own), _stacked(data, held_out)


def _stacked(data: TrainingData, pairs: list[Pair]) -> TensorDataset:
    key = np.stack([pair.key_image.transpose(2, 0, 1) for pair in pairs])
    image = np.stack([pair.image.transpose(2, 0, 1) for pair in pairs])
    label = np.stack([pair.label for pair in pairs])
    return _tensors(data, key, image, label, np.array([p.seconds for p in pairs], np.float32))


def _real_pairs(stills: Sequence) -> list[Pair]:
    """Neighbours in the drives, a second apart in CamVid: what is really seen after so long."""
    frames, pairs = frames_of(stills), []
    for index in range(1, len(frames)):
        pair = pair_of(frames[index - 1], frames[index])
        if stills.drive(index) == stills.drive(index - 1) and 0 < pair.seconds <= NEIGHBOURS_S:
            pairs.append(pair)
    return pairs


def _warped_pairs(stills: Sequence, count: int, seed: int) -> list[Pair]:
    """Pseudo-motion pairs, the stills taken one after another."""
    rng, pairs = np.random.default_rng(seed), []
    for index in trange(count, desc="warping", unit="pair"):
        still = stills[index % len(stills)]
        pairs.append(make_pair(still.image, still.label, _lag(rng), rng))
    return pairs


def _rendered_pairs(data: TrainingData, count: int, seed: int) -> list[Pair]:
    rng, pairs = np.random.default_rng(seed), []
    for index in trange(count, desc="rendering", unit="pair"):
        lag = _lag(rng)
        drive = data.drive(seed + index, lag + 1)
        pairs.append(pair_of(drive[0], drive[lag]))
    return pairs


def _lag(rng: np.random.Generator) -> int:
    """One of :data:`LAGS`, half of them in the first quarter: features are mostly young."""
    return LAGS[0] + int((LAGS[1] + 1 - LAGS[0]) * rng.random() ** 2)
