"""What the tests of training share: tiny stages, and ``lowlat-seg train`` in this process."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch.utils.data import TensorDataset

from lowlat_seg_ros.config import NETWORKS
from lowlat_seg_ros.lab.data.augment import Augment
from lowlat_seg_ros.lab.training import cli
from lowlat_seg_ros.lab.training.loop import Loop, LoopConfig, Stage
from lowlat_seg_ros.lab.training.sources import Mixture
from lowlat_seg_ros.lab.training.stills import BaseStage
from lowlat_seg_ros.network.segmenter import Segmenter

#: Small enough for a second, exact enough to be repeated.
COMMON = "--size 48x64 --crop 32x32 --rendered 4 --steps 2 --batch-size 2 --device cpu"
COMMON += " --precision fp32"


def options(*words: str | Path) -> argparse.Namespace:
    """Those of ``lowlat-seg train STAGE ...``; ``words`` override :data:`COMMON`."""
    parser = argparse.ArgumentParser()
    cli.configure(parser)
    return parser.parse_args([str(words[0]), *COMMON.split(), *map(str, words[1:])])


def train(*words: str | Path) -> int:
    return cli.run(options(*words))


def random_pairs() -> TensorDataset:
    """Four pairs of random pixels."""
    torch.manual_seed(0)
    images = torch.randint(0, 256, (2, 4, 3, 48, 64), dtype=torch.uint8)
    labels, ages = torch.randint(0, 11, (4, 48, 64), dtype=torch.uint8), torch.rand(4)
    return TensorDataset(*images, labels, ages)


def base_stage(network: str = "tiny", *, jaccard: float = 0.0, only_sh: bool = False) -> BaseStage:
    """On four images of random pixels."""
    stills = TensorDataset(*random_pairs().tensors[1:3])
    segmenter = Segmenter(NETWORKS[network])
    data, augment = Mixture((stills,), (1.0,)), Augment((32, 32))
    return BaseStage(segmenter, data, stills, augment, jaccard=jaccard, only_sh=only_sh)


def loop_of(stage: Stage, out: Path, **settings: float) -> Loop:
    """Of a few steps of batches of two."""
    return Loop(stage, LoopConfig(**{"batch_size": 2, "precision": "fp32", **settings}), out)


def step_to(loop: Loop, step: int) -> None:
    """Resume, go on to ``step`` and save, as a process does that is stopped there."""
    loop.resume()
    while loop.step < step:
        loop.train_step()
    loop.save()


def changed(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    """The parts, first words of the names, of which some tensor differs."""
    return {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """Whether two sets of tensors are the same to the last bit."""
    return one.keys() == other.keys() and not changed(one, other)
