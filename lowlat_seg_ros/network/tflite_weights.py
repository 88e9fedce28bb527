"""The convolutions of a quantised TensorFlow Lite file as float weights, in the graph's order.

``value = scale * (stored - zero point)``, by output channel where the file says so: the scheme of
Jacob et al., "Quantization and Training of Neural Networks", CVPR 2018, Eq. (1).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lowlat_seg_ros.config import ConfigError

#: NumPy's types of TensorFlow Lite's, by its names.
TYPES = {"FLOAT32": np.float32, "INT32": np.int32, "UINT8": np.uint8, "INT8": np.int8}


def convolutions(path: Path) -> list[tuple[Tensor, Tensor]]:
    """Weights (outputs, inputs or 1, k, k) and bias (outputs,) of each, float32.

    Raises ``ConfigError`` where the package ``tflite`` is missing, or the file is no such file.
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
    model = tflite.Model.GetRootAsModel(content, 0)
    graph = model.Subgraphs(0)
    kinds = (tflite.BuiltinOperator.CONV_2D, tflite.BuiltinOperator.DEPTHWISE_CONV_2D)
    types = {getattr(tflite.TensorType, name): kind for name, kind in TYPES.items()}
    found = []
    for index in range(graph.OperatorsLength()):
        operator = graph.Operators(index)
        kind = model.OperatorCodes(operator.OpcodeIndex()).BuiltinCode()
        if kind in kinds:
            tensors = [graph.Tensors(operator.Inputs(n)) for n in (1, 2)]
            kernel, bias = (_floats(model, tensor, types) for tensor in tensors)
            # (outputs, k, k, inputs), or (1, k, k, outputs) where depthwise.
            order = (0, 3, 1, 2) if kind == kinds[0] else (3, 0, 1, 2)
            found.append((torch.from_numpy(np.ascontiguousarray(kernel.transpose(order))),
                          torch.from_numpy(bias)))  # fmt: skip
    return found


def _floats(model: Any, tensor: Any, types: dict[Any, Any]) -> np.ndarray:
    stored = model.Buffers(tensor.Buffer()).DataAsNumpy().tobytes()
    values = np.frombuffer(stored, types[tensor.Type()]).reshape(tensor.ShapeAsNumpy())
    floats = values.astype(np.float32)
    rule = tensor.Quantization()
    if rule is None or rule.ScaleLength() == 0:
        return floats
    shape = [1] * floats.ndim
    shape[rule.QuantizedDimension()] = -1
    scale = rule.ScaleAsNumpy().astype(np.float32).reshape(shape)
    zero = rule.ZeroPointAsNumpy().astype(np.float32).reshape(shape)
    result: np.ndarray = scale * (floats - zero)
    return result
