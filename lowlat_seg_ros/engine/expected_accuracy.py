"""How many of a mask's pixels are probably right, after the mask is out and in a fraction of a ms.

Observed are the confidence of the network at some of its own cells, where it sees which classes,
how far and for how long features were carried, and what the image is like. The checkpoint has the
model that makes one number of them (docs/expected_accuracy.md).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np

from lowlat_seg_ros.engine.step import Features
from lowlat_seg_ros.frames import Frame, Look

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

#: The second difference across and down: 0 on any plane, and on straight edges along an axis.
LAPLACIAN = np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]], np.float32)

#: The softest and the sharpest temperature of a softmax that :func:`temperature` gives.
SOFTEST, SHARPEST = 20.0, 0.5


@dataclass(frozen=True, eq=False)
class Observed:
    """``values`` by the names that models use, and some ``logits`` of the mask, (classes, n).

    ``bands`` (BANDS, classes): the mean probability of each class from the image's top to its foot.
    """

    values: dict[str, float]
    bands: np.ndarray
    logits: np.ndarray


def observe(features: Features, frame: Frame, index: int, look: Look) -> Observed:
    """What is seen of the mask made from ``features`` of ``frame``, the engine's ``index``-th."""
    some = features.logits[0, :, ::STEP, ::STEP].float()
    logits = some.flatten(1).contiguous().cpu().numpy()
    age_s, distrust = 0.0, 0.0
    if features.trust is not None and features.seen is not None:
        distrust = 1 - float(features.trust[..., ::STEP, ::STEP].mean())
        age_s = features.seen.age_s(frame.stamp_ns, index)
    luma = features.luma
    if luma is None:
        height, width = frame.image.shape[:2]
        small = (max(8, round(width * HEIGHT / height)), HEIGHT)
        image = cv2.resize(frame.image, small, interpolation=cv2.INTER_AREA)
        luma = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    carried = {
        "distrust": distrust,
        "age": math.log1p(max(0.0, age_s)),
        "unchanged": math.log1p(look.unchanged),
    }
    values, bands = of_confidence(logits, some.shape[1])
    return Observed(values | of_image(luma, look.grid) | carried, bands, logits)


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


def of_confidence(logits: np.ndarray, rows: int) -> tuple[dict[str, float], np.ndarray]:
    """Of the softmax of ``logits`` (classes, rows * columns): values, and bands (BANDS, classes).

    The values are the mean of its maximum, as a logit, its mean entropy, and a low quantile.
    """
    below = logits - logits.max(axis=0)
    powers = np.exp(below)
    total = powers.sum(axis=0)
    confidence = 1 / total
    entropy = np.log(total) - np.einsum("cn,cn->n", powers, below) * confidence
    mean = min(float(confidence.mean()), 0.999)
    tenth = len(confidence) // 10
    values = {
        "confidence": math.log(mean / (1 - mean)),
        "entropy": float(entropy.mean()),
        "low_confidence": float(np.partition(confidence, tenth)[tenth]),
    }
    of_rows = (powers * confidence).reshape(len(logits), rows, -1).mean(axis=2)
    starts = np.arange(BANDS) * rows // BANDS
    counts = np.diff([*starts, rows])
    return values, (np.add.reduceat(of_rows, starts, axis=1) / np.maximum(counts, 1)).T


def of_image(luma: np.ndarray, grid: np.ndarray) -> dict[str, float]:
    """Of ``luma``, uint8 (H, W), that of the network's input at half its size, and the ``grid`` of
    pixels of the image, uint8 (R, C, 3).
    """
    near = cv2.absdiff(luma[:, 1:], luma[:, :-1])
    columns = cv2.reduce(near, 0, cv2.REDUCE_AVG, dtype=cv2.CV_32F)[0]
    change = float(columns.mean())
    edges = float(columns[3::4].mean())  # of JPEG's blocks of 8 pixels
    bends = cv2.norm(cv2.filter2D(luma, cv2.CV_16S, LAPLACIAN), cv2.NORM_L1) / luma.size
    first, second, third = cv2.split(grid)
    darkest = cv2.min(cv2.min(first, second), third)
    return {
        "roughness": math.log1p(bends),
        "blocks": (edges + FLAT) / (change + FLAT),
        # Lines that never came, which a driver fills with one value.
        "empty": max(float((cv2.reduce(near, d, cv2.REDUCE_MAX) <= 1).mean()) for d in (0, 1)),
        "white": float((darkest >= WHITE).mean()),
    }
