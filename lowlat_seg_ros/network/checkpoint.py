"""Weights in one safetensors file that describes itself: network, classes, provenance, checksum.

Large convolutions may be stored in 8 bits: half the file of half precision, and nearly the same
masks. Each output channel has a scale of its own, so that its largest weight becomes 127 (symmetric
per-channel quantisation of weights, Krishnamoorthi, arXiv 1806.08342, Sec. 3.1). This only concerns
the file: weights that are read are float again.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lowlat_seg_ros.config import DEFAULT_NETWORK, ConfigError, NetworkConfig, from_mapping
from lowlat_seg_ros.network.expected_accuracy import AccuracyModel, Term
from lowlat_seg_ros.network.quantization import Range, Ranges
from lowlat_seg_ros.network.segmenter import Segmenter

FORMAT = "lowlat_seg_ros/1"

#: The weights used when none are named.
DEFAULT_CHECKPOINT = Path(__file__).parent.parent / "weights" / f"{DEFAULT_NETWORK}.safetensors"

#: A file with this ending beside a checkpoint holds its SHA-256, as ``sha256sum`` writes it.
SHA256_SUFFIX = ".sha256"

#: In files of earlier versions, the scales of the convolution ``x`` have its name and this ending.
SCALE = ".scale"


class CheckpointError(RuntimeError):
    """A checkpoint cannot be read; the message names the file, what is wrong and the fix."""


@dataclass(frozen=True)
class Header:
    """What a checkpoint says about itself.

    ``classes``: names and RGB colours in the order of their ids. ``threshold``: the deviation above
    which a new key frame is taken, calibrated after training. ``provenance``: data, licence, stages
    and metrics, free-form. ``ranges``: of the convolutions that may run in 8 bits, by their names
    in the packed network. ``accuracy``: the model of a mask's accuracy; None where there is none.
    """

    network: NetworkConfig
    classes: tuple[str, ...]
    colours: tuple[tuple[int, int, int], ...]
    threshold: float
    provenance: dict[str, Any] = field(default_factory=dict)
    ranges: dict[str, Ranges] = field(default_factory=dict)
    accuracy: AccuracyModel | None = None

    def __post_init__(self) -> None:
        for name in ("classes", "colours"):
            if len(getattr(self, name)) != self.network.num_classes:
                raise ConfigError(
                    f"{len(getattr(self, name))} {name} for {self.network.num_classes} classes"
                )
        if not all(isinstance(name, str) for name in self.classes):
            raise ConfigError(f"classes are {self.classes}; each must be a name")
        for colour in self.colours:
            if len(colour) != 3 or not all(isinstance(c, int) and 0 <= c <= 255 for c in colour):
                raise ConfigError(f"a colour is {colour}; it must be three numbers from 0 to 255")
        if not 0 <= self.threshold <= 1:
            raise ConfigError(f"threshold is {self.threshold}; it must lie in [0, 1]")
        if not isinstance(self.provenance, dict):
            raise ConfigError(f"provenance is {self.provenance!r}; it must be a mapping")

    @property
    def trained_height(self) -> int:
        """Height in px of the images that the last stage was trained on; 0 where nobody says."""
        stages = self.provenance.get("stages") or [{}]
        return int((stages[-1].get("options", {}).get("size") or [0])[0])


def save(path: str | Path, segmenter: Segmenter, header: Header, dtype: torch.dtype) -> None:
    """Write ``segmenter``'s weights as ``dtype`` (fp16 for shipping, fp32 to train on).

    Raises ``CheckpointError`` when a weight is not finite in ``dtype``.
    """
    tensors = {k: v.detach().to(dtype).contiguous() for k, v in weights(segmenter).items()}
    bad = [name for name, tensor in tensors.items() if not tensor.isfinite().all()]
    if bad:
        raise CheckpointError(
            f"{path}: {bad[0]} is not finite in {dtype}; train with a lower learning rate"
        )
    _write(path, tensors, header)


def _write(path: str | Path, tensors: dict[str, Tensor], header: Header) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    fields = dataclasses.asdict(header)
    # Left out where they are empty.
    given = {k: v for k, v in fields.items() if v or k not in ("ranges", "accuracy")}
    metadata = {"format": FORMAT} | {k: json.dumps(v) for k, v in given.items()}
    save_file(tensors, str(path), metadata)


def with_header(path: str | Path, header: Header, out: str | Path) -> None:
    """Write the weights at ``path``, as they are stored there, to ``out`` under another header.

    Raises :class:`CheckpointError`.
    """
    _write(out, _stored(path), header)


def read_header(path: str | Path) -> Header:
    """Read what the checkpoint at ``path`` says about itself; raises :class:`CheckpointError`."""
    _check_regular(path)
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
        network = _network(fields.pop("network"))
        colours = tuple(tuple(colour) for colour in fields.pop("colours"))
        pairs = fields.pop("ranges", {}).items()
        ranges = {name: Ranges(*(Range(*span) for span in spans)) for name, spans in pairs}
        accuracy = _accuracy_model(fields.pop("accuracy", None))
        read = {"network": network, "colours": colours, "ranges": ranges, "accuracy": accuracy}
        header = from_mapping(Header, read | fields)
        _ = header.trained_height  # which reads the provenance
    except (
        ArithmeticError,
        AttributeError,
        LookupError,
        RecursionError,
        TypeError,
        ValueError,
    ) as e:
        raise CheckpointError(f"{path} has a damaged header: {e}; copy the file again") from e
    return header


def _network(read: dict[str, Any]) -> NetworkConfig:
    """The network of a header, which in earlier versions named the parts of ``fine_carry``."""
    carries = read.get("fine_carry", False)
    then = {"gate": False, "flow_evidence": False, "gate_corrects": True}  # the defaults of then
    if not read.keys().isdisjoint(then):
        for name, default in then.items():
            implied = not carries if default else carries
            if read.pop(name, default) != implied:
                raise ConfigError(
                    f"{name} is not {implied} though fine_carry is {carries}; train it again"
                )
    return from_mapping(NetworkConfig, read)


def _accuracy_model(read: dict[str, Any] | None) -> AccuracyModel | None:
    if read is None:
        return None
    terms, layout = (Term(*term) for term in read["terms"]), map(tuple, read["layout"])
    return AccuracyModel(read["bias"], tuple(terms), tuple(layout))


def load(path: str | Path, device: str | torch.device = "cpu") -> tuple[Segmenter, Header]:
    """Build the network a checkpoint describes, with its weights (float32, eval mode).

    Every weight must be there, none may be left over; raises :class:`CheckpointError` otherwise.
    """
    header = read_header(path)
    try:
        segmenter = Segmenter(header.network)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path} describes an impossible network: {error}") from error
    restore(segmenter, _dequantised(_stored(path)), str(path))
    segmenter.trained_height = header.trained_height
    segmenter.accuracy_model = header.accuracy
    segmenter = segmenter.eval().to(device)
    # PyTorch has this overload, its type stubs do not.
    return segmenter.to(memory_format=torch.channels_last), header  # type: ignore[call-overload]


def _stored(path: str | Path) -> dict[str, Tensor]:
    try:
        with safe_open(str(path), framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is damaged ({error}); copy it again") from error


def weights(module: torch.nn.Module) -> dict[str, Tensor]:
    """The tensors that make up a network; BatchNorm's step counts are training state."""
    state = module.state_dict()
    return {name: v for name, v in state.items() if not name.endswith("num_batches_tracked")}


