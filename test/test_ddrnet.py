"""DDRNet-23-slim against the figures of its paper (arXiv 2101.06085, Table 5)."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lowlat_seg_ros.lab.baselines.ddrnet import DDRNet23Slim


def test_parameters_and_multiply_adds_are_the_published_ones() -> None:
    """5.7 M parameters and 36.3 G multiply-adds at 2048x1024, without the auxiliary head."""
    with torch.device("meta"):
        net = DDRNet23Slim(19).eval()
        image = torch.empty(1, 3, 1024, 2048)
    work = []
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(
                lambda conv, inputs, output: work.append(output.numel() * conv.weight[0].numel())
            )
    net(image)
    auxiliary = sum(p.numel() for p in net.auxiliary.parameters())
    parameters = sum(p.numel() for p in net.parameters()) - auxiliary
    assert parameters / 1e6 == pytest.approx(5.7, abs=0.05)
    assert sum(work) / 1e9 == pytest.approx(36.3, abs=0.05)


@pytest.mark.parametrize("size", [(360, 480), (40, 64), (8, 8)])
def test_logits_are_at_an_eighth_of_any_size(size: tuple[int, int]) -> None:
    net = DDRNet23Slim(11).eval()
    with torch.inference_mode():
        logits = net(torch.randn(1, 3, *size))
    assert logits.shape == (1, 11, size[0] // 8, size[1] // 8)
    assert logits.isfinite().all()


def test_in_training_the_fine_branch_answers_as_well_and_all_parts_learn() -> None:
    net = DDRNet23Slim(3).train()
    logits, auxiliary = net(torch.randn(2, 3, 64, 128))
    assert logits.shape == auxiliary.shape == (2, 3, 8, 16)
    (logits.square().mean() + auxiliary.square().mean()).backward()
    without = [n for n, p in net.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []
