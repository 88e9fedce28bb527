"""Builds the methods of the catalogue from one checkpoint."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lowlat_seg_ros.config import EngineConfig, NetworkConfig
from lowlat_seg_ros.engine import preprocess
from lowlat_seg_ros.engine.engine import Engine
from lowlat_seg_ros.engine.runner import Runner
from lowlat_seg_ros.frames import MaskKind
from lowlat_seg_ros.lab.baselines import keyed, learned, weights
from lowlat_seg_ros.lab.baselines.stream import (
    FullEngine,
    GatedRecurrentWarp,
    GrfpEngine,
    PerFrameEngine,
    SingleFrameEngine,
)
from lowlat_seg_ros.lab.data.clip import Clip
from lowlat_seg_ros.lab.evaluation.catalogue import Spec
from lowlat_seg_ros.lab.evaluation.comparison import Method, Unavailable
from lowlat_seg_ros.lab.quantize import prepare_in_8_bits
from lowlat_seg_ros.network import checkpoint, inference
from lowlat_seg_ros.network.checkpoint import Header
from lowlat_seg_ros.network.inference import precision_of
from lowlat_seg_ros.network.segmenter import Segmenter

#: What schedules by a threshold measure, by the schedule's name.
MEASURES: dict[str, keyed.Measure] = {
    "threshold": keyed.FeatureChange(),
    "adaptive": keyed.PredictedDeviation(),
}

#: Halvings of the range of thresholds: enough where all frames are about as far from each other.
_HALVINGS = 20


@dataclass(frozen=True, eq=False)
class MethodFactory:
    """What methods are built from: one network, its header, and the settings of a run."""

    segmenter: Segmenter
    header: Header
    config: EngineConfig
    clip: Clip
    replays: dict[str, Replay]  # by the schedule's name
    baselines: dict[str, learned.Baseline]  # those with weights of their own that were found
    baselines_from: Path | None = None
    lacking: tuple[str, ...] = ()  # those that were asked for and not found
    coarse: Segmenter | None = None  # at output stride 16; None if it is, or was not asked for

    def build(self, spec: Spec, *, skips_frames: bool = False) -> Method:
        """The method ``spec``; raises :class:`Unavailable` if something for it is missing."""
        net, config = self.segmenter, self.config
        match spec.kind:
            case "full":
                return FullEngine(net, config)
            case "full_os16":
                if self.coarse is None:
                    raise Unavailable("Sh's output stride is 16 as it is, so it would equal full")
                return FullEngine(self.coarse, config)
            case "full_half":
                height = config.inference_height or self.clip.size[0]
                half = dataclasses.replace(config, inference_height=max(1, round(height / 2)))
                return FullEngine(net, half)
            case "single_frame":
                return SingleFrameEngine(net, config)
            case "own_network":
                method = self._baseline(spec)
                # Without Sh there is no key frame.
                single = isinstance(method, learned.SingleFrameMethod)
                kind = MaskKind.DEGRADED if single else MaskKind.FULL
                return PerFrameEngine(net, method.learned["network"], kind, config)
            case "grfp":
                cell = self._baseline(spec).learned["cell"]
                assert isinstance(cell, GatedRecurrentWarp)
                return GrfpEngine(net, cell, config)
            case "carried":
                carried = self._baseline(spec)
                assert isinstance(carried, learned.CarriedMethod)
                schedule = self._schedule(spec)
                return keyed.KeyedEngine(net, carried.carrier, carried.head, schedule, config)
            case "keyed":
                return keyed.adaptive(net, self._schedule(spec), config)
            case "low_latency":
                # Where frames are skipped Sh must not become slower for it, so its delay is a time;
                # a millisecond less, as stamps are rounded.
                delay_ms = max(0.0, spec.delay_frames * 1000 / self.clip.rate_hz - 1.0)
                return Engine.deterministic(
                    net,
                    config,
                    threshold=self.header.threshold,
                    delay_frames=None if skips_frames else spec.delay_frames,
                    delay_ms=delay_ms if skips_frames else None,
                )
        raise AssertionError(f"no method is of the kind {spec.kind!r}")

    def _schedule(self, spec: Spec) -> keyed.Schedule:
        if spec.schedule == "fixed":
            return keyed.Fixed(spec.interval)
        threshold = self.replays[spec.schedule].threshold(spec.interval)
        return keyed.Threshold(MEASURES[spec.schedule], threshold)

    def _baseline(self, spec: Spec) -> learned.Baseline:
        if spec.name in self.baselines:
            return self.baselines[spec.name]
        if reason := _why_not(spec, self.segmenter.config):
            raise Unavailable(reason)
        # Without the folder's path: reasons stand in reports, which others read on other machines.
        where = "given" if self.baselines_from is None else "in the folder given"
        names = spec.name
        if names not in learned.IMAGE_METHODS:  # one run trains all the others that lack weights
            together = [name for name in self.lacking if name in learned.PAIR_METHODS]
            names = "all" if set(together) == set(learned.PAIR_METHODS) else ",".join(together)
        raise Unavailable(
            f"no weights {where} (--baselines); 'lowlat-seg train baseline --method {names} "
            "--start-from CHECKPOINT --out DIR' makes them"
        )


def _why_not(spec: Spec, config: NetworkConfig) -> str:
    """Why the method cannot be trained on such a network, empty if it can."""
    if spec.kind == "carried" and config.fine_carry:
        return (
            "the network carries its answers besides F_h, which these ways to carry do not; they "
            "are compared on the split network (--checkpoint lowlat_seg_ros/weights/"
            "resnet18.safetensors)"
        )
    if spec.name == "sh_small" and not config.has_trunk:
        return "Sh of this network reads no smaller images; it is for the default network"
    return ""


def factory_for(
    specs: list[Spec],
    segmenter: Segmenter,
    header: Header,
    config: EngineConfig,
    clip: Clip,
    baselines_from: Path | None,
    progress: Callable[[int], object],
) -> MethodFactory:
    """Prepare for ``specs``; frames are run through Sl once if a schedule has a threshold.

    Raises ``CheckpointError`` for a baseline's file that is there but does not fit.
    """
    baselines = {}
    if baselines_from is not None:
        baselines = {
            spec.name: weights.load(baselines_from, spec.name, segmenter)
            for spec in specs
            if spec.weights and weights.path_of(baselines_from, spec.name).is_file()
        }
    coarse, network = None, header.network
    asked = any(spec.kind == "full_os16" for spec in specs)
    if asked and network.output_stride != 16 and not network.has_trunk:
        coarse = Segmenter(dataclasses.replace(segmenter.config, output_stride=16))
        coarse.to(next(segmenter.parameters()).device)
        checkpoint.restore(coarse, checkpoint.weights(segmenter), "full_os16")
    # Only now: all of these are bound to the checkpoint's own weights, or begin as parts of it.
    device = next(segmenter.parameters()).device
    dtype = precision_of(config.precision, device)
    ranges = inference.ranges_for(config.precision, segmenter, header, config.runtime)
    if ranges:
        # Their ranges are found on the clip itself, which can only favour them.
        frames = [torch.from_numpy(f.image).permute(2, 0, 1)[None] for f in clip.frames[::10]]
        # All that read images themselves: images are bytes then.
        for learned_parts in (baseline.learned for baseline in baselines.values()):
            if "network" in learned_parts:
                own = learned_parts["network"].eval()
                prepare_in_8_bits(own, frames, segmenter.statistics, dtype)
    inference.prepare(segmenter.eval(), dtype, ranges)
    for part in (*baselines.values(), *([coarse] if coarse is not None else [])):
        inference.prepare(part.eval(), dtype)
    replays, schedules = {}, {spec.schedule for spec in specs} & set(MEASURES)
    if schedules:
        lows = low_features(segmenter, clip, config, progress)
        replays = {name: Replay(MEASURES[name], segmenter, lows, clip) for name in schedules}
    lacking = tuple(
        spec.name
        for spec in specs
        if spec.weights and spec.name not in baselines and not _why_not(spec, segmenter.config)
    )
    return MethodFactory(
        segmenter, header, config, clip, replays, baselines, baselines_from, lacking, coarse
    )


@torch.inference_mode()
def low_features(
    segmenter: Segmenter, clip: Clip, config: EngineConfig, progress: Callable[[int], object]
) -> list[Tensor]:
    """F_l of every frame (1, Cl, H/8, W/8), in half precision to save memory."""
    found, runner = [], Runner(segmenter)
    for frame in clip.frames:
        geometry = preprocess.plan(frame.image.shape[:2], config.inference_height)
        found.append(runner.lower(runner.image(frame.image, geometry)[0]).half())
        progress(1)
    return found


class Replay:
    """A schedule by ``measure``, replayed on features without segmenting anything.

    It finds thresholds at which schedules take the same share of key frames. They are set on the
    clip that is evaluated, which needs no labels, for the threshold and the adaptive schedule
    alike: Fig. 5 compares which frames a schedule takes, not how well a threshold carries over
    from other drives.
    """

    @torch.inference_mode()
    def __init__(
        self, measure: keyed.Measure, segmenter: Segmenter, lows: list[Tensor], clip: Clip
    ) -> None:
        self._measure, self._runner = measure, Runner(segmenter)
        self._reduced = [measure.reduce(self._runner, low.float()) for low in lows]
        self._drives = clip.ranges()
        self._known: dict[tuple[int, int], float] = {}

    def keys(self, threshold: float) -> int:
        """Key frames that the schedule takes at ``threshold``, the first of each drive included."""
        count = 0
        for drive in self._drives:
            key, count = drive[0], count + 1
            for index in drive[1:]:
                if self._change(key, index) > threshold:
                    key, count = index, count + 1
        return count

    @torch.inference_mode()
    def _change(self, key: int, index: int) -> float:
        if (key, index) not in self._known:
            pair = self._reduced[key], self._reduced[index]
            self._known[key, index] = self._measure.change(self._runner, *pair)
        return self._known[key, index]

    def threshold(self, interval: int) -> float:
        """The threshold that comes nearest to one key frame every ``interval`` frames."""
        target = len(self._reduced) / interval
        # Nothing on the way exceeds the largest change from a drive's first frame.
        low, high = 0.0, max(self._change(d[0], index) for d in self._drives for index in d)
        keys = {high: self.keys(high), low: self.keys(low)}
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            keys[middle] = self.keys(middle)
            low, high = (middle, high) if keys[middle] > target else (low, middle)
        return min(keys, key=lambda threshold: abs(keys[threshold] - target))