def restore(module: torch.nn.Module, state: dict[str, Tensor], source: str) -> None:
    """Copy ``state`` into ``module``, strictly; raises :class:`CheckpointError`."""
    own = weights(module)
    missing, extra = sorted(set(own) - set(state)), sorted(set(state) - set(own))
    if missing or extra:
        raise CheckpointError(
            f"{source} does not fit its configuration: missing {missing[:3]}, "
            f"unexpected {extra[:3]}"
        )
    for name, tensor in state.items():
        if tensor.shape != own[name].shape:
            raise CheckpointError(
                f"{source}: {name} is {tuple(tensor.shape)}, not {tuple(own[name].shape)}"
            )
        if not tensor.isfinite().all():
            raise CheckpointError(f"{source}: {name} holds values that are not finite")
    module.load_state_dict(state, strict=False)  # only num_batches_tracked stays as it is


def _dequantised(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Earlier versions stored large kernels as int8, and float32 (outputs,) beside it as scale."""
    return {
        name: tensor.float() * tensors[name + SCALE].view(-1, 1, 1, 1)
        if name + SCALE in tensors
        else tensor
        for name, tensor in tensors.items()
        if not name.endswith(SCALE)
    }


def _check_regular(path: str | Path) -> None:
    """Refuse a pipe or device, which may be endless; what is missing is said when it is opened."""
    try:
        endless = Path(path).exists() and not Path(path).is_file()
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path!r} is no path ({error}); check it") from error
    if endless:
        raise CheckpointError(f"{path} is not a regular file; check the path")


def sha256(path: str | Path) -> str:
    """SHA-256 of the file at ``path``, 64 lower-case hex digits; raises ``CheckpointError``."""
    _check_regular(path)
    try:
        # Read whole: checkpoints are small beside the memory that their network takes.
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()
    except OSError as error:
        raise CheckpointError(f"{path} is not a readable file ({error}); check the path") from error


def verify(path: str | Path, expected: str = "") -> str:
    """The SHA-256 of the checkpoint at ``path``, checked against ``expected``.

    An empty ``expected`` stands for the one in the file beside the checkpoint; where there is none,
    every file passes. Raises ``CheckpointError`` naming both if they differ.
    """
    found, source, beside = sha256(path), "checkpoint_sha256", Path(f"{path}{SHA256_SUFFIX}")
    known = expected.strip().lower()
    if not known and beside.is_file():
        try:
            text = beside.read_text(errors="replace")
        except OSError as error:
            raise CheckpointError(
                f"{beside} cannot be read ({error}); correct or remove it"
            ) from error
        known, source = (text.lower().split() or ["nothing"])[0], str(beside)
    if known and found != known:
        raise CheckpointError(
            f"{path} has SHA-256 {found}, but {source} says {known}; copy the file again, or "
            f"correct {source} if these are the weights that you want"
        )
    return found
