"""A model of a mask's accuracy, fitted to masks whose accuracy is known, and how well it fits."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from lowlat_seg_ros.frames import IGNORE_LABEL
from lowlat_seg_ros.lab.calibrate.samples import CLEAN, Samples
from lowlat_seg_ros.network.expected_accuracy import LAYOUT, AccuracyModel, Term, temperature

#: Observations that speak for a mask the more, the larger they are (1), or against it (-1).
CONFIDENCE = {"confidence": 1, "entropy": -1, "low_confidence": 1, "distrust": -1, "age": -1}
#: Observations that speak against a mask where they lie above (1) those of clean images, or below.
UNUSUAL = {
    "unchanged": 1, "roughness": 1, "specks": 1, "patchiness": 1, "blocks": 1, "white": 1,
    "empty": 1, LAYOUT: -1,
}  # fmt: skip

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

#: A mask with fewer of its pixels right is bad.
BAD = 0.7

BINS = 15


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


def correlation(expected: np.ndarray, right: np.ndarray) -> float:
    """Pearson's, NaN where there is no spread."""
    if len(right) < 3 or right.std() == 0 or expected.std() == 0:
        return float("nan")
    return float(np.corrcoef(expected, right)[0, 1])


def auroc(expected: np.ndarray, bad: np.ndarray) -> float:
    """How often a bad mask has a lower expected accuracy than another; NaN without both kinds."""
    worse, better = expected[bad], expected[~bad]
    if not len(worse) or not len(better):
        return float("nan")
    lower = worse[:, None] < better
    return float((lower + 0.5 * (worse[:, None] == better)).mean())


def pixel_error(samples: Samples, expected: np.ndarray | None = None) -> float:
    """Expected calibration error of the confidence of pixels, in [0, 1].

    With ``expected`` accuracies their logits are softened as the engine does it.
    """
    confidences, hits = [], []
    for index, (logits, label) in enumerate(zip(samples.logits, samples.label, strict=True)):
        exact = logits.astype(np.float32)
        if expected is not None:
            exact /= temperature(exact, float(expected[index]))
        known = label != IGNORE_LABEL
        powers = np.exp(exact - exact.max(axis=0))
        confidences.append((1 / powers.sum(axis=0))[known])
        hits.append((exact.argmax(axis=0) == label)[known])
    confidence, hit = np.concatenate(confidences), np.concatenate(hits)
    place = np.minimum((confidence * BINS).astype(int), BINS - 1)
    gaps = [abs(hit[place == b].sum() - confidence[place == b].sum()) for b in range(BINS)]
    return float(sum(gaps) / len(hit))


def table(samples: Samples, expected: np.ndarray, unseen: np.ndarray) -> str:
    """A Markdown table by kind of corruption; ``expected`` with all kinds, but not these scenes,
    fitted, and ``unseen`` where the kind was left out too.
    """
    head = (
        "| kind | masks | right, % | expected, % | error of the mean | kind not fitted "
        "| mean of errors | ECE of pixels, as they are | softened |"
    )
    lines = [head, "|---|---|---|---|---|---|---|---|---|"]
    names, counts = np.unique(samples.kind, return_counts=True)
    order = sorted(zip(names, counts, strict=True), key=lambda pair: (pair[0] != CLEAN, pair[0]))
    for name, count in order:
        mine = samples.kind == name
        right, said, blind = samples.right[mine].mean(), expected[mine], unseen[mine]
        of_kind = samples.of(mine)
        before, after = pixel_error(of_kind), pixel_error(of_kind, said)
        lines.append(
            f"| {name} | {count} | {_percent(right)} | {_percent(said.mean())} "
            f"| {100 * (said.mean() - right):+.1f} | {100 * (blind.mean() - right):+.1f} "
            f"| {_percent(np.abs(said - samples.right[mine]).mean())} "
            f"| {_percent(before)} | {_percent(after)} |"
        )
    return "\n".join(lines)


def summary(samples: Samples, expected: np.ndarray) -> str:
    """Correlations and AUROC of some samples, in one line."""
    clean, right = samples.kind == CLEAN, samples.right
    off = (expected - right)[clean].sum() / max(clean.sum(), 1)
    return (
        f"{len(samples)} masks: correlation {correlation(expected, right):.2f}, of clean ones "
        f"{correlation(expected[clean], right[clean]):.2f}, whose expected mean is off by "
        f"{100 * off:+.1f} %; AUROC of fewer than "
        f"{BAD:.0%} right {auroc(expected, right < BAD):.3f}"
    )


def diagram(samples: Samples, expected: np.ndarray, path: Path) -> None:
    """Write a reliability diagram of masks as a PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 5), layout="constrained")
    points, bars = figure.subplots(1, 2)
    for axes in (points, bars):
        axes.plot([0, 1], [0, 1], color="0.6", linewidth=1)
        axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="expected accuracy", ylabel="true accuracy")
        axes.set_aspect("equal")
    clean = samples.kind == CLEAN
    for name, chosen, colour in (("corrupted", ~clean, "#d55e00"), ("clean", clean, "#0072b2")):
        points.plot(
            expected[chosen], samples.right[chosen], ".", color=colour, alpha=0.5, label=name
        )
    points.set_title("each mask")
    points.legend()
    edges = np.linspace(0, 1, 11)
    place = np.minimum((expected * 10).astype(int), 9)
    filled = [b for b in range(10) if (place == b).any()]
    said = [expected[place == b].mean() for b in filled]
    true = [samples.right[place == b].mean() for b in filled]
    bars.bar(edges[filled] + 0.05, true, 0.09, color="#56b4e9", label="true, mean of the bin")
    bars.plot(said, true, "o", color="#0072b2", label="at the mean that was expected")
    for b, height in zip(filled, true, strict=True):
        bars.annotate(str((place == b).sum()), (edges[b] + 0.05, height), ha="center", va="bottom")
    bars.set_title("reliability, with the number of masks")
    bars.legend(loc="upper left")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90)


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"
