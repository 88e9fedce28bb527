"""Runs the chosen methods one after the other."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

import numpy as np
from tqdm import tqdm

from lowlat_seg_ros.lab.evaluation import bootstrap, figures
from lowlat_seg_ros.lab.evaluation.catalogue import Spec
from lowlat_seg_ros.lab.evaluation.footage import Footage
from lowlat_seg_ros.lab.evaluation.methods import Unavailable, Workshop
from lowlat_seg_ros.lab.evaluation.run import Method, Result, measure
from lowlat_seg_ros.lab.evaluation.streaming import Cost, stream


@dataclass(frozen=True)
class Comparison:
    """Of ``specs``, by name: results, reasons of the methods left out, streaming mIoU if asked."""

    specs: tuple[Spec, ...]
    results: dict[str, Result] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    streaming: dict[str, float] = field(default_factory=dict)
    _spread: dict[str, np.ndarray] = field(default_factory=dict, repr=False, compare=False)

    @property
    def complete(self) -> bool:
        """Whether nothing is left to be measured."""
        return len(self.results) + len(self.left_out) == len(self.specs)

    def spread(self) -> dict[str, np.ndarray]:
        """Of each method the mIoU of every draw of a bootstrap, drawn alike for all."""
        for name in self.results.keys() - self._spread.keys():
            self._spread[name] = bootstrap.mious(self.results[name].matrices)
        return {name: self._spread[name] for name in self.results}

    @property
    def reasons(self) -> dict[str, list[str]]:
        """Why methods were left out, each with the names of those that were left out for it."""
        reasons: dict[str, list[str]] = {}
        for name, reason in self.left_out.items():
            reasons.setdefault(reason, []).append(name)
        return reasons

    @property
    def threads(self) -> set[int]:
        """The numbers of CPU threads that the methods used."""
        return {result.threads for result in self.results.values()}


def compare(
    shop: Workshop,
    specs: list[Spec],
    *,
    pictures: bool = False,
    streaming: Cost | None = None,
    after_each: Callable[[Comparison], object] = lambda done: None,
) -> Comparison:
    """Measure ``specs``, those that can be built; with a progress bar on standard error.

    ``pictures``: keep the masks that the charts need. ``streaming``: play each method once more,
    in simulated time at this cost. ``after_each`` is told what is done after each method.
    """
    done, frames = Comparison(tuple(specs)), len(shop.footage)
    passes = 1 if streaming is None else 2
    with tqdm(total=passes * frames * len(specs), unit="frame") as bar:
        for number, spec in enumerate(specs, start=1):
            bar.set_description(f"method {number} of {len(specs)}, {spec.name}")
            try:
                method = shop.build(spec)
            except Unavailable as reason:
                done.left_out[spec.name] = str(reason)
                bar.update(passes * frames)
            else:
                keep = _kept(spec, shop.footage) if pictures else ()
                result = measure(method, shop.footage, keep, bar.update)
                if streaming is not None:
                    again = _again(shop, spec)
                    streamed = stream(again, shop.footage, streaming, bar.update)
                    done.streaming[spec.name] = streamed.miou
                done.results[spec.name] = result
            after_each(done)
    return done


def _again(shop: Workshop, spec: Spec) -> Method:
    return dataclasses.replace(shop, skips=True).build(spec)


def _kept(spec: Spec, footage: Footage) -> Collection[int]:
    """The full network's masks are what deviations are measured between."""
    return range(len(footage)) if spec.name == "full" else figures.grid_rows(footage)
