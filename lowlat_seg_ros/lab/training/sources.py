"""Where the stages get their data: CamVid's train split, rendered drives, warped stills.

All of it is held in memory as uint8, on the device where it is augmented.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import trange

from lowlat_seg_ros.config import ConfigError
from lowlat_seg_ros.lab.data.augment import Augment
from lowlat_seg_ros.lab.data.camvid import CamVid
from lowlat_seg_ros.lab.data.pairs import Pair, make_pair, rendered_pair
from lowlat_seg_ros.lab.data.sequence import LabelledFrame, Sequence, Subset, split_holdout, stack
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


@dataclass(frozen=True)
class PairBank:
    """Key and current images uint8 (N, 3, H, W), the current labels uint8 (N, H, W).

    ``ages`` (N,): seconds from the key to the current frame.
    """

    key_images: Tensor
    images: Tensor
    labels: Tensor
    ages: Tensor

    def draw(
        self, count: int, augment: Augment, generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """``count`` augmented pairs, with replacement.

        Key and current images float [0, 1] (N, 3, h, w), labels int64 (N, h, w) and ages (N,).
        """
        index = torch.randint(
            len(self.images), (count,), generator=generator, device=self.images.device
        )
        key, current, label = augment.pair(
            self.key_images[index], self.images[index], self.labels[index], generator
        )
        return key, current, label, self.ages[index]


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
        if self.root is None:
            raise ConfigError("there is no CamVid folder; give --root")
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


def frame_banks(data: TrainingData, rendered_share: float) -> tuple[Mixture, Bank]:
    """Labelled stills to train on, CamVid's first, and the bank to judge on."""
    if data.root is None:
        held_out = _rendered_bank(data, 32, HELD_OUT_SEED)
        return Mixture((_rendered_bank(data, data.rendered, TRAINED_SEED),), (1.0,)), held_out
    train, held = data.camvid()
    stills, held_out = Bank.of(train, data.device), Bank.of(held, data.device)
    if data.rendered == 0:
        return Mixture((stills,), (1.0,)), held_out
    rendered = _rendered_bank(data, data.rendered, TRAINED_SEED)
    return Mixture((stills, rendered), (1 - rendered_share, rendered_share)), held_out


def _rendered_bank(data: TrainingData, count: int, seed: int) -> Bank:
    """``count`` frames, each of a drive of its own, so that as many scenes as possible are seen."""
    frames: list[LabelledFrame] = []
    for n in trange(count, desc="rendering", unit="frame"):
        drive = RenderedDrive(seed=seed + n, frames=1, rate_hz=RATE_HZ, size=data.size)
        frames.append(drive[0])
    images = torch.from_numpy(np.stack([f.image.transpose(2, 0, 1) for f in frames]))
    labels = torch.from_numpy(np.stack([f.label for f in frames]))
    return Bank(images.to(data.device), labels.to(data.device))


def pair_banks(data: TrainingData, warped: int) -> tuple[PairBank, PairBank]:
    """Pairs to train on: warped stills and rendered ones; and pairs to judge on, never seen."""
    pairs = _rendered_pairs(data, data.rendered, TRAINED_SEED)
    if data.root is None:
        held_out = _rendered_pairs(data, 24, HELD_OUT_SEED)
    else:
        train, held = data.camvid()
        pairs += _warped_pairs(train, warped, seed=0) + _real_pairs(train)
        held_out = _warped_pairs(held, len(held), seed=1)
    return _bank_of(pairs, data.device), _bank_of(held_out, data.device)


def _bank_of(pairs: list[Pair], device: torch.device) -> PairBank:
    key = np.stack([pair.key_image.transpose(2, 0, 1) for pair in pairs])
    image = np.stack([pair.image.transpose(2, 0, 1) for pair in pairs])
    label = np.stack([pair.label for pair in pairs])
    ages = np.array([pair.seconds for pair in pairs], np.float32)
    return PairBank(*(torch.from_numpy(part).to(device) for part in (key, image, label, ages)))


def _real_pairs(stills: Sequence) -> list[Pair]:
    """Neighbours in the drives, a second apart in CamVid: what is really seen after so long."""
    frames, pairs = [stills[index] for index in range(len(stills))], []
    for index in range(1, len(frames)):
        key, frame = frames[index - 1], frames[index]
        seconds = (frame.stamp_ns - key.stamp_ns) / 1e9
        if stills.drive(index) == stills.drive(index - 1) and 0 < seconds <= NEIGHBOURS_S:
            pairs.append(Pair(key.image, key.label, frame.image, frame.label, seconds))
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
        drive = RenderedDrive(seed=seed + index, frames=lag + 1, rate_hz=RATE_HZ, size=data.size)
        pairs.append(rendered_pair(drive, lag, lag))
    return pairs


def _lag(rng: np.random.Generator) -> int:
    """One of :data:`LAGS`, half of them in the first quarter: features are mostly young."""
    return LAGS[0] + int((LAGS[1] + 1 - LAGS[0]) * rng.random() ** 2)


def rendered_clips(data: TrainingData, count: int, seed: int, frames: int = 16) -> list[Tensor]:
    """``count`` clips uint8 (frames, 3, H, W) of consecutive rendered frames."""
    clips = []
    for index in trange(count, desc="rendering", unit="clip"):
        drive = RenderedDrive(seed=seed + index, frames=frames, rate_hz=RATE_HZ, size=data.size)
        clips.append(torch.from_numpy(stack(drive)[0]).to(data.device))
    return clips


def rendered_drives(
    data: TrainingData, count: int, seed: int, frames: int
) -> list[list[LabelledFrame]]:
    """``count`` drives of ``frames`` consecutive rendered frames with their labels."""
    drives = []
    for index in trange(count, desc="rendering", unit="drive"):
        drive = RenderedDrive(seed=seed + index, frames=frames, rate_hz=RATE_HZ, size=data.size)
        drives.append([drive[frame] for frame in range(frames)])
    return drives
