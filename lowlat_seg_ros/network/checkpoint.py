"""Weights in one safetensors file that says what they are: configuration, classes, provenance."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lowlat_seg_ros.config import DEFAULT_NETWORK, ConfigError, NetworkConfig, from_mapping
from lowlat_seg_ros.network.classifier import Classifier
from lowlat_seg_ros.network.eight_bit import pack, unpack
from lowlat_seg_ros.network.layers import embed
from lowlat_seg_ros.network.segmenter import Segmenter

FORMAT = "lowlat_seg_ros/1"

#: The weights used when none are named.
DEFAULT_CHECKPOINT = Path(__file__).parent.parent / "weights" / f"{DEFAULT_NETWORK}.safetensors"


class CheckpointError(RuntimeError):
    """A checkpoint cannot be read; the message names the file, what is wrong and the fix."""


@dataclass(frozen=True)
class Header:
    """What a checkpoint says about itself.

    ``classes``: names and RGB colours in the order of their ids. ``threshold``: the deviation above
    which a new key frame is taken, calibrated after training. ``provenance``: data, licence, stages
    and metrics, free-form.
    """

    network: NetworkConfig
    classes: tuple[str, ...]
    colours: tuple[tuple[int, int, int], ...]
    threshold: float
    provenance: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("classes", "colours"):
            if len(getattr(self, name)) != self.network.num_classes:
                raise ConfigError(
                    f"{len(getattr(self, name))} {name} for {self.network.num_classes} classes"
                )
        if not 0 <= self.threshold <= 1:
            raise ConfigError(f"threshold is {self.threshold}; it must lie in [0, 1]")


def save(
    path: str | Path,
    segmenter: Segmenter,
    header: Header,
    dtype: torch.dtype,
    *,
    eight_bit: bool = False,
) -> None:
    """Write ``segmenter``'s weights as ``dtype`` (fp16 for shipping, fp32 to train on).

    ``eight_bit``: large convolutions take half of fp16 (:mod:`eight_bit`). Raises
    ``CheckpointError`` when a weight is not finite in ``dtype``.
    """
    tensors = {k: v.detach().to(dtype).contiguous() for k, v in weights(segmenter).items()}
    bad = [name for name, tensor in tensors.items() if not tensor.isfinite().all()]
    if bad:
        raise CheckpointError(
            f"{path}: {bad[0]} is not finite in {dtype}; train with a lower learning rate"
        )
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    fields = dataclasses.asdict(header)
    metadata = {"format": FORMAT} | {name: json.dumps(value) for name, value in fields.items()}
    save_file(pack(tensors) if eight_bit else tensors, str(path), metadata)


def read_header(path: str | Path) -> Header:
    """Read what the checkpoint at ``path`` says about itself; raises :class:`CheckpointError`."""
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} is not a readable safetensors file ({error}); check the path, or copy it again"
        ) from error
    if metadata.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} has format {metadata.get('format')!r}, not {FORMAT!r}; give a checkpoint "
            "written by 'lowlat-seg train'"
        )
    try:
        fields = {name: json.loads(text) for name, text in metadata.items() if name != "format"}
        network = from_mapping(NetworkConfig, fields.pop("network"))
        colours = tuple(tuple(colour) for colour in fields.pop("colours"))
        return from_mapping(Header, {"network": network, "colours": colours} | fields)
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} has a damaged header: {error}") from error


def load(path: str | Path, device: str | torch.device = "cpu") -> tuple[Segmenter, Header]:
    """Build the network a checkpoint describes, with its weights (float32, eval mode).

    Every weight must be there, none may be left over; raises :class:`CheckpointError` otherwise.
    """
    header = read_header(path)
    try:
        segmenter = Segmenter(header.network)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path} describes an impossible network: {error}") from error
    try:
        with safe_open(str(path), framework="pt") as file:
            state = unpack({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is damaged ({error}); copy it again") from error
    restore(segmenter, state, str(path))
    segmenter = segmenter.eval().to(device)
    # PyTorch has this overload, its type stubs do not.
    return segmenter.to(memory_format=torch.channels_last), header  # type: ignore[call-overload]


def weights(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The tensors that make up a network; BatchNorm's step counts are training state."""
    state = module.state_dict()
    return {name: v for name, v in state.items() if not name.endswith("num_batches_tracked")}


def restore(module: torch.nn.Module, state: dict[str, torch.Tensor], source: str) -> None:
    """Copy ``state`` into ``module``, strictly; raises :class:`CheckpointError`."""
    wanted = weights(module)
    missing, extra = sorted(set(wanted) - set(state)), sorted(set(state) - set(wanted))
    if missing or extra:
        raise CheckpointError(
            f"{source} does not fit its configuration: missing {missing[:3]}, "
            f"unexpected {extra[:3]}"
        )
    for name, tensor in state.items():
        if tensor.shape != wanted[name].shape:
            raise CheckpointError(
                f"{source}: {name} is {tuple(tensor.shape)}, not {tuple(wanted[name].shape)}"
            )
        if not tensor.isfinite().all():
            raise CheckpointError(f"{source}: {name} holds values that are not finite")
    module.load_state_dict(state, strict=False)  # only num_batches_tracked stays as it is


def transfer(source: Segmenter, target: Segmenter) -> list[str]:
    """Copy what fits of ``source`` into a network of another configuration.

    Classifiers that answer more often per cell begin with the same answer for each, and a context
    head that reads F_l besides begins by ignoring it; the fast track's classifier begins anew where
    fusion becomes a correction. The convolution that all readers of F_l share begins as AdaptNet's
    first, and the other way round; predictor and selector keep what follows on their own, to be
    trained on. Returns the parts that begin anew.
    """
    state, fresh = weights(source), []
    new_fusion = target.config.residual_fusion != source.config.residual_fusion
    for name, parameter in weights(target).items():
        part = name.split(".")[0]
        mine, given = getattr(target, part), getattr(source, part)
        before = _stood_for(name, state, target)
        if part == "classifier" and new_fusion:
            fresh.append(part)
        elif isinstance(mine, Classifier) and mine.answers_more_than(given):
            mine.widened(given)
        elif name == "context.merge.0.weight" and _skip_is_new(source, target):
            embed(state[name], parameter)
        elif before in state and state[before].shape == parameter.shape:
            with torch.no_grad():
                parameter.copy_(state[before])
        else:
            fresh.append(".".join(name.split(".")[:2]))
    return sorted(set(fresh))


def _stood_for(name: str, state: dict[str, Tensor], target: Segmenter) -> str:
    """What a weight of ``target`` is called in ``state``, where the other part has its place."""
    for mine, other in (("shared.reduce", "adapt.first"), ("adapt.first", "shared.reduce")):
        kernel = f"{mine}.0.weight", f"{other}.0.weight"
        if name.startswith(mine) and name not in state and kernel[1] in state:
            same = state[kernel[1]].shape == weights(target)[kernel[0]].shape
            return name.replace(mine, other) if same else name
    return name


def _skip_is_new(source: Segmenter, target: Segmenter) -> bool:
    """Whether the context head reads F_l besides, after what it has read before."""
    skip = target.config.context_skip
    wider = dataclasses.replace(source.config, context_skip=skip)
    sizes = ("backbone", "high_channels", "context_channels", "context_merge", "context_bins")
    same = all(getattr(wider, name) == getattr(target.config, name) for name in sizes)
    return same and skip > source.config.context_skip == 0
