"""How many of a mask's pixels are probably right: what is observed, and the model that judges it.

Observed, after the mask is out and in a fraction of a millisecond, are the confidence of the
network at some of its own cells, where it sees which classes, how far and for how long features
were carried, and what the image is like. A checkpoint may have a model that makes one number of
them (docs/expected_accuracy.md); ``lowlat-seg calibrate`` fits it.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
from torch import Tensor

from lowlat_seg_ros.frames import Look

#: The grid of pixels that is looked at has about so many rows and columns.
ROWS, COLUMNS = 32, 48

#: Every so many of the network's answers are looked at, in both directions.
STEP = 2

#: The image's height is divided into so many bands, whose classes are looked at.
BANDS = 9

#: Height in px of the luma that is judged where the network has none.
HEIGHT = 180

#: Steps of 255, added so that nothing is divided by zero where an image is flat.
FLAT = 0.3

#: Pixels no darker than this in all channels are saturated.
WHITE = 247

#: A pixel of the luma that differs by more than this from the median around it stands out.
STANDS_OUT = 32

#: A second difference; across and down: 0 on any plane, and on straight edges along an axis.
BEND = np.array([1, -2, 1], np.float32)

#: The softest and the sharpest temperature of a softmax that :func:`temperature` gives.
SOFTEST, SHARPEST = 20.0, 0.5

#: The name that terms have for :func:`usualness`.
LAYOUT = "layout"


class Looker:
    """Looks at the images of one camera, in order; used by one thread at a time.

    That is done once a frame for all who judge the image: the model here, and the node's monitor.
    """

    def __init__(self) -> None:
        self._last: tuple[np.ndarray, int, Look] | None = None  # image, its stamp, the look at it

    def look(self, image: np.ndarray, stamp_ns: int) -> Look:
        """At ``image``, uint8 (H, W, 3) RGB, taken at ``stamp_ns``."""
        # Odd distances: so it sees every second row, whichever it is.
        height, width = image.shape[:2]
        grid = image[:: height // ROWS | 1, :: width // COLUMNS | 1].copy()
        look = Look(grid, self._unchanged(image, grid, stamp_ns))
        self._last = image, stamp_ns, look
        return look

    def _unchanged(self, image: np.ndarray, grid: np.ndarray, stamp_ns: int) -> int:
        if self._last is None:
            return 0
        before, before_ns, look = self._last
        if stamp_ns == before_ns:
            return look.unchanged
        # The whole image is compared only where the grid is the same.
        same = np.array_equal(grid, look.grid) and np.array_equal(image, before)
        return look.unchanged + 1 if same else 0


@dataclass(frozen=True, eq=False)
class Observed:
    """``values`` by the names that models use, and some ``logits`` of the mask, (classes, n).

    ``bands`` (BANDS, classes): the mean probability of each class from the image's top to its foot.
    """

    values: dict[str, float]
    bands: np.ndarray
    logits: np.ndarray


def observe(
    image: np.ndarray,
    look: Look,
    logits: Tensor,
    luma: np.ndarray | None,
    trust: Tensor | None = None,
    age_s: float = 0.0,
) -> Observed:
    """What is seen of a mask: of its ``image``, uint8 (H, W, 3) RGB, and the ``look`` at it.

    ``logits`` (1, classes, h, w) gave the mask; ``luma``: that of the network's input, see
    :func:`.warping.luma_of`, where the network has one. ``trust`` (1, 1, h, w) is that in answers
    carried for ``age_s`` seconds; None where nothing was carried.
    """
    some = _some(logits)
    seen = some.reshape(len(some), -1)
    if luma is None:
        height, width = image.shape[:2]
        size = (max(8, round(width * HEIGHT / height)), HEIGHT)
        small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        luma = cv2.cvtColor(small, cv2.COLOR_RGB2GRAY)
    carried = {
        "distrust": 0.0 if trust is None else 1 - float(_some(trust).mean()),
        "age": math.log1p(max(0.0, age_s)),
        "unchanged": math.log1p(look.unchanged),
    }
    pictured = of_image(luma, look.grid)
    values, bands = of_confidence(seen, some.shape[1], pictured["empty"])
    return Observed(values | pictured | carried, bands, seen)


def _some(answers: Tensor) -> np.ndarray:
    """Every so many of ``answers`` (1, n, h, w): float32 (n, h/STEP, w/STEP)."""
    if answers.is_cuda:  # the fewer bytes leave the GPU
        return answers[0, :, ::STEP, ::STEP].float().cpu().numpy()
    return answers.float().numpy()[0, :, ::STEP, ::STEP]


def temperature(logits: np.ndarray, expected: float) -> float:
    """By what ``logits`` (classes, n) must be divided for a mean confidence of ``expected``.

    One temperature for all pixels (Guo et al., "On Calibration of Modern Neural Networks", ICML
    2017), chosen for each mask by itself.
    """
    low, high = math.log(SHARPEST), math.log(SOFTEST)
    below = logits - logits.max(axis=0)
    for _ in range(10):  # to within 0.4 %
        middle = (low + high) / 2
        confidence = float((1 / np.exp(below * math.exp(-middle)).sum(axis=0)).mean())
        low, high = (middle, high) if confidence > expected else (low, middle)
    return math.exp((low + high) / 2)


def of_confidence(
    logits: np.ndarray, rows: int, empty: float = 0.0
) -> tuple[dict[str, float], np.ndarray]:
    """Of the softmax of ``logits`` (classes, rows * columns): values, and bands (BANDS, classes).

    The values are the mean of its maximum, as a logit, its mean entropy, and a low quantile. An
    ``empty`` share of the image's lines never came: whatever the network says there is a guess.
    """
    below = logits - logits.max(axis=0)
    powers = cv2.exp(below)
    total = powers.sum(axis=0)
    confidence = 1 / total
    entropy = np.log(total) - np.einsum("cn,cn->n", powers, below) * confidence
    came = 1 - empty
    mean = min(max(float(confidence.mean()) * came, 0.001), 0.999)
    tenth = len(confidence) // 10
    values = {
        "confidence": math.log(mean / (1 - mean)),
        "entropy": float(entropy.mean()) * came + math.log(len(logits)) * empty,
        "low_confidence": float(np.partition(confidence, tenth)[tenth]) * came,
    }
    each = confidence.reshape(rows, -1)
    of_rows = np.einsum("crn,rn->cr", powers.reshape(len(logits), *each.shape), each)
    starts, counts = _bands(rows)
    return values, (np.add.reduceat(of_rows, starts, axis=1) / (counts * each.shape[1])).T


@functools.cache
def _bands(rows: int) -> tuple[np.ndarray, np.ndarray]:
    """The first row of each band, and how many it has; int64 (BANDS,) both."""
    starts = np.arange(BANDS) * rows // BANDS
    return starts, np.maximum(np.diff([*starts, rows]), 1)


def of_image(luma: np.ndarray, grid: np.ndarray) -> dict[str, float]:
    """Of ``luma``, uint8 (H, W), that of the network's input at half its size, and the ``grid`` of
    pixels of the image, uint8 (R, C, 3).
    """
    near = cv2.absdiff(luma[:, 1:], luma[:, :-1])
    columns = cv2.reduce(near, 0, cv2.REDUCE_AVG, dtype=cv2.CV_32F)[0]
    change = float(columns.sum()) / len(columns)
    border = columns[3::4]  # of JPEG's blocks of 8 pixels
    edges = float(border.sum()) / max(1, len(border))
    bends = cv2.sepFilter2D(luma, cv2.CV_16S, BEND, BEND)
    mean, square = (cv2.norm(bends, kind) / luma.size for kind in (cv2.NORM_L1, cv2.NORM_L2SQR))
    apart = cv2.absdiff(luma, cv2.medianBlur(luma, 3))
    _, outliers = cv2.threshold(apart, STANDS_OUT, 255, cv2.THRESH_BINARY)
    lines = near.max(axis=0), near.max(axis=1)
    saturated = cv2.inRange(grid, (WHITE,) * 3, (255,) * 3)
    return {
        "roughness": math.log1p(mean),
        "specks": cv2.countNonZero(outliers) / outliers.size,
        # Where detail is in some places only, dirt may hide the others.
        "patchiness": math.log((math.sqrt(square) + FLAT) / (mean + FLAT)),
        "blocks": (edges + FLAT) / (change + FLAT),
        # Lines that never came, which a driver fills with one value.
        "empty": max(np.count_nonzero(most <= 1) / len(most) for most in lines),
        "white": cv2.countNonZero(saturated) / saturated.size,
    }


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
