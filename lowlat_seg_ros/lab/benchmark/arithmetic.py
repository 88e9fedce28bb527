"""Multiply-adds of a network: what the ratio of latencies were if nothing else counted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from lowlat_seg_ros.config import NetworkConfig
from lowlat_seg_ros.network.segmenter import STRIDE, Segmenter


@dataclass(frozen=True)
class MultiplyAdds:
    """1e9 multiply-adds of convolutions and Eq. (1) for one frame.

    ``full_g``: Sl, Sh and the classifier on F_h. ``fast_g``: the fast track up to its mask;
    ``selector_g``: what comes after it. The kernel predictor is counted whole, though a packed
    one does the key frame's half of its mixing once. The ratios are shares of ``full_g``.
    """

    lower_g: float
    higher_g: float
    full_g: float
    fast_g: float
    selector_g: float
    fast_over_full: float
    fast_and_selector_over_full: float


def count(config: NetworkConfig, size: tuple[int, int]) -> MultiplyAdds:
    """Of frames of ``size`` (H, W); nothing is computed."""
    height, width = (-(-side // STRIDE) * STRIDE for side in size)
    with torch.device("meta"), torch.no_grad():
        net = Segmenter(config).eval()
        image = torch.empty(1, 3, height, width)
        low, lower = _giga(lambda: net.lower(image))
        high, higher = _giga(lambda: net.higher(net.source(image, low)))
        _, classifier = _giga(lambda: net.classify_high(high))
        reduced, reduction = _giga(lambda: net.predictor.reduce(low))
        weights, kernels = _giga(lambda: net.predictor(net.predictor.remember(reduced), reduced))
        known, gate = None, 0.0
        if net.gate is not None:
            age = torch.zeros(1)
            known, gate = _giga(lambda: net.evidence(reduced, reduced, age))
        answers = net.answers(high)
        _, fusion = _giga(lambda: net.fuse(high, low, known, answers))
        seen, selector = _giga(lambda: net.selector.reduce(low))
        _, verdict = _giga(lambda: net.selector.deviation(seen, seen))
    propagation = weights.shape[1] * high.numel() / 1e9  # no operator that the counter knows
    shared = lower if net.encoder is None else 0.0
    full = shared + higher + classifier
    fast = lower + reduction + kernels + propagation + gate + fusion
    last = selector + verdict
    return MultiplyAdds(lower, higher, full, fast, last, fast / full, (fast + last) / full)


def _giga(work: Callable[[], Tensor]) -> tuple[Tensor, float]:
    with FlopCounterMode(display=False) as counter:
        answer = work()
    return answer, counter.get_total_flops() / 2e9
