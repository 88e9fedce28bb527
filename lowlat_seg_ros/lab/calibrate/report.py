"""How well expected accuracies fit the true ones: a table by corruption, and a diagram."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from lowlat_seg_ros.frames import IGNORE_LABEL
from lowlat_seg_ros.lab.calibrate.samples import CLEAN, Samples
from lowlat_seg_ros.network.expected_accuracy import temperature

#: A mask with fewer of its pixels right is bad.
BAD = 0.7

BINS = 15


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
