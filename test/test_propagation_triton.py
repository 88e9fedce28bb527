"""The Triton kernel against the shift loop, on a GPU, or on CPU tensors in Triton's interpreter."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor

from lowlat_seg_ros.network.propagation import spatially_variant_convolution

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"

pytest.importorskip("triton", reason="triton is not installed; it comes with CUDA builds of torch")
from lowlat_seg_ros.network.propagation_triton import FusedSpatiallyVariantConvolution  # noqa: E402

on_device = pytest.mark.skipif(
    not INTERPRETED and not torch.cuda.is_available(), reason="no GPU; the interpreter runs it"
)

#: (N, C, H, W) and K: sizes that no tile divides, a single location, more channels than a tile has.
CASES = [
    ((1, 3, 5, 7), 3),
    ((2, 5, 9, 11), 9),
    ((1, 20, 1, 1), 9),
    ((1, 16, 8, 17), 1),
    ((1, 7, 13, 6), 5),
    ((1, 65, 3, 9), 9),
    ((1, 300, 2, 3), 3),
]


@pytest.fixture(autouse=True)
def no_tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else fp32 would be rounded to it."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def case(shape: tuple[int, ...], kernel: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Features, weights and a gradient of the answer."""
    batch, _, height, width = shape
    random = torch.Generator().manual_seed(kernel)
    features, grad = torch.randn(2, *shape, generator=random).to(DEVICE, dtype)
    weights = torch.randn(batch, kernel**2, height, width, generator=random).softmax(dim=1)
    return features, weights.to(DEVICE, dtype), grad


@pytest.mark.skipif(INTERPRETED, reason="this is the interpreter")
def test_in_the_interpreter() -> None:
    """The tests below without a GPU; Triton decides when it is imported."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__]
    done = subprocess.run(
        command,
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{3 * len(CASES) + 2} passed" in done.stdout


@on_device
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("shape", "kernel"), CASES)
def test_is_the_shift_loop(shape: tuple[int, ...], kernel: int, dtype: torch.dtype) -> None:
    """Forward and both gradients, up to one rounding to ``dtype``."""
    features, weights, grad = case(shape, kernel, dtype)
    inputs = [features.requires_grad_(), weights.requires_grad_()]
    exact = [x.detach().double().requires_grad_() for x in inputs]
    out = FusedSpatiallyVariantConvolution.apply(*inputs, kernel)
    expected = spatially_variant_convolution(exact[0], exact[1])
    out.backward(grad)
    expected.backward(grad.double())
    assert out.dtype == inputs[0].grad.dtype == inputs[1].grad.dtype == dtype
    rounding = torch.finfo(dtype).eps if dtype != torch.float32 else 1e-5
    pairs = [(out, expected), *((x.grad, e.grad) for x, e in zip(inputs, exact, strict=True))]
    for found, wanted in pairs:
        torch.testing.assert_close(found.double(), wanted, rtol=rounding, atol=rounding / 4)


@on_device
def test_weights_in_fp32_are_rounded_to_the_features() -> None:
    features, weights, _ = case((1, 16, 6, 7), 5, torch.float16)
    precise = (weights.float() * 1.0001).requires_grad_()
    out = FusedSpatiallyVariantConvolution.apply(features, precise, 5)
    assert torch.equal(out, FusedSpatiallyVariantConvolution.apply(features, precise.half(), 5))
    out.sum().backward()
    assert precise.grad is not None
    assert precise.grad.dtype == torch.float32


@on_device
def test_layout_does_not_matter() -> None:
    features, weights, _ = case((2, 24, 9, 10), 3, torch.float32)
    layouts = (torch.contiguous_format, torch.channels_last)
    first, second = (
        FusedSpatiallyVariantConvolution.apply(
            features.contiguous(memory_format=layout), weights.contiguous(memory_format=layout), 3
        )
        for layout in layouts
    )
    assert torch.equal(first, second)
    assert first.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_cuda_tensors_take_it() -> None:
    features = torch.ones(1, 16, 4, 4, device="cuda", requires_grad=True)
    out = spatially_variant_convolution(features, torch.ones(1, 1, 4, 4, device="cuda"))
    assert "Fused" in type(out.grad_fn).__name__
