"""The Triton kernel against the shift loop, on a GPU, or on CPU tensors in Triton's interpreter."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor

from lowlat_seg_ros.network import propagation
from lowlat_seg_ros.network.propagation import spatially_variant_convolution

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"

pytest.importorskip("triton", reason="triton is not installed; it comes with CUDA builds of torch")
from lowlat_seg_ros.network.propagation_triton import fused_convolution  # noqa: E402

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


def case(shape: tuple[int, ...], kernel: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    batch, _, height, width = shape
    random = torch.Generator().manual_seed(kernel)
    features = torch.randn(*shape, generator=random).to(DEVICE, dtype)
    weights = torch.randn(batch, kernel**2, height, width, generator=random).softmax(dim=1)
    return features, weights.to(DEVICE, dtype)


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
    """Up to one rounding to ``dtype``."""
    features, weights = case(shape, kernel, dtype)
    out = fused_convolution(features, weights, kernel)
    assert out.dtype == dtype
    expected = spatially_variant_convolution(features.double(), weights.double())
    rounding = torch.finfo(dtype).eps if dtype != torch.float32 else 1e-5
    torch.testing.assert_close(out.double(), expected, rtol=rounding, atol=rounding / 4)


@on_device
def test_weights_in_fp32_are_rounded_to_the_features() -> None:
    features, weights = case((1, 16, 6, 7), 5, torch.float16)
    precise = weights.float() * 1.0001
    out = fused_convolution(features, precise, 5)
    assert torch.equal(out, fused_convolution(features, precise.half(), 5))


@on_device
def test_layout_does_not_matter() -> None:
    features, weights = case((2, 24, 9, 10), 3, torch.float32)
    layouts = (torch.contiguous_format, torch.channels_last)
    first, second = (
        fused_convolution(
            features.contiguous(memory_format=layout), weights.contiguous(memory_format=layout), 3
        )
        for layout in layouts
    )
    assert torch.equal(first, second)
    assert first.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_cuda_tensors_take_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without gradients; with them the shift loop has them."""
    features, weights = torch.ones(1, 16, 4, 4, device="cuda"), torch.ones(1, 1, 4, 4).cuda()
    fused = propagation._fused(features.device)
    assert fused is not None
    monkeypatch.setattr(propagation, "_fused", lambda _: lambda *inputs: 2 * fused(*inputs))
    assert torch.equal(spatially_variant_convolution(features, weights), 2 * features)
    learned = spatially_variant_convolution(features.requires_grad_(), weights)
    assert torch.equal(learned, features)
    assert learned.grad_fn is not None
