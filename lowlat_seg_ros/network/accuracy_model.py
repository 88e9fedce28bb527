"""The model of a mask's accuracy that a checkpoint may have: few terms, each of one observation.

The logit of the share of right pixels is a sum of piecewise linear functions, one of each
observation that ``engine/expected_accuracy.py`` makes. Each is flat beyond the range that it was
fitted on, so that nothing is extrapolated. ``lowlat-seg calibrate`` fits it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

#: The name that terms have for :func:`usualness`.
LAYOUT = "layout"


class Term(NamedTuple):
    """From ``low`` to ``high`` of the observation ``name`` the logit changes by ``weight``."""

    name: str
    low: float
    high: float
    weight: float

    def share(self, value: float) -> float:
        """How far ``value`` is on the way from ``low`` to ``high``, in [0, 1]."""
        return min(1.0, max(0.0, (value - self.low) / (self.high - self.low)))


@dataclass(frozen=True)
class AccuracyModel:
    """``bias`` is the logit where all observations are below their terms' ranges.

    ``layout`` (bands, classes) are logarithms of how often each class is seen in each band of the
    image, from its top to its foot: a mask with road for sky is probably wrong.
    """

    bias: float
    terms: tuple[Term, ...]
    layout: tuple[tuple[float, ...], ...]

    def __post_init__(self) -> None:
        numbers = [self.bias, *(number for term in self.terms for number in term[1:])]
        numbers += [number for band in self.layout for number in band]
        if not all(math.isfinite(number) for number in numbers):
            raise ValueError("the model of the accuracy has numbers that are not finite")
        for term in self.terms:
            if term.low >= term.high:
                raise ValueError(f"the range of {term.name} is {term.low} to {term.high}")

    def __call__(self, seen: Mapping[str, float], bands: np.ndarray) -> float:
        """The expected share of right pixels, in (0, 1), by what was observed of the mask.

        ``bands`` (bands, classes): the mean probability of each class in each band.
        """
        values = {**seen, LAYOUT: usualness(bands, np.array(self.layout))}
        logit = self.bias + sum(term.weight * term.share(values[term.name]) for term in self.terms)
        return 1 / (1 + math.exp(-logit))


def usualness(bands: np.ndarray, layout: np.ndarray) -> float:
    """How usual it is to see these classes where they are: a mean log-likelihood, 0 or less."""
    return float((bands * layout).sum() / len(layout))
