"""How good masks are, and how late: accuracy, temporal consistency, change, latency.

Labels and masks are arrays of class ids of any integer type, as numpy arrays or torch tensors on
any device. Pixels labelled 255 are left out everywhere.
"""

from __future__ import annotations

import functools
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from lowlat_seg_ros.engine.timing import Percentiles
from lowlat_seg_ros.frames import IGNORE_LABEL, MaskKind, Segmentation

ClassIds: TypeAlias = np.ndarray | Tensor

#: Of the bootstrap: neighbouring frames that are drawn together, draws, and the share of the draws
#: that an interval holds.
BLOCK, DRAWS, SHARE = 5, 1000, 0.95


class Confusion:
    """One confusion matrix pooled over all frames given to :meth:`update`.

    ``matrix``: int64 (classes, classes + 1) pixel counts, the truth by row, the prediction by
    column; the last column holds labelled pixels predicted as nothing (255), which count as
    misses of the true class. A class that occurs in neither truth nor prediction has no score and
    is left out of the means; one that is only predicted has an IoU of 0. With no labelled pixel at
    all every score is NaN.
    """

    def __init__(self, classes: int) -> None:
        if classes < 1:
            raise ValueError(f"classes is {classes}; it must be at least 1")
        self.classes = classes
        self.matrix = np.zeros((classes, classes + 1), np.int64)

    @classmethod
    def of(cls, *matrices: np.ndarray) -> Confusion:
        """The matrices (classes, classes + 1) of one or more others, pooled."""
        confusion = cls(len(matrices[0]))
        confusion.matrix = np.sum(matrices, axis=0)
        return confusion

    def update(self, label: ClassIds, mask: ClassIds) -> None:
        """Count the pixels of ``mask`` against ``label``, both of one shape.

        ValueError if the shapes differ or an id is neither a class nor 255.
        """
        truth, predicted = _same_shape(label, mask)
        labelled = truth != IGNORE_LABEL
        truth, predicted = truth[labelled], predicted[labelled]
        nothing = predicted == IGNORE_LABEL
        self._check_ids("label", truth)
        self._check_ids("mask", predicted[~nothing])
        predicted = predicted.masked_fill(nothing, self.classes)
        cells = truth * (self.classes + 1) + predicted
        counts = torch.bincount(cells, minlength=self.matrix.size)
        self.matrix += counts.reshape(self.matrix.shape).cpu().numpy()

    def _check_ids(self, name: str, ids: Tensor) -> None:
        strange = ids[(ids < 0) | (ids >= self.classes)]
        if strange.numel():
            raise ValueError(
                f"{name} has the id {int(strange[0])}; ids are 0 to {self.classes - 1} "
                f"and {IGNORE_LABEL} for none"
            )

    @property
    def hits(self) -> np.ndarray:
        """int64 (classes,): labelled pixels predicted as what they are, by class."""
        return np.diagonal(self.matrix)

    @property
    def iou(self) -> np.ndarray:
        """float64 (classes,): TP / (TP + FP + FN) by class, NaN for a class that never occurs."""
        union = self.matrix.sum(axis=1) + self.matrix[:, :-1].sum(axis=0) - self.hits
        return _ratio(self.hits, union)

    @property
    def recall(self) -> np.ndarray:
        """float64 (classes,): TP / (TP + FN) by class, NaN for a class without labelled pixels."""
        return _ratio(self.hits, self.matrix.sum(axis=1))

    @property
    def miou(self) -> float:
        """Mean of :attr:`iou` over the classes that occur, in [0, 1]."""
        return _mean(self.iou)

    @property
    def class_accuracy(self) -> float:
        """Mean of :attr:`recall` over the classes that are labelled, in [0, 1]."""
        return _mean(self.recall)

    @property
    def pixel_accuracy(self) -> float:
        """Share of labelled pixels predicted as what they are, in [0, 1]."""
        return float(_ratio(self.hits.sum(), self.matrix.sum()))


def count_newest(
    confusion: Confusion,
    arrivals: Iterable[tuple[float, np.ndarray]],
    masks: Sequence[np.ndarray],
    out: Sequence[float],
) -> None:
    """Streaming accuracy: count at each of ``arrivals``, a time and a label, the newest mask.

    After Li, Wang, Ramanan, "Towards Streaming Perception" (ECCV 2020). ``out``: when each of the
    ``masks`` was out, in the same unit, ascending. Before the first one all pixels are missed.
    """
    for now, label in arrivals:
        newest = bisect_right(out, now) - 1
        confusion.update(label, fitted(masks[newest] if newest >= 0 else None, label))


def fitted(mask: np.ndarray | None, label: np.ndarray) -> np.ndarray:
    """``mask``, or nothing in all pixels where there is none or it has not the label's size."""
    if mask is not None and mask.shape == label.shape:
        return mask
    return np.full_like(label, IGNORE_LABEL)


