"""Runs the chosen methods one after the other and draws what they achieved."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tqdm import tqdm

from lowlat_seg_ros.evaluation import figures
from lowlat_seg_ros.evaluation.catalogue import Spec
from lowlat_seg_ros.evaluation.figures import Entry
from lowlat_seg_ros.evaluation.footage import Footage
from lowlat_seg_ros.evaluation.methods import Unavailable, Workshop
from lowlat_seg_ros.evaluation.run import Method, Result, measure
from lowlat_seg_ros.evaluation.streaming import Cost, stream


@dataclass(frozen=True)
class Comparison:
    """By name: results, reasons of the methods left out, streaming mIoU where it was asked for."""

    results: dict[str, Result] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    streaming: dict[str, float] = field(default_factory=dict)


def compare(
    shop: Workshop, specs: list[Spec], *, pictures: bool = False, streaming: Cost | None = None
) -> Comparison:
    """Measure ``specs``, those that can be built; with a progress bar on standard error.

    ``pictures``: keep the masks that :func:`draw` needs. ``streaming``: play each method once more,
    in simulated time at this cost.
    """
    done, frames = Comparison(), len(shop.footage)
    passes = 1 if streaming is None else 2
    with tqdm(total=passes * frames * len(specs), unit="frame") as bar:
        for spec in specs:
            bar.set_description(spec.name)
            try:
                method = shop.build(spec)
            except Unavailable as reason:
                done.left_out[spec.name] = str(reason)
                bar.update(passes * frames)
                continue
            keep = _kept(spec, shop.footage) if pictures else ()
            done.results[spec.name] = measure(method, shop.footage, keep, bar.update)
            if streaming is not None:
                again = _again(shop, spec)
                streamed = stream(again, shop.footage, streaming, bar.update)
                done.streaming[spec.name] = streamed.miou
    return done


def _again(shop: Workshop, spec: Spec) -> Method:
    return dataclasses.replace(shop, skips=True).build(spec)


def _kept(spec: Spec, footage: Footage) -> Collection[int]:
    """The full network's masks are what deviations are measured between."""
    return range(len(footage)) if spec.name == "full" else figures.grid_rows(footage)


#: Columns of the image grid, those that were measured.
GRID_METHODS = ("full", "single_frame", "clockwork", "dff", "adaptive", "adaptive_low_latency")


def draw(out: Path, footage: Footage, specs: list[Spec], done: Comparison) -> list[Path]:
    """Write the charts that the results allow to the folder ``out``; returns their paths."""
    out.mkdir(parents=True, exist_ok=True)
    entries = [Entry(s, done.results[s.name]) for s in specs if s.name in done.results]
    title = f"{footage.name}, {len(footage)} frames"
    written = [out / "latency_accuracy.png", out / "grid.png"]
    figures.latency_accuracy(written[0], entries, title)
    figures.image_grid(written[1], footage, [e for e in entries if e.spec.name in GRID_METHODS])
    if any(len(e.result.by_distance) > 1 for e in entries):
        written.append(out / "distance.png")
        figures.distance_chart(written[-1], entries, title)
    if any(e.spec.schedule for e in entries):
        written.append(out / "schedules.png")
        figures.schedule_chart(written[-1], entries, title)
    engine, full = (done.results.get(name) for name in ("adaptive_low_latency", "full"))
    if engine is not None and full is not None:
        masks: dict[int, np.ndarray] = full.masks
        written.append(out / "deviation.png")
        figures.deviation_chart(written[-1], engine, masks, title)
    return written
