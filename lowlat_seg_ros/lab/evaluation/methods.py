"""Builds the methods of the catalogue from one checkpoint."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lowlat_seg_ros.config import EngineConfig, NetworkConfig
from lowlat_seg_ros.engine.engine import Engine
from lowlat_seg_ros.frames import MaskKind
from lowlat_seg_ros.lab.baselines import weights
from lowlat_seg_ros.lab.baselines.carry import adaptive
from lowlat_seg_ros.lab.baselines.full import FullEngine
from lowlat_seg_ros.lab.baselines.grfp import GrfpEngine
from lowlat_seg_ros.lab.baselines.keyed import KeyedEngine
from lowlat_seg_ros.lab.baselines.learned import (
    IMAGE_METHODS,
    PAIR_METHODS,
    Baseline,
    CarriedMethod,
    SingleFrameMethod,
)
from lowlat_seg_ros.lab.baselines.per_frame import PerFrameEngine, single_frame
from lowlat_seg_ros.lab.baselines.recurrent import GatedRecurrentWarp
from lowlat_seg_ros.lab.baselines.schedules import (
    FeatureChange,
    Fixed,
    Measure,
    PredictedDeviation,
    Schedule,
    Threshold,
)
from lowlat_seg_ros.lab.evaluation.catalogue import Spec
from lowlat_seg_ros.lab.evaluation.footage import Footage
from lowlat_seg_ros.lab.evaluation.intervals import Replay, low_features
from lowlat_seg_ros.lab.evaluation.run import Method
from lowlat_seg_ros.network import checkpoint, inference
from lowlat_seg_ros.network.checkpoint import Header
from lowlat_seg_ros.network.inference import precision_of
from lowlat_seg_ros.network.segmenter import Segmenter


class Unavailable(Exception):
    """A method cannot be built from what was given; the message says why."""


@dataclass(frozen=True, eq=False)
class Workshop:
    """What methods are built from: one network, its header, and the settings of a run.

    ``replays`` are those of the schedules by name, ``baselines`` those with weights of their own
    that were found in the folder ``baselines_from``, ``lacking`` those that were asked for and not
    found. ``coarse``: the network at output stride 16, None if it is or was not asked for.
    ``skips``: methods do not see all frames.
    """

    segmenter: Segmenter
    header: Header
    config: EngineConfig
    footage: Footage
    replays: dict[str, Replay]
    baselines: dict[str, Baseline]
    baselines_from: Path | None = None
    lacking: tuple[str, ...] = ()
    coarse: Segmenter | None = None
    skips: bool = False

    def build(self, spec: Spec) -> Method:
        """The method ``spec``; raises :class:`Unavailable` if something for it is missing."""
        return BUILDERS[spec.kind](self, spec)


def workshop(
    segmenter: Segmenter,
    header: Header,
    config: EngineConfig,
    footage: Footage,
    specs: list[Spec],
    baselines_from: Path | None,
    progress: Callable[[int], object],
) -> Workshop:
    """Prepare for ``specs``; frames are run through Sl once if a schedule's threshold is asked.

    Raises ``CheckpointError`` for a baseline's file that is there but does not fit.
    """
    baselines = {}
    if baselines_from is not None:
        baselines = {
            spec.name: weights.load(baselines_from, spec.name, segmenter)
            for spec in specs
            if spec.weights and weights.path_of(baselines_from, spec.name).is_file()
        }
    asked = any(spec.kind == "full_os16" for spec in specs)
    dilated = header.network.output_stride != 16 and not header.network.has_trunk
    coarse = _coarse(segmenter) if asked and dilated else None
    # Only now: all of these are bound to the checkpoint's own weights, or begin as parts of it.
    dtype = precision_of(config.precision, next(segmenter.parameters()).device)
    for network in (segmenter, *baselines.values(), *([coarse] if coarse is not None else [])):
        inference.prepare(network.eval(), dtype)
    names = {spec.schedule for spec in specs} & {"threshold", "adaptive"}
    replays = {}
    if names:
        lows = low_features(segmenter, footage, config, progress)
        ranges = footage.ranges()
        replays = {name: Replay(_measure(name, segmenter), lows, ranges) for name in sorted(names)}
    lacking = tuple(
        spec.name
        for spec in specs
        if spec.weights and spec.name not in baselines and not _why_not(spec, segmenter.config)
    )
    return Workshop(
        segmenter, header, config, footage, replays, baselines, baselines_from, lacking, coarse
    )


def _coarse(segmenter: Segmenter) -> Segmenter:
    """The same weights at output stride 16."""
    device = next(segmenter.parameters()).device
    coarse = Segmenter(dataclasses.replace(segmenter.config, output_stride=16)).to(device)
    checkpoint.restore(coarse, checkpoint.weights(segmenter), "full_os16")
    return coarse


def _measure(name: str, segmenter: Segmenter) -> Measure:
    return FeatureChange() if name == "threshold" else PredictedDeviation(segmenter.selector)


def _full(shop: Workshop, spec: Spec) -> Method:
    return FullEngine(shop.segmenter, shop.config)


def _full_os16(shop: Workshop, spec: Spec) -> Method:
    if shop.coarse is None:
        raise Unavailable("Sh's output stride is 16 as it is, so it would equal full")
    return FullEngine(shop.coarse, shop.config)


def _full_half(shop: Workshop, spec: Spec) -> Method:
    height = shop.config.inference_height or shop.footage.frames[0].image.shape[0]
    config = dataclasses.replace(shop.config, inference_height=max(1, round(height / 2)))
    return FullEngine(shop.segmenter, config)


def _single_frame(shop: Workshop, spec: Spec) -> Method:
    return single_frame(shop.segmenter, shop.config)


def _keyed(shop: Workshop, spec: Spec) -> Method:
    return KeyedEngine(adaptive(shop.segmenter), _schedule(shop, spec), shop.config)


def _carried(shop: Workshop, spec: Spec) -> Method:
    method = _baseline(shop, spec)
    assert isinstance(method, CarriedMethod)
    return KeyedEngine(method.network, _schedule(shop, spec), shop.config)


def _grfp(shop: Workshop, spec: Spec) -> Method:
    cell = _baseline(shop, spec).learned["cell"]
    assert isinstance(cell, GatedRecurrentWarp)
    return GrfpEngine(shop.segmenter, cell, shop.config)


def _own_network(shop: Workshop, spec: Spec) -> Method:
    method = _baseline(shop, spec)
    # Without Sh there is no key frame.
    kind = MaskKind.DEGRADED if isinstance(method, SingleFrameMethod) else MaskKind.FULL
    return PerFrameEngine(shop.segmenter, method.learned["network"], kind, shop.config)


def _baseline(shop: Workshop, spec: Spec) -> Baseline:
    if spec.name in shop.baselines:
        return shop.baselines[spec.name]
    if reason := _why_not(spec, shop.segmenter.config):
        raise Unavailable(reason)
    # Without the folder's path: reasons stand in reports, which others read on other machines.
    where = "given" if shop.baselines_from is None else "in the folder given"
    names = _trained_together(spec.name, shop.lacking)
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


def _trained_together(name: str, lacking: tuple[str, ...]) -> str:
    """The methods to train in one run to get ``name``, of those that lack weights."""
    if name in IMAGE_METHODS:
        return name
    names = [other for other in lacking if other in PAIR_METHODS]
    return "all" if set(names) == set(PAIR_METHODS) else ",".join(names)


def _schedule(shop: Workshop, spec: Spec) -> Schedule:
    if spec.schedule == "fixed":
        return Fixed(spec.interval)
    threshold = shop.replays[spec.schedule].threshold(spec.interval)
    return Threshold(_measure(spec.schedule, shop.segmenter), threshold)


def _low_latency(shop: Workshop, spec: Spec) -> Method:
    return Engine.deterministic(
        shop.segmenter,
        shop.config,
        threshold=shop.header.threshold,
        delay_frames=None if shop.skips else spec.delay_frames,
        delay_ms=_delay_ms(spec, shop.footage.rate_hz) if shop.skips else None,
    )


def _delay_ms(spec: Spec, rate_hz: float) -> float:
    """The delay in time: where frames are skipped Sh must not become slower for it.

    A millisecond less, as stamps are rounded.
    """
    return max(0.0, spec.delay_frames * 1000 / rate_hz - 1.0)


BUILDERS: dict[str, Callable[[Workshop, Spec], Method]] = {
    "full": _full,
    "full_os16": _full_os16,
    "full_half": _full_half,
    "single_frame": _single_frame,
    "carried": _carried,
    "grfp": _grfp,
    "own_network": _own_network,
    "keyed": _keyed,
    "low_latency": _low_latency,
}