class Consistency:
    """VC_n: temporal consistency that counts only where the mask is right, in [0, 1].

    It is the share of pixels, of those whose label is constant over ``length`` consecutive frames,
    whose prediction is that label in all of them, pooled over all windows. It is the video
    consistency of Miao et al. (VSPW, CVPR 2021), whose VC8 most papers report, with correctness
    required besides: otherwise a frozen mask would score 1. Frames are given one by one; only
    counts are kept.
    """

    def __init__(self, length: int = 8) -> None:
        if length < 2:
            raise ValueError(f"length is {length}; it must be at least 2 frames")
        self.length = length
        self.constant_pixels = 0
        self.consistent_pixels = 0
        self.reset()

    def reset(self) -> None:
        """Begin a new drive: no window reaches across. The counts stay."""
        self._label: Tensor | None = None

    def update(self, label: ClassIds, mask: ClassIds) -> None:
        """Take the next frame of the drive; ValueError if the shapes differ."""
        truth, predicted = _same_shape(label, mask)
        labelled, right = truth != IGNORE_LABEL, truth == predicted
        if self._label is None or self._label.shape != truth.shape:
            # For how many frames a pixel has had its label, and has been predicted rightly.
            self._constant, self._right = torch.zeros_like(truth), torch.zeros_like(truth)
            same = torch.zeros_like(labelled)
        else:
            same = self._label == truth
        self._constant = labelled * (same * self._constant + 1)
        self._right = (labelled & right) * (same * self._right + 1)
        self._label = truth
        self.constant_pixels += int((self._constant >= self.length).sum())
        self.consistent_pixels += int((self._right >= self.length).sum())

    @property
    def value(self) -> float:
        """The share so far; NaN while no pixel had one label for ``length`` frames."""
        return float(_ratio(self.consistent_pixels, self.constant_pixels))


def deviation(mask_a: ClassIds, mask_b: ClassIds) -> float:
    """Share of pixels whose label differs between two masks, in [0, 1] (paper Sec. 3.2)."""
    first, second = _same_shape(mask_a, mask_b)
    return float((first != second).double().mean())


def is_key_frame(result: Segmentation) -> bool:
    """Whether the frame became the key frame; that of a full mask is it from the start."""
    chosen = result.selection
    return result.provenance.kind is MaskKind.FULL or (chosen is not None and chosen.is_key)


def _same_shape(label: ClassIds, mask: ClassIds) -> tuple[Tensor, Tensor]:
    """Both as int64 on the device of ``label``."""
    if tuple(label.shape) != tuple(mask.shape):
        raise ValueError(
            f"label is {tuple(label.shape)} and mask {tuple(mask.shape)}; they must have one shape"
        )
    first, second = _ids(label), _ids(mask)
    return first, second.to(first.device)


def _ids(ids: ClassIds) -> Tensor:
    # Converted before torch sees it: torch warns of read-only arrays such as ROS messages give.
    return ids.long() if isinstance(ids, Tensor) else torch.from_numpy(ids.astype(np.int64))


def _ratio(part: ArrayLike, whole: ArrayLike) -> np.ndarray:
    """part / whole, NaN where the whole is 0."""
    with np.errstate(invalid="ignore"):  # 0 / 0, as a part is never above its whole
        return np.divide(part, whole)


def _mean(scores: np.ndarray) -> float:
    """Mean of the scores that exist, NaN if none does."""
    known = scores[~np.isnan(scores)]
    return float(known.mean()) if known.size else float("nan")


@functools.cache
def draws_of(frames: int, seed: int = 0) -> np.ndarray:
    """How often each frame counts in each draw of a bootstrap, int64 (:data:`DRAWS`, frames).

    Frames of a clip are alike, so single frames say less than their number; blocks of neighbours
    are drawn instead (Künsch, "The Jackknife and the Bootstrap for General Stationary
    Observations", Annals of Statistics 1989). All methods have the same draws, so that their
    differences are paired.
    """
    blocks = np.array_split(np.arange(frames), max(1, round(frames / BLOCK)))
    rng = np.random.default_rng(seed)
    counts = np.zeros((DRAWS, frames), np.int64)
    for draw in counts:
        for block in rng.integers(len(blocks), size=len(blocks)):
            draw[blocks[block]] += 1
    return counts


def mious(matrices: Sequence[np.ndarray]) -> np.ndarray:
    """mIoU of each draw, (:data:`DRAWS`,), of ``matrices``, one (classes, classes + 1) a frame."""
    stacked = np.stack(matrices)
    pooled = np.einsum("df,fij->dij", draws_of(len(stacked)), stacked)
    return np.array([Confusion.of(matrix).miou for matrix in pooled])


def interval(values: np.ndarray) -> tuple[float, float]:
    """The middle :data:`SHARE` of ``values``."""
    rest = 50 * (1 - SHARE)
    low, high = np.nanpercentile(values, [rest, 100 - rest])
    return float(low), float(high)


@dataclass(frozen=True)
class Latency:
    """Milliseconds."""

    first: float  # the first frame's, which runs the whole network by design
    steady: Percentiles  # of all frames after it

    @classmethod
    def of(cls, milliseconds: Sequence[float]) -> Latency:
        """Of at least one frame, in order."""
        return cls(milliseconds[0], Percentiles.of(milliseconds[1:]))


@dataclass(frozen=True)
class Accuracy:
    """Scores in [0, 1], NaN where nothing could be scored."""

    frames: int  # those that have a mask
    miou: float
    pixel_accuracy: float
    class_accuracy: float
    vc8: float  # see Consistency; a frame without a mask ends a window
    iou: dict[str, float]


def accuracy(
    labels: Sequence[np.ndarray], masks: Iterable[tuple[int, np.ndarray]], classes: Sequence[str]
) -> Accuracy:
    """Score ``masks``, pairs of a frame's index and its uint8 (H, W) mask, against ``labels``."""
    confusion, consistency = Confusion(len(classes)), Consistency()
    frames, previous = 0, -1
    for index, mask in masks:
        if index != previous + 1:
            consistency.reset()
        confusion.update(labels[index], mask)
        consistency.update(labels[index], mask)
        frames, previous = frames + 1, index
    return Accuracy(
        frames=frames,
        miou=confusion.miou,
        pixel_accuracy=confusion.pixel_accuracy,
        class_accuracy=confusion.class_accuracy,
        vc8=consistency.value,
        iou=dict(zip(classes, confusion.iou.tolist(), strict=True)),
    )
