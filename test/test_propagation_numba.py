"""The numba kernel against the shift loop, and the way back to that."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lowlat_seg_ros.config import NETWORKS
from lowlat_seg_ros.network import inference, propagation
from lowlat_seg_ros.network.propagation import spatially_variant_convolution
from lowlat_seg_ros.network.segmenter import Segmenter

pytest.importorskip("numba", reason="numba is not installed; pip install '.[fast]' adds it")

from lowlat_seg_ros.network.layers import compile_with_numba

#: (N, C, H, W) and K: a single location, sizes that no group of sites divides, fewer rows than a
#: kernel has, fewer channels than a block and more than two blocks, a batch.
CASES = [
    ((1, 3, 1, 1), 9),
    ((1, 7, 3, 6), 9),
    ((2, 70, 11, 13), 9),
    ((1, 150, 12, 9), 5),
    ((2, 33, 5, 7), 3),
    ((1, 64, 6, 8), 1),
]


def case(shape: tuple[int, ...], kernel: int) -> tuple[Tensor, Tensor]:
    """Features and weights in float32, NHWC in memory."""
    random = torch.Generator().manual_seed(kernel)
    features = torch.randn(shape, generator=random)
    weights = torch.randn(shape[0], kernel**2, *shape[2:], generator=random).softmax(dim=1)
    layout = torch.channels_last
    return features.contiguous(memory_format=layout), weights.contiguous(memory_format=layout)


def exact(features: Tensor, weights: Tensor) -> Tensor:
    """The shift loop in float64."""
    return spatially_variant_convolution(features.double(), weights.double())


@pytest.mark.parametrize(("shape", "kernel"), CASES)
def test_is_the_shift_loop(shape: tuple[int, ...], kernel: int) -> None:
    """To the rounding of float32; features are of order 1, and weights sum to 1."""
    features, weights = case(shape, kernel)
    gather = propagation.compiled(kernel)
    assert gather is not None
    out = gather(features, weights)
    assert out.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(out.double(), exact(features, weights), rtol=0, atol=1e-6)


def test_spoils_no_more_than_kernels_reach() -> None:
    """By a feature that is not finite, in whatever group of sites it is."""
    features, weights = case((1, 70, 12, 14), 3)
    features[0, 5, 4, 6] = torch.nan
    spoilt = spatially_variant_convolution(features, weights).isnan()
    reached = torch.zeros_like(spoilt)
    reached[0, 5, 3:6, 5:8] = True
    assert torch.equal(spoilt, reached)


def test_inputs_of_other_layouts() -> None:
    features, weights = case((2, 20, 12, 14), 5)
    expected = spatially_variant_convolution(features, weights)
    assert torch.equal(
        spatially_variant_convolution(features.contiguous(), weights.contiguous()), expected
    )
    strided = torch.stack([features, -features], dim=2).flatten(1, 2)[:, ::2]
    assert torch.equal(spatially_variant_convolution(strided, weights.double()), expected)


def test_is_taken_where_no_gradient_is_asked_for() -> None:
    features, weights = case((1, 40, 10, 12), 9)
    gather = propagation.compiled(9)
    assert gather is not None
    out = gather(features, weights)
    assert torch.equal(spatially_variant_convolution(features, weights), out)
    features.requires_grad_()
    for without in (torch.no_grad(), torch.inference_mode()):
        with without:
            assert torch.equal(spatially_variant_convolution(features, weights), out)


def test_gradients_come_from_the_shift_loop() -> None:
    inputs = case((1, 5, 6, 7), 5)
    single = [x.clone().requires_grad_() for x in inputs]
    double = [x.double().requires_grad_() for x in inputs]
    for features, weights in (single, double):
        spatially_variant_convolution(features, weights).square().sum().backward()
    for one, other in zip(single, double, strict=True):
        assert one.grad is not None
        assert other.grad is not None
        torch.testing.assert_close(one.grad, other.grad.float())


def test_several_threads_at_once() -> None:
    """As foreground and slow track may be."""
    cases = [case((1, 90, 20, 30 + n), 9) for n in range(4)]
    alone = [spatially_variant_convolution(*inputs) for inputs in cases]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda inputs: spatially_variant_convolution(*inputs), cases * 8))
    assert all(map(torch.equal, together, alone * 8))


def test_compiles_when_a_segmenter_is_prepared() -> None:
    """Not on the first frame that needs it."""
    propagation.compiled.cache_clear()
    inference.prepare(Segmenter(NETWORKS["tiny"]).eval())
    assert propagation.compiled.cache_info().currsize == 1


def test_without_numba(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setitem(sys.modules, "numba", None)  # as if it were not installed
    assert propagation.compiled.__wrapped__(9) is None
    assert not caplog.records


def test_what_does_not_compile_is_reported_and_left(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(propagation, "SIGNATURE", "void(f4)")
    propagation.compiled.cache_clear()
    features, weights = case((1, 4, 5, 6), 3)
    try:
        for _ in range(2):
            out = spatially_variant_convolution(features, weights)
            torch.testing.assert_close(out.double(), exact(features, weights), rtol=0, atol=1e-6)
    finally:
        propagation.compiled.cache_clear()
    (record,) = caplog.records
    assert "propagation will be slow" in record.getMessage()


def test_compiles_where_no_machine_code_can_be_kept() -> None:
    """As numba keeps none of what is in no file."""
    functions: dict[str, Any] = {}
    exec("def double(numbers): numbers[:] = 2 * numbers", functions)
    double = compile_with_numba(functions["double"], "void(f4[::1])", "it is slow")
    assert double is not None
    numbers = np.ones(3, np.float32)
    double(numbers)
    assert numbers.tolist() == [2, 2, 2]
