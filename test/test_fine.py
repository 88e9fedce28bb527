"""Answers carried more finely than a cell: where the kernels' mean says, to a part of a point."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from lowlat_seg_ros.config import ConfigError, NetworkConfig
from lowlat_seg_ros.lab.baselines.learned import METHODS
from lowlat_seg_ros.network import fine
from lowlat_seg_ros.network.segmenter import Segmenter


def shifted_by(down: float, right: float, height: int, width: int) -> torch.Tensor:
    """Weights of 9x9 whose mean is a shift in cells, shared out between its four neighbours."""
    weights = torch.zeros(9, 9)
    u, v = int(down // 1), int(right // 1)
    for i, wi in ((u, 1 - (down - u)), (u + 1, down - u)):
        for j, wj in ((v, 1 - (right - v)), (v + 1, right - v)):
            weights[4 + i, 4 + j] += wi * wj
    return weights.view(1, 81, 1, 1).expand(1, 81, height, width).contiguous()


def arranged(cells: torch.Tensor) -> torch.Tensor:
    return F.pixel_shuffle(cells, 2)


@pytest.mark.parametrize("compiled", [True, False])
def test_half_a_cell_is_a_whole_point(compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """What Eq. (1) cannot do: it would smear each point over two."""
    if compiled:
        pytest.importorskip("numba", reason="numba is not installed; pip install '.[fast]' adds it")
        assert fine.compiled() is not None
    else:
        monkeypatch.setattr(fine, "compiled", lambda: None)
    cells = torch.randn(1, 3 * 4, 8, 10).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        moved = arranged(fine.move(cells, shifted_by(0.5, -1.5, 8, 10), points=2))
    before = arranged(cells)
    torch.testing.assert_close(moved[:, :, 1:, :-3], before[:, :, :-1, 3:])
    # Beyond the border the edge repeats.
    torch.testing.assert_close(moved[:, :, 1:, -1], before[:, :, :-1, -1])


@torch.inference_mode()
def test_the_mean_of_the_kernels_is_the_displacement() -> None:
    found = fine.displacement(shifted_by(1.25, -2.5, 3, 4))
    assert found.shape == (1, 2, 3, 4)
    torch.testing.assert_close(found[0, 0], torch.full((3, 4), 1.25))
    torch.testing.assert_close(found[0, 1], torch.full((3, 4), -2.5))


@pytest.mark.parametrize(("classes", "points"), [(11, 2), (3, 4), (5, 1)])
@torch.inference_mode()
def test_both_ways_give_the_same(
    classes: int, points: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("numba", reason="numba is not installed; pip install '.[fast]' adds it")
    dense = torch.channels_last
    cells = torch.randn(1, classes * points**2, 12, 15).contiguous(memory_format=dense)
    weights = (2 * torch.randn(1, 81, 12, 15)).softmax(dim=1).contiguous(memory_format=dense)
    fast = fine.move(cells, weights, points)
    monkeypatch.setattr(fine, "compiled", lambda: None)
    torch.testing.assert_close(fast, fine.move(cells, weights, points), rtol=1e-4, atol=1e-4)
    assert fast.is_contiguous(memory_format=dense)


def test_what_is_learned_reaches_the_kernels() -> None:
    logits = torch.zeros(1, 81, 6, 8, requires_grad=True)
    cells = torch.randn(1, 4, 6, 8)
    wanted = fine.move(cells, shifted_by(0.5, 0.5, 6, 8), points=2)
    error = (fine.move(cells, logits.softmax(dim=1), points=2) - wanted).square().mean()
    error.backward()
    assert logits.grad is not None
    assert logits.grad.abs().max() > 0


@torch.inference_mode()
def test_fused_masks_correct_what_was_moved(gated: Segmenter) -> None:
    """The answers given are those that fusion starts from, not those of propagated F_h."""
    low = gated.lower(torch.randn(1, 3, 64, 96))
    high = torch.randn(1, gated.config.high_channels, 8, 12)
    reduced = gated.predictor.reduce(low)
    known = gated.evidence(reduced, reduced, torch.tensor([0.1]))
    answers = gated.answers(high)
    assert answers is not None
    assert torch.equal(
        gated.classify_fused(high, low, known, answers), gated.classify_fused(high, low, known)
    )
    other = gated.classify_fused(high, low, known, answers.roll(2, 3))
    assert not torch.allclose(other, gated.classify_fused(high, low, known))


def test_it_needs_what_it_is_a_part_of_and_excludes_other_carriers(gated: Segmenter) -> None:
    with pytest.raises(ConfigError, match="fine_carry is set without residual_fusion"):
        NetworkConfig(fine_carry=True)
    with pytest.raises(ConfigError, match="carries its answers besides F_h"):
        METHODS["dff"](gated)
