"""What the stages minimise: the errors against labels, full network and teacher; and scores."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
import torch.nn.functional as F
import yaml
from torch import Tensor

from lowlat_seg_ros.config import ConfigError
from lowlat_seg_ros.frames import IGNORE_LABEL
from lowlat_seg_ros.lab.metrics import Confusion
from lowlat_seg_ros.labels import ClassTable

#: Weight of the auxiliary loss on Sl + AdaptNet, which makes F_l a good start for the fast track.
AUXILIARY = 0.4
#: Least probability of a teacher's class, so that its logarithm is finite.
LEAST = 1e-4
#: The Jaccard loss looks at one pixel of so many each way.
JACCARD_STRIDE = 3


def class_weights(labels: Tensor, num_classes: int) -> Tensor:
    """Weights (classes,) of mean 1 that favour rare classes: ENet's 1 / ln(c + share), c = 1.1.

    ``labels``: uint8 of any shape; 255 is left out. The constant keeps the ratio of the rarest to
    the commonest class near 4, since mIoU suffers when large classes lose precision.
    """
    counts = torch.bincount(labels.flatten().long(), minlength=256)[:num_classes].float()
    weights = 1.0 / torch.log(1.1 + counts / counts.sum())
    return weights / weights.mean()


def segmentation_loss(logits: Tensor, label: Tensor, weights: Tensor) -> Tensor:
    """Class-weighted cross-entropy at the label's size.

    ``logits`` (N, classes, h, w) are brought to ``label`` (N, H, W) int64 bilinearly, as the engine
    does before its arg max.
    """
    full = F.interpolate(logits.float(), label.shape[1:], mode="bilinear")
    loss = F.cross_entropy(full, label, weights, ignore_index=IGNORE_LABEL, reduction="sum")
    # A crop can be all void; cross_entropy's own mean would then be NaN.
    mass = torch.cat([weights, weights.new_zeros(1)])[label.clamp(max=len(weights))].sum()
    return loss / mass.clamp(min=1.0)


def jaccard_loss(logits: Tensor, label: Tensor) -> Tensor:
    """One minus the mean IoU of the classes in a batch, made continuous: Lovasz-Softmax.

    Berman, Triki, Blaschko, CVPR 2018. Cross-entropy counts pixels, and mIoU classes: a pole is as
    much worth as the road. ``logits`` (N, classes, h, w) are brought to ``label`` (N, H, W) int64
    bilinearly; every ``JACCARD_STRIDE``-th pixel each way is looked at, as sorting them takes long.
    """
    full = F.interpolate(logits.float(), label.shape[1:], mode="bilinear")
    near = (..., slice(None, None, JACCARD_STRIDE), slice(None, None, JACCARD_STRIDE))
    known = label[near] != IGNORE_LABEL
    probabilities = full[near].softmax(dim=1).permute(0, 2, 3, 1)[known]
    truth = label[near][known]
    losses = []
    for own in truth.unique():
        is_own = (truth == own).float()
        errors, order = (is_own - probabilities[:, own]).abs().sort(descending=True)
        sorted_own = is_own[order]
        intersection = is_own.sum() - sorted_own.cumsum(0)
        union = is_own.sum() + (1 - sorted_own).cumsum(0)
        jaccard = 1 - intersection / union  # if all pixels up to here were wrong
        losses.append((errors * jaccard.diff(prepend=jaccard.new_zeros(1))).sum())
    return torch.stack(losses).mean() if losses else full.sum() * 0


def distillation_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean Kullback-Leibler divergence from the full network's classes, (N, classes, h, w) each."""
    log_p = F.log_softmax(student.float(), dim=1)
    q = F.softmax(teacher.float(), dim=1)
    return F.kl_div(log_p, q, reduction="none").sum(dim=1).mean()


def feature_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared error of F_h (N, Ch, H/8, W/8) as a share of each channel's variance."""
    variance = teacher.float().var(dim=(0, 2, 3), keepdim=True).clamp(min=1e-6)
    return ((student.float() - teacher.float()) ** 2 / variance).mean()


def taught_loss(logits: Tensor, teacher: Tensor) -> Tensor:
    """Divergence from a teacher's answer of any size, (N, classes, h, w) each."""
    size = (logits.shape[2], logits.shape[3])
    return distillation_loss(logits, F.interpolate(teacher, size, mode="bilinear"))


def scores(answered: Iterable[tuple[Tensor, dict[str, Tensor]]]) -> dict[str, Confusion]:
    """The confusions of each of the answers by name, pooled over labels (H, W).

    With every label come the named logits (1, classes, h, w) that are judged by it.
    """
    found: dict[str, Confusion] = {}
    for label, answers in answered:
        size = (label.shape[0], label.shape[1])
        for name, logits in answers.items():
            mask = F.interpolate(logits.float(), size, mode="bilinear").argmax(dim=1)[0]
            found.setdefault(name, Confusion(logits.shape[1])).update(label, mask)
    return found


class Teacher:
    """A network of the user's own that ours learn from besides the labels.

    ``path``: an exported program (``torch.export.save``), from RGB in [0, 1] (N, 3, H, W) to logits
    (N, its classes, h, w). ``classes``: the YAML list that has for each of its classes the name of
    ours, or null where ours has no such class, which is then left out of its probabilities. Raises
    ``ConfigError`` naming the file, the rule and the fix.
    """

    def __init__(self, path: Path, classes: Path, table: ClassTable, device: torch.device) -> None:
        try:
            names = yaml.safe_load(classes.read_text())
            self._program = torch.export.load(path).module().to(device)
        except Exception as error:
            # torch.export raises whatever is inside of it.
            raise ConfigError(
                f"--teacher {path} with --teacher-classes {classes} cannot be read ({error}); give "
                "a file of torch.export.save and a YAML list"
            ) from error
        if not isinstance(names, list) or not any(names):
            raise ConfigError(
                f"--teacher-classes {classes} must be a list with a name or null for each class"
            )
        known = {name.lower(): number for number, name in enumerate(table.names)}
        self._table = torch.zeros(len(names), len(table), device=device)  # theirs by ours
        for theirs, name in enumerate(names):
            if name is None:
                continue
            if str(name).lower() not in known:
                raise ConfigError(
                    f"--teacher-classes {classes} names {name!r}; known: {', '.join(table.names)}"
                )
            self._table[theirs, known[str(name).lower()]] = 1.0

    @torch.no_grad()
    def logits(self, image: Tensor) -> Tensor:
        """What it says of RGB images in [0, 1] (N, 3, H, W): log probabilities of our classes.

        (N, classes, h, w) float32. Raises ``ConfigError`` if it has other classes than were named.
        """
        answer = self._program(image).float()
        if answer.ndim != 4 or answer.shape[1] != len(self._table):
            raise ConfigError(
                f"the teacher answers {tuple(answer.shape)} and --teacher-classes names "
                f"{len(self._table)} classes; it must answer (N, classes, h, w)"
            )
        ours = torch.einsum("nchw,cd->ndhw", answer.softmax(dim=1), self._table)
        ours = ours / ours.sum(dim=1, keepdim=True).clamp(min=LEAST)
        return ours.clamp(min=LEAST).log()
