"""``lowlat-seg quantize``: the ranges that convolutions in 8 bits need, and their choice."""

from __future__ import annotations

import argparse
import copy
import dataclasses
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from lowlat_seg_ros.config import TRUNKS, ConfigError, EngineConfig
from lowlat_seg_ros.engine.engine import Engine
from lowlat_seg_ros.frames import Frame
from lowlat_seg_ros.lab.arguments import size
from lowlat_seg_ros.lab.data.camvid import CamVid
from lowlat_seg_ros.lab.data.synthetic import RenderedDrive
from lowlat_seg_ros.network import checkpoint, inference, quantization
from lowlat_seg_ros.network.layers import PackedConv2d
from lowlat_seg_ros.network.quantization import Grid, Range, Ranges
from lowlat_seg_ros.network.segmenter import Segmenter
from lowlat_seg_ros.network.trunk import Statistics

#: Frames of a scene. Sh runs on the first in the foreground, and on later ones in the background.
FRAMES = 4

#: First seed of the rendered drives, which are of no other use.
SEED = 4_000_000

EPILOG = """\
Run this after all training stages, as each of them changes the ranges and drops them from its
checkpoint. 'lowlat-seg calibrate' comes next.

examples, CamVid in DIR:
  lowlat-seg quantize runs/selector/selector.safetensors --root DIR --out edgetpu.safetensors
  lowlat-seg quantize runs/selector/selector.safetensors --out rendered.safetensors
"""

#: Values of each tensor of each image that its range is chosen by, and the shares of the whole
#: range that are tried.
SAMPLE, SHARES = 3000, np.linspace(0.15, 1.0, 35)

Network = TypeVar("Network", bound=nn.Module)


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EPILOG
    add = parser.add_argument
    add("checkpoint", type=Path, help="weights of a network with pretrained backbones")
    add("--out", type=Path, required=True, metavar="FILE", help="file for the weights with ranges")
    add("--root", type=Path, metavar="DIR",
        help="CamVid's folder, whose train split is run; default: rendered drives")  # fmt: skip
    add("--scenes", type=int, default=40, help="scenes of four frames (default %(default)s)")
    add("--size", type=size, default=(360, 480), metavar="HxW",
        help="size of the rendered frames (default 360x480)")  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Write the checkpoint, and say how many pixels differ from float32."""
    segmenter, header = checkpoint.load(args.checkpoint)
    network = header.network
    if not {network.backbone, network.encoder} <= set(TRUNKS):
        raise ConfigError(
            f"{args.checkpoint} has the backbone {network.backbone} and the encoder "
            f"{network.encoder}; 8 bits are for networks whose Sh and Sl are pretrained trunks, "
            "such as edgetpu"
        )
    scenes, exact = list(_scenes(args)), inference.prepare(segmenter)
    expected: list[np.ndarray] = []
    ranges = observe(exact, lambda: expected.extend(_masks(exact, scenes)))
    checkpoint.with_header(args.checkpoint, dataclasses.replace(header, ranges=ranges), args.out)
    quick, _ = inference.load(args.out, torch.device("cpu"), "int8")
    masks = _masks(quick, scenes)
    same = np.mean([np.mean(a == b) for a, b in zip(expected, masks, strict=True)])
    print(f"{len(ranges)} convolutions; {same:.2%} of the pixels are as in float32")
    print(args.out)
    return 0


def _masks(segmenter: Segmenter, scenes: list[list[Frame]]) -> Iterator[np.ndarray]:
    """Those of the engine, all of whose parts run in each scene."""
    for scene in tqdm(scenes, desc="running", unit="scene"):
        # Every frame may be the key frame, and Sh takes one.
        engine = Engine.deterministic(segmenter, EngineConfig(), threshold=0.0, delay_frames=1)
        with engine:
            for frame in scene:
                yield engine.process(frame).mask


def _scenes(args: argparse.Namespace) -> Iterator[list[Frame]]:
    """Of the train split, each still and three views from a little further along the road."""
    if args.root is None:
        for seed in range(SEED, SEED + args.scenes):
            drive = RenderedDrive(seed=seed, frames=FRAMES, rate_hz=15.0, size=args.size)
            images = [drive[index].image for index in range(FRAMES)]
            yield _at_15_hz(images)
        return
    stills = CamVid(args.root, "train")
    for index in np.linspace(0, len(stills) - 1, args.scenes).round().astype(int):
        image = stills[int(index)].image
        height, width = image.shape[:2]
        views = []
        for step in range(FRAMES):
            closer = cv2.getRotationMatrix2D((width / 2, height / 2), 0, 1 + 0.02 * step)
            views.append(cv2.warpAffine(image, closer, (width, height), flags=cv2.INTER_LINEAR))
        yield _at_15_hz(views)


def _at_15_hz(images: list[np.ndarray]) -> list[Frame]:
    return [Frame(image, index * 10**9 // 15, "camera") for index, image in enumerate(images)]


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
