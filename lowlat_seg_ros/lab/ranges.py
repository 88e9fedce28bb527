"""The ranges of a network's activations, from which 8 bits are chosen (static quantisation)."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from lowlat_seg_ros.network import inference, quantization
from lowlat_seg_ros.network.layers import PackedConv2d
from lowlat_seg_ros.network.quantization import Grid, Range, Ranges
from lowlat_seg_ros.network.trunk import Statistics

#: Values of each tensor of each image that its range is chosen by, and the shares of the whole
#: range that are tried.
SAMPLE, SHARES = 3000, np.linspace(0.15, 1.0, 35)

Network = TypeVar("Network", bound=nn.Module)


def observe(network: nn.Module, run: Callable[[], object]) -> dict[str, Ranges]:
    """Ranges of every packed convolution of ``network``, in float32, that ``run()`` runs.

    A range is the one whose grid gives the least mean square error on a sample of the values: a
    few large ones would make it coarse for all others.
    """
    seen: dict[tuple[str, bool], list[np.ndarray]] = {}
    rng = np.random.default_rng(0)

    def hook(name: str) -> Callable[..., None]:
        def look(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            for is_output, tensor in enumerate((inputs[0], output)):
                values = tensor.detach().float().numpy().ravel(order="K")
                some = rng.choice(values, min(SAMPLE, len(values)))
                ends = np.array([values.min(), values.max()], np.float32)
                seen.setdefault((name, bool(is_output)), []).append(np.concatenate([some, ends]))

        return look

    convolutions = {n: m for n, m in network.named_modules() if isinstance(m, PackedConv2d)}
    handles = [m.register_forward_hook(hook(n)) for n, m in convolutions.items()]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    spans = {key: best_range(np.concatenate(values)) for key, values in seen.items()}
    return {n: Ranges(spans[n, False], spans[n, True]) for n in convolutions if (n, True) in spans}


def best_range(values: np.ndarray) -> Range:
    """The share of the range of ``values`` whose grid has the least mean square error."""

    def error(span: Range) -> float:
        grid = Grid.over(span)
        steps = np.clip(np.round(values / grid.scale + grid.zero), 0, 255)
        return float(np.square((steps - grid.zero) * grid.scale - values).mean())

    low, high = float(values.min()), float(values.max())
    return min((Range(low * share, high * share) for share in SHARES), key=error)


@torch.inference_mode()
def prepare_in_8_bits(
    network: Network, images: Iterable[Tensor], statistics: Statistics, dtype: torch.dtype
) -> Network:
    """:func:`.inference.prepare` for a network of another kind, which reads images, in 8 bits.

    The ranges of its activations are those on ``images``, uint8 (1, 3, H, W); ``statistics``: how
    its images are normalised.
    """
    exact = inference.prepare(copy.deepcopy(network))

    def run() -> None:
        for image in images:
            exact(statistics.normalise(image / 255))

    ranges = observe(exact, run)
    network = inference.prepare(network, dtype)
    quantization.quantize(network, ranges, statistics)
    return network
