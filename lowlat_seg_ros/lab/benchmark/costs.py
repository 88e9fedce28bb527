"""What networks cost: multiply-adds, memory, and how the fast track grows with size and cameras."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from lowlat_seg_ros.config import NETWORKS, EngineConfig, NetworkConfig
from lowlat_seg_ros.engine.engine import Engine
from lowlat_seg_ros.frames import Outcome, Refinement, StageTiming
from lowlat_seg_ros.lab.baselines.ddrnet import DDRNet23Slim
from lowlat_seg_ros.lab.benchmark.timing import (
    BLOCK,
    IDLE,
    Camera,
    FastTrack,
    Latency,
    Progress,
    Run,
    play,
)
from lowlat_seg_ros.lab.quantize import prepare_in_8_bits
from lowlat_seg_ros.network import inference
from lowlat_seg_ros.network.checkpoint import DEFAULT_CHECKPOINT, sha256
from lowlat_seg_ros.network.gate import evidence_of
from lowlat_seg_ros.network.inference import precision_of
from lowlat_seg_ros.network.layers import PackedConv2d
from lowlat_seg_ros.network.quantization import QuantizedConv2d
from lowlat_seg_ros.network.segmenter import STRIDE, Segmenter

Network = TypeVar("Network", bound=nn.Module)


#: Height and width of the frames over which the cost is measured, as a share of the camera's.
SCALES = (0.5, 0.75, 1.0, 1.5)

CAMERAS = (1, 2, 3, 4, 5, 6)


def shipped(config: str) -> Path | None:
    """The package's own checkpoint of the network ``config``, None where it has none."""
    path = DEFAULT_CHECKPOINT.with_name(f"{config}.safetensors")
    return path if path.is_file() else None


def loaded(path: Path, device: torch.device, precision: str, runtime: str) -> tuple[Segmenter, str]:
    """The network of the checkpoint at ``path``, and what its weights are.

    Raises ``CheckpointError``.
    """
    segmenter, _ = inference.load(path, device, precision, runtime)
    return segmenter, f"{path.name}, SHA-256 {sha256(path)}"


