"""A model of a mask's accuracy, fitted to masks whose accuracy is known."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from lowlat_seg_ros.lab.calibrate.samples import CLEAN, Samples
from lowlat_seg_ros.network.expected_accuracy import LAYOUT, AccuracyModel, Term

#: Observations that speak for a mask the more, the larger they are (1), or against it (-1).
CONFIDENCE = {"confidence": 1, "entropy": -1, "low_confidence": 1, "distrust": -1, "age": -1}
#: Observations that speak against a mask where they lie above (1) those of clean images, or below.
UNUSUAL = {"unchanged": 1, "roughness": 1, "blocks": 1, "white": 1, "empty": 1, LAYOUT: -1}

#: Pieces of each function of the confidence, and of the others.
PIECES, UNUSUAL_PIECES = 4, 3

#: Quantiles of clean images that are usual, and of all samples between which functions change.
USUAL, ENDS = (0.01, 0.99), (0.005, 0.995)

#: What each weight costs, squared: few samples cannot then make a large one.
RIDGE = 3e-5

#: Steps on all samples at once, and their size at first.
STEPS, RATE = 500, 0.05

#: Added to how often a class is seen in a band of the image.
RARE = 0.003

#: How much clean masks count: what is said of most frames should be the most exact.
CLEAN_WEIGHT = 3.0

#: Weights of less are left out.
LEAST = 5e-3


def layout_of(samples: Samples) -> np.ndarray:
    """Logarithms (bands, classes) of how often each class is seen, in clean images."""
    often = samples.bands[samples.kind == CLEAN].mean(axis=0) + RARE
    return np.round(np.log(often / often.sum(axis=1, keepdims=True)), 3)


def fit(samples: Samples, counts: np.ndarray) -> AccuracyModel:
    """Fit a model to ``samples``; ``counts`` (n,) is how much each of them counts.

    No weight of the model may have the wrong sign: a mask is never thought better for less
    confidence or an image with more noise. A sample that counts nothing still shows what is usual.
    """
    layout = layout_of(samples)
    values = _with_layout(samples, layout)
    terms, signs = _terms(values, samples.kind == CLEAN)
    shares = torch.from_numpy(_shares(terms, values))
    weights = counts * np.where(samples.kind == CLEAN, CLEAN_WEIGHT, 1.0)
    each = torch.from_numpy(weights / weights.sum())
    target, sign = torch.from_numpy(samples.right), torch.tensor(signs, dtype=torch.float64)
    size = torch.full((len(terms),), 0.1, dtype=torch.float64, requires_grad=True)
    bias = torch.zeros((), dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.Adam([size, bias], RATE)
    schedule = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.01, STEPS)
    for _ in range(STEPS):
        logit = bias + shares @ (size * sign)
        loss = binary_cross_entropy_with_logits(logit, target, each, reduction="sum")
        optimiser.zero_grad()
        (loss + RIDGE * size.square().sum()).backward()
        optimiser.step()
        schedule.step()
        with torch.no_grad():
            size.clamp_(min=0)
    found = zip(terms, (size * sign).tolist(), strict=True)
    kept = tuple(term._replace(weight=round(w, 4)) for term, w in found if abs(w) > LEAST)
    return AccuracyModel(round(bias.item(), 4), kept, tuple(map(tuple, layout.tolist())))


def predict(model: AccuracyModel, samples: Samples) -> np.ndarray:
    """Expected accuracies (n,)."""
    values = _with_layout(samples, np.array(model.layout))
    logit = model.bias + _shares(model.terms, values) @ [term.weight for term in model.terms]
    expected: np.ndarray = 1 / (1 + np.exp(-logit))
    return expected


def _with_layout(samples: Samples, layout: np.ndarray) -> dict[str, np.ndarray]:
    usual = (samples.bands * layout).sum(axis=(1, 2)) / len(layout)
    return {**samples.values, LAYOUT: usual}


def _shares(terms: Sequence[Term], values: dict[str, np.ndarray]) -> np.ndarray:
    spans = [(values[term.name], term.low, term.high) for term in terms]
    return np.stack([np.clip((v - low) / (high - low), 0, 1) for v, low, high in spans], axis=1)


def _terms(values: dict[str, np.ndarray], clean: np.ndarray) -> tuple[list[Term], list[int]]:
    """Pieces of functions, and the sign that the weight of each must have."""
    knots = {
        name: (np.quantile(values[name], np.linspace(*ENDS, PIECES + 1)), sign)
        for name, sign in CONFIDENCE.items()
    }
    for name, side in UNUSUAL.items():
        above = int(side > 0)
        usual = np.quantile(values[name][clean], USUAL)[above]
        end = np.quantile(values[name], ENDS)[above]
        if (end - usual) * side > 1e-3:
            knots[name] = np.sort(np.linspace(usual, end, UNUSUAL_PIECES + 1)), -side
    found = [
        (Term(name, round(float(low), 5), round(float(high), 5), 0.0), sign)
        for name, (edges, sign) in knots.items()
        for low, high in itertools.pairwise(edges)
        if high - low > 1e-4
    ]
    return [term for term, _ in found], [sign for _, sign in found]
