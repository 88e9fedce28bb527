"""Spatially variant convolution, Eq. (1), and the kernels that are predicted for it."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lowlat_seg_ros.network.propagation import KernelPredictor, spatially_variant_convolution


def double_loop(features: Tensor, weights: Tensor) -> Tensor:
    """Eq. (1), word for word: a loop over locations and one over the kernel, borders repeated."""
    batch, _, height, width = features.shape
    half = round(weights.shape[1] ** 0.5) // 2
    out = torch.zeros_like(features)
    for n in range(batch):
        for i in range(height):
            for j in range(width):
                for u in range(-half, half + 1):
                    for v in range(-half, half + 1):
                        tap = (u + half) * (2 * half + 1) + v + half
                        row, column = min(max(i - u, 0), height - 1), min(max(j - v, 0), width - 1)
                        out[n, :, i, j] += weights[n, tap, i, j] * features[n, :, row, column]
    return out


def random_case(
    kernel: int, size: tuple[int, int], batch: int = 2, channels: int = 3
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(kernel)
    features = torch.randn(batch, channels, *size, generator=generator, dtype=torch.float64)
    logits = torch.randn(batch, kernel**2, *size, generator=generator, dtype=torch.float64)
    return features, logits.softmax(dim=1)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(
    ("kernel", "size"), [(1, (3, 4)), (3, (5, 4)), (5, (4, 7)), (9, (6, 5)), (9, (1, 1))]
)
def test_is_equation_1(kernel: int, size: tuple[int, int], layout: torch.memory_format) -> None:
    features, weights = random_case(kernel, size)
    out = spatially_variant_convolution(
        features.contiguous(memory_format=layout), weights.contiguous(memory_format=layout)
    )
    torch.testing.assert_close(out, double_loop(features, weights))


@pytest.mark.parametrize(("kernel", "size"), [(1, (2, 3)), (3, (3, 4)), (5, (3, 2))])
def test_gradients(kernel: int, size: tuple[int, int]) -> None:
    """Against finite differences, in both inputs."""
    features, weights = random_case(kernel, size, batch=1, channels=2)
    inputs = (features.requires_grad_(), weights.requires_grad_())
    assert torch.autograd.gradcheck(spatially_variant_convolution, inputs)


def test_constant_stays_constant_up_to_the_borders() -> None:
    _, weights = random_case(9, (7, 11))
    constant = torch.full((2, 3, 7, 11), 1.7, dtype=torch.float64)
    torch.testing.assert_close(spatially_variant_convolution(constant, weights), constant)


@pytest.mark.parametrize(("u", "v"), [(0, 0), (4, -4), (-3, 2), (0, 1)])
def test_one_hot_kernel_shifts(u: int, v: int) -> None:
    """A kernel that is 1 at (u, v) moves everything u down and v to the right."""
    features, _ = random_case(9, (12, 14))
    weights = torch.zeros(2, 81, 12, 14, dtype=torch.float64)
    weights[:, (u + 4) * 9 + v + 4] = 1
    out = spatially_variant_convolution(features, weights)
    inner = slice(4, -4)
    moved = features.roll((u, v), dims=(2, 3))
    assert torch.equal(out[..., inner, inner], moved[..., inner, inner])


def test_projection_commutes_with_propagation() -> None:
    """Which is why F_h is projected before: an affine 1x1 layer gives the same after as before."""
    features, weights = random_case(9, (8, 9), channels=6)
    project = nn.Conv2d(6, 2, 1).double()
    before = spatially_variant_convolution(project(features), weights)
    after = project(spatially_variant_convolution(features, weights))
    torch.testing.assert_close(before, after)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ((1, 8, 4, 4), "weights have 8 channels; they must be"),
        ((1, 16, 4, 4), "K odd"),
        ((1, 9, 4, 5), "must agree in batch, height and width"),
        ((2, 9, 4, 4), "must agree in batch"),
    ],
)
def test_shapes_that_do_not_fit(weights: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        spatially_variant_convolution(torch.zeros(1, 3, 4, 4), torch.zeros(weights))


def test_predicted_kernels_are_weights() -> None:
    torch.manual_seed(0)
    predictor = KernelPredictor(low_channels=5, width=4, kernel_size=7).eval()
    key, current = torch.randn(2, 1, 5, 6, 8)
    with torch.no_grad():
        before, now = predictor.reduce(key), predictor.reduce(current)
        weights = predictor(predictor.remember(before), now)
        swapped = predictor(predictor.remember(now), before)
    assert weights.shape == (1, 49, 6, 8)
    assert (weights > 0).all()
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(1, 6, 8))
    assert not torch.allclose(weights, swapped)  # it knows which frame is the key frame


def test_learns_a_known_motion() -> None:
    """Gradients reach the kernels: the logits find a shift from its effect alone."""
    torch.manual_seed(0)
    features = torch.randn(1, 8, 12, 12)
    target = F.pad(features, (1, 0, 0, 2), mode="replicate")[..., 2:, :-1]  # 2 up, 1 to the right
    logits = nn.Parameter(torch.zeros(1, 25, 1, 1))
    optimiser = torch.optim.Adam([logits], lr=0.3)
    for _ in range(60):
        weights = logits.softmax(dim=1).expand(1, 25, 12, 12)
        loss = F.mse_loss(spatially_variant_convolution(features, weights), target)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    tap = int(logits.argmax())
    assert (tap // 5 - 2, tap % 5 - 2) == (-2, 1)
