"""What each carrier does to F_h, against arrays worked out by hand."""

from __future__ import annotations

import pytest
import torch

from lowlat_seg_ros.lab.baselines.carry import (
    Adaptive,
    Carrier,
    Flow,
    FlowNetwork,
    FusedHead,
    Head,
    ImageDifference,
    Reuse,
    Unified,
    half_size,
    photometric,
    warp,
)
from lowlat_seg_ros.lab.baselines.stream import GatedRecurrentWarp
from lowlat_seg_ros.network.propagation import spatially_variant_convolution
from lowlat_seg_ros.network.segmenter import Segmenter


def motion_between(carrier: Carrier, key: torch.Tensor, now: torch.Tensor) -> torch.Tensor:
    """Of two images, without F_l."""
    return carrier.motion(carrier.remember(carrier.view(key, None)), carrier.view(now, None))


def test_warp_reads_where_the_flow_points() -> None:
    maps = torch.arange(20.0).view(1, 1, 4, 5)
    flow = torch.zeros(1, 2, 4, 5)
    torch.testing.assert_close(warp(maps, flow), maps)
    flow[:, 0], flow[:, 1] = 1.0, 2.0  # one column right, two rows down
    expected = maps[0, 0][[2, 3, 3, 3]][:, [1, 2, 3, 4, 4]]  # the edge is repeated
    torch.testing.assert_close(warp(maps, flow)[0, 0], expected)
    flow[:, 0], flow[:, 1] = 0.5, 0.0
    torch.testing.assert_close(warp(maps, flow)[0, 0, 0], torch.tensor([0.5, 1.5, 2.5, 3.5, 4.0]))


def test_warp_has_a_gradient_to_the_flow() -> None:
    flow = torch.zeros(1, 2, 4, 5, requires_grad=True)
    warp(torch.arange(20.0).view(1, 1, 4, 5), flow)[0, 0, 1, 2].backward()
    assert flow.grad is not None
    assert flow.grad[0, 0, 1, 2] == pytest.approx(1.0)  # the next column holds one more
    assert flow.grad[0, 1, 1, 2] == pytest.approx(5.0)