def with_random_weights(config: str, device: torch.device, precision: str) -> tuple[Segmenter, str]:
    """The network ``config`` of ``NETWORKS``, and what its weights are."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return _ready(Segmenter(NETWORKS[config]), device, precision), "random"


def ddrnet(segmenter: Segmenter, precision: str, image: np.ndarray) -> DDRNet23Slim:
    """With random weights, for the classes and on the device of ``segmenter``.

    In 8 bits if that is, with the ranges of its activations on ``image``.
    """
    device = next(segmenter.parameters()).device
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = DDRNet23Slim(segmenter.config.num_classes)
    if segmenter.input_dtype == torch.uint8:
        seen = [torch.from_numpy(image).permute(2, 0, 1)[None]]
        dtype = precision_of(precision, device)
        return prepare_in_8_bits(network.eval(), seen, segmenter.statistics, dtype)
    return _ready(network, device, precision)


def _ready(network: Network, device: torch.device, precision: str) -> Network:
    """As :func:`~lowlat_seg_ros.network.inference.load` gives them."""
    return inference.prepare(network.eval().to(device), precision_of(precision, device))


@dataclass(frozen=True)
class MultiplyAdds:
    """1e9 multiply-adds of convolutions and Eq. (1) for one frame.

    The kernel predictor is counted whole, though a packed one does the key frame's half of its
    mixing only once.
    """

    lower_g: float
    higher_g: float
    full_g: float  # Sl, Sh and the classifier on F_h
    fast_g: float  # the fast track up to its mask
    selector_g: float  # what comes after it
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
        answers = known = None
        gate = 0.0
        if net.config.fine_carry:
            # Flow and warping multiply next to nothing.
            logits, points = net.answers(high), net.config.classifier_upsampling
            still = torch.zeros(1, 2, *logits.shape[2:])
            answers = net.warp(logits, still)
            residual = torch.zeros(1, points**2, *low.shape[2:])
            age = torch.zeros(1)
            known, gate = _giga(lambda: evidence_of(reduced, reduced, age, residual))
        cells = net.carried_cells(high)
        _, fusion = _giga(lambda: net.fuse(cells, low, known, answers, reduced))
        seen, selector = _giga(lambda: net.selector.reduce(low))
        _, verdict = _giga(lambda: net.selector.deviation(seen, seen))
    propagation = weights.shape[1] * cells.numel() / 1e9  # no operator that the counter knows
    shared = lower if net.encoder is None else 0.0
    full = shared + higher + classifier
    fast = lower + reduction + kernels + propagation + gate + fusion
    last = selector + verdict
    return MultiplyAdds(lower, higher, full, fast, last, fast / full, (fast + last) / full)


def _giga(work: Callable[[], Tensor]) -> tuple[Tensor, float]:
    with FlopCounterMode(display=False) as counter:
        answer = work()
    return answer, counter.get_total_flops() / 2e9


@dataclass(frozen=True)
class Memory:
    """Megabytes (1e6 bytes); NaN where the system does not say."""

    weights_mb: float  # parameters and buffers
    ddrnet_weights_mb: float
    before_mb: float  # the process with its libraries and images, before any network
    peak_mb: float  # the most until all methods had run
    gpu_peak_mb: float  # 0 without a GPU
    camera_mb: float  # what each further camera takes, NaN if that was not measured


def memory(segmenter: Segmenter, ddrnet: DDRNet23Slim, before_mb: float) -> Memory:
    """What is held now; ``before_mb`` before there was a network."""
    device = next(segmenter.parameters()).device
    on_gpu = device.type == "cuda"
    return Memory(
        weights_mb=weights_mb(segmenter),
        ddrnet_weights_mb=weights_mb(ddrnet),
        before_mb=before_mb,
        peak_mb=status_mb("VmHWM"),
        gpu_peak_mb=torch.cuda.max_memory_reserved(device) / 1e6 if on_gpu else 0.0,
        camera_mb=float("nan"),
    )


def weights_mb(network: nn.Module) -> float:
    """Of parameters and buffers, and of convolutions that were packed."""
    tensors = network.state_dict().values()
    packed = [
        m.weight_bytes for m in network.modules() if isinstance(m, PackedConv2d | QuantizedConv2d)
    ]
    return (sum(tensor.numel() * tensor.element_size() for tensor in tensors) + sum(packed)) / 1e6


def memory_mb(device: torch.device) -> float:
    """What this process holds now: on the GPU if that is ``device``, else in main memory."""
    if device.type == "cuda":
        torch.cuda.empty_cache()  # what is left includes the memory that CUDA graphs keep
        return torch.cuda.memory_reserved(device) / 1e6
    return status_mb("VmRSS")


def status_mb(name: str) -> float:
    """``VmRSS``, what this process holds now, or ``VmHWM``, the most that it held; else NaN."""
    status = Path("/proc/self/status")  # Linux keeps a process's account here
    lines = status.read_text().splitlines() if status.is_file() else []
    found = (line.split() for line in lines if line.startswith(f"{name}:"))
    return next((int(words[1]) * 1024 / 1e6 for words in found), float("nan"))


@dataclass(frozen=True)
class Sized:
    """Latency of the fast track at ``height`` x ``width``, slow track idle."""

    height: int
    width: int
    latency: Latency

    @property
    def megapixels(self) -> float:
        """1e6 pixels."""
        return self.height * self.width / 1e6


@dataclass(frozen=True)
class Resolutions:
    """``sizes``, and the line ``base_ms + ms_per_megapixel * megapixels`` through their p50."""

    sizes: tuple[Sized, ...]
    base_ms: float
    ms_per_megapixel: float
    linear_deviation: float  # largest share by which a p50 is off the line


def over_resolutions(
    segmenter: Segmenter, camera: Camera, frames: int, progress: Progress
) -> Resolutions:
    """``frames`` frames of each size, in blocks that take turns."""
    cameras = []
    for scale in SCALES:  # in multiples of the network's stride, so that nothing is padded
        height, width = (max(1, round(side * scale / STRIDE)) * STRIDE for side in camera.size)
        cameras.append(camera.resized(height, width))
    runs: list[Run[StageTiming]] = [Run() for _ in cameras]
    with FastTrack(segmenter, camera) as fast:
        for start in range(0, frames, BLOCK):
            for resized, run in zip(cameras, runs, strict=True):
                fast.camera = resized
                run.add(fast.idle(min(BLOCK, frames - start), progress))
    points = []
    for resized, run in zip(cameras, runs, strict=True):
        latencies = [timing.latency_ms for timing in run.answers]
        points.append(Sized(*resized.size, Latency.of(latencies)))
    line = fit([p.megapixels for p in points], [p.latency.p50_ms for p in points])
    return Resolutions(tuple(points), *line)


def fit(amounts: Sequence[float], costs: Sequence[float]) -> tuple[float, float, float]:
    """The line (base, slope) with the least relative error, and the largest relative deviation."""
    x, y = np.asarray(amounts), np.asarray(costs)
    (base, slope), *_ = np.linalg.lstsq(np.stack([1 / y, x / y], axis=1), np.ones_like(y))
    return float(base), float(slope), float(np.abs(y / (base + slope * x) - 1).max())


@dataclass(frozen=True)
class Cameras:
    """``cameras`` of one size, each with an engine and a network of its own."""

    cameras: int
    latency: Latency  # from their frames in until all masks are out and the next can be taken
    memory_mb: float  # what the process holds then


def over_cameras(
    segmenter: Segmenter, camera: Camera, frames: int, progress: Progress
) -> tuple[Cameras, ...]:
    """Rounds of 1 to 6 cameras whose frames come together and are segmented one after another.

    Each number of cameras gets at least ``frames`` frames; ``progress`` is called for each number.
    """
    found, device = [], next(segmenter.parameters()).device
    with ExitStack() as stack:
        engines: list[Engine] = []

        def step() -> None:
            for engine in engines:
                engine.process(camera.frame())

        for cameras in CAMERAS:
            network = copy.deepcopy(segmenter)  # an engine is the only user of its network
            engines.append(stack.enter_context(Engine(network, IDLE, threshold=1.0)))
            run = play(step, -(-frames // cameras))
            found.append(Cameras(cameras, Latency.of(run.spent_ms), memory_mb(device)))
            progress(1)
    return tuple(found)


@dataclass(frozen=True)
class Freshness:
    """How old exact features are when they arrive, and how many arrive, the engine as by default.

    What a mask is worth depends on the age of the features behind it more than on what computed
    them.
    """

    rate_hz: float
    frames: int
    per_s: float  # exact results of Sh that were used
    age_frames: float  # mean number of frames from the one that Sh saw to the first that may use it
    oldest_frames: int
    compute_ms: float  # median time of Sh beside the frames, what it yields to them included


def freshness(
    segmenter: Segmenter, camera: Camera, frames: int, rate_hz: float, progress: Progress
) -> Freshness:
    """``frames`` frames at ``rate_hz``; ``progress`` is called for each."""
    warm_up = 10  # the first frame is full, and Sh warms up
    begun: list[int] = []  # stamps of the frames that have begun
    found: list[tuple[int, float]] = []  # age in frames and time of each result

    def note(refinement: Refinement) -> None:
        if refinement.outcome in (Outcome.REFINED, Outcome.CARRIED):
            index = begun.index(refinement.stamp_ns)
            if index >= warm_up:
                found.append((len(begun) - index, refinement.compute_ms))

    config = EngineConfig(max_gap_ms=0.0, inference_height=0)
    with Engine(segmenter, config, threshold=1.0, on_refinement=note) as engine:

        def step() -> None:
            frame = camera.frame()
            begun.append(frame.stamp_ns)
            engine.process(frame)

        run = play(step, frames, rate_hz, progress=progress, warm_up=warm_up)
    ages, times = zip(*found, strict=True) if found else ((), ())
    nan = float("nan")
    return Freshness(
        rate_hz=rate_hz,
        frames=frames,
        per_s=len(found) / run.window_s,
        age_frames=float(np.mean(ages)) if ages else nan,
        oldest_frames=max(ages, default=0),
        compute_ms=float(np.median(times)) if times else nan,
    )
