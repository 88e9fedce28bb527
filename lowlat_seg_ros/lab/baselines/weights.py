"""Weights of one baseline in a safetensors file, bound to the base network it was trained on."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from lowlat_seg_ros.lab.baselines.learned import IMAGE_METHODS, METHODS, Baseline
from lowlat_seg_ros.network import checkpoint
from lowlat_seg_ros.network.checkpoint import CheckpointError
from lowlat_seg_ros.network.segmenter import Segmenter
from lowlat_seg_ros.network.trunk import IMAGENET

FORMAT = "lowlat_seg_ros/baseline/1"


def path_of(folder: Path, name: str) -> Path:
    """Where the weights of the method ``name`` lie."""
    return folder / f"{name}.safetensors"


def fingerprint(base: Segmenter) -> str:
    """SHA-256 of Sl, Sh and the classifier of full masks: what all methods must share.

    Taken in half precision, in which they are shipped; propagation's modules are not part of it.
    """
    digest = hashlib.sha256()
    for part in (base.backbone, base.encoder, base.shared, base.context, base.high_classifier):
        state = {} if part is None else checkpoint.weights(part)
        for name, tensor in sorted(state.items()):
            digest.update(name.encode() + tensor.detach().half().cpu().numpy().tobytes())
    return digest.hexdigest()


def save(folder: Path, name: str, method: Baseline, provenance: dict[str, Any]) -> Path:
    """Write the method's own weights in half precision; returns the file's path.

    Raises ``CheckpointError`` when a weight is not finite.
    """
    path, state = path_of(folder, name), checkpoint.weights(method.learned)
    tensors = {k: v.detach().to(torch.float16).contiguous() for k, v in state.items()}
    bad = [key for key, tensor in tensors.items() if not tensor.isfinite().all()]
    if bad:
        raise CheckpointError(f"{path}: {bad[0]} is not finite; train with a lower learning rate")
    folder.mkdir(parents=True, exist_ok=True)
    metadata = {
        "format": FORMAT,
        "method": name,
        "base": fingerprint(method.base),
        "provenance": json.dumps(provenance),
        "statistics": json.dumps(dataclasses.asdict(method.base.statistics)),
    }
    save_file(tensors, str(path), metadata)
    return path


def load(folder: Path, name: str, base: Segmenter) -> Baseline:
    """The method ``name`` on ``base``, in eval mode on its device.

    Raises ``CheckpointError`` if the file is missing, damaged, of another method, or trained on
    another base network.
    """
    path = path_of(folder, name)
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
            # What it gives is no mapping, though it has keys.
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is not a readable safetensors file ({error})") from error
    _check(path, metadata, name, base)
    method = METHODS[name](base)
    checkpoint.restore(method.learned, state, str(path))
    method.learned.eval().to(next(base.parameters()).device)
    # PyTorch has this overload, its type stubs do not.
    method.learned.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return method


def _check(path: Path, metadata: dict[str, str], name: str, base: Segmenter) -> None:
    found = (metadata.get("format"), metadata.get("method"))
    if found != (FORMAT, name):
        raise CheckpointError(
            f"{path} is of format and method {found}, not {(FORMAT, name)}; give a file written by "
            f"'lowlat-seg train baseline --method {name}'"
        )
    # Files from before networks had statistics of their own have ImageNet's.
    known = json.loads(metadata.get("statistics", json.dumps(dataclasses.asdict(IMAGENET))))
    if known != json.loads(json.dumps(dataclasses.asdict(base.statistics))):
        raise CheckpointError(
            f"{path} reads images normalised in another way than this checkpoint's network; train "
            f"it again with 'lowlat-seg train baseline --method {name} --start-from' and this one"
        )
    if name not in IMAGE_METHODS and metadata.get("base") != fingerprint(base):
        raise CheckpointError(
            f"{path} was trained on another base network than this checkpoint's; train it again "
            "with --start-from and this one"
        )