@pytest.mark.parametrize("size", [(48, 64), (40, 56)])
def test_flow_begins_as_standing_still(size: tuple[int, int]) -> None:
    images = torch.randn(2, 1, 3, *size)
    carrier = Flow(high_channels=4).eval()
    high = torch.randn(1, 4, size[0] // 8, size[1] // 8)
    motion = motion_between(carrier, images[0], images[1])
    assert motion.shape == (1, 6, size[0] // 8, size[1] // 8)
    torch.testing.assert_close(carrier.move(high, motion), high)


def test_flow_learns_a_shift() -> None:
    """Both images and features move by one cell; features alone tell the network how far."""
    torch.manual_seed(0)
    now = torch.nn.functional.interpolate(torch.rand(4, 3, 12, 16), scale_factor=8.0)
    before = now.roll(8, dims=3)
    network = FlowNetwork(width=8)
    high = half_size(half_size(half_size(now)))
    high_before = high.roll(1, dims=3)
    optimiser = torch.optim.Adam(network.parameters(), lr=3e-3)
    errors = []
    for _ in range(60):
        flow = network(half_size(before), half_size(now))
        error = (warp(high_before, flow) - high)[..., 2:-2].abs().mean()
        errors.append(error.item())
        optimiser.zero_grad()
        error.backward()
        optimiser.step()
    assert errors[-1] < 0.3 * errors[0]
    assert flow[:, 0, :, 2:-2].median().item() == pytest.approx(1.0, abs=0.3)


def test_the_photometric_loss_asks_for_the_true_flow() -> None:
    torch.manual_seed(0)
    now = torch.nn.functional.interpolate(torch.rand(1, 3, 12, 16), scale_factor=4.0)
    before = now.roll(4, dims=3)  # one cell of 1/8, at half size
    network = FlowNetwork(width=4).eval()
    losses = []
    for shift in (0.0, 1.0, 2.0):
        assert network.flow.bias is not None
        network.flow.bias.data[0] = shift
        losses.append(photometric(network, before, now).item())
    assert losses[1] < 0.2 * min(losses[0], losses[2])


def test_reuse_carries_nothing_on() -> None:
    carrier, high, image = Reuse(), torch.randn(1, 4, 6, 8), torch.randn(1, 3, 48, 64)
    motion = motion_between(carrier, image, image)
    assert carrier.move(high, motion) is high


def test_unified_is_eq_1_with_one_kernel_everywhere() -> None:
    carrier = Unified(kernel_size=5)
    torch.nn.init.normal_(carrier.logits)
    image, high = torch.randn(2, 3, 48, 64), torch.randn(2, 4, 6, 8)
    motion = motion_between(carrier, image, image)
    assert motion.sum().item() == pytest.approx(1.0)
    weights = motion.reshape(1, 25, 1, 1).expand(2, 25, 6, 8)
    expected = spatially_variant_convolution(high, weights)
    torch.testing.assert_close(carrier.move(high, motion), expected)


def test_image_difference_follows_what_moved() -> None:
    """Cells of distinct colours move by one row: each weight sits on the cell it came from."""
    torch.manual_seed(0)
    cells = 10 * torch.rand(1, 3, 6, 8)
    cells_before = cells.roll(1, dims=2)
    before, now = (x.repeat_interleave(8, 2).repeat_interleave(8, 3) for x in (cells_before, cells))
    carrier, high = ImageDifference(kernel_size=3), torch.randn(1, 4, 6, 8)
    motion = motion_between(carrier, before, now)
    torch.testing.assert_close(motion.sum(dim=1), torch.ones(1, 6, 8))
    moved = carrier.move(high.roll(1, dims=2), motion)
    torch.testing.assert_close(moved[:, :, :-1], high[:, :, :-1], atol=0.05, rtol=0.05)


def test_image_difference_has_nothing_to_learn() -> None:
    assert list(ImageDifference(9).parameters()) == []


def test_only_what_reads_low_level_features_asks_for_them(tiny: Segmenter) -> None:
    assert not any(c.needs_low for c in (Reuse(), Unified(3), ImageDifference(3), Flow(4)))
    assert not Head(tiny.high_classifier).needs_low
    carrier = Adaptive(tiny.predictor)
    head = FusedHead(tiny.adapt, tiny.fusion, tiny.classifier, tiny.low_classifier, None)
    assert carrier.needs_low
    assert head.needs_low
    with pytest.raises(ValueError, match="needs Sl on every frame"):
        carrier.view(torch.zeros(1, 3, 8, 8), None)


def test_the_recurrent_cell_begins_with_the_network_s_answer() -> None:
    torch.manual_seed(0)
    cell = GatedRecurrentWarp(classes=5).eval()
    now, past = (torch.randn(2, 5, 6, 8).mul(4).softmax(dim=1) for _ in range(2))
    image = torch.randn(2, 3, 24, 32)
    logits = cell(past, image, image, now)
    assert logits.shape == now.shape
    agreed = (logits.argmax(1) == now.argmax(1)).float().mean()
    assert agreed > 0.8


def test_the_cell_believes_the_past_less_where_images_differ() -> None:
    torch.manual_seed(0)
    cell = GatedRecurrentWarp(classes=5).eval()
    past, now = (torch.randn(1, 5, 6, 8).softmax(dim=1) for _ in range(2))
    image = torch.randn(1, 3, 24, 32)

    def influence(image_past: torch.Tensor) -> float:
        cell.zero_grad()
        source = past.clone().requires_grad_()
        cell(source, image_past, image, now).abs().sum().backward()
        assert source.grad is not None
        return source.grad.abs().sum().item()

    torch.nn.init.zeros_(cell.misfit.bias)
    assert influence(image) > 2 * influence(image + 50 * torch.randn_like(image))
