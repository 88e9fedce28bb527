"""What the stages minimise: the errors against labels, the full network and a teacher."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
import yaml
from torch import Tensor, nn

from lowlat_seg_ros.config import ConfigError
from lowlat_seg_ros.frames import IGNORE_LABEL
from lowlat_seg_ros.labels import ClassTable

#: Weight of the auxiliary loss on Sl + AdaptNet, which makes F_l a good start for the fast track.
AUXILIARY = 0.4
#: Least probability of a teacher's class, so that its logarithm is finite.
LEAST = 1e-4


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
    mass = (
        weights.new_tensor(0.0)
        + torch.cat([weights, weights.new_zeros(1)])[label.clamp(max=weights.numel())].sum()
    )
    return loss / mass.clamp(min=1.0)


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


def mask_of(logits: Tensor, label: Tensor) -> Tensor:
    """Logits (1, classes, h, w) -> class ids (H, W) at the size of ``label`` (H, W)."""
    size = (label.shape[0], label.shape[1])
    return F.interpolate(logits.float(), size, mode="bilinear").argmax(dim=1)[0]


class Teacher:
    """A network of the user's own that ours learn from besides the labels.

    ``program``: from RGB in [0, 1] (N, 3, H, W) to logits (N, its classes, h, w). ``columns``: for
    each of its classes the id of ours, or None where ours has no such class, which is then left out
    of its probabilities.
    """

    def __init__(
        self, program: nn.Module, columns: list[int | None], num_classes: int, device: torch.device
    ) -> None:
        self._program = program
        self._table = torch.zeros(len(columns), num_classes, device=device)
        for theirs, ours in enumerate(columns):
            if ours is not None:
                self._table[theirs, ours] = 1.0

    @classmethod
    def load(cls, path: Path, classes: Path, table: ClassTable, device: torch.device) -> Teacher:
        """An exported program (``torch.export.save``) and the YAML list that names its classes.

        Raises ``ConfigError`` naming the file, the rule and the fix.
        """
        try:
            names = yaml.safe_load(classes.read_text())
            program = torch.export.load(path).module().to(device)
        except Exception as error:
            # torch.export raises whatever is inside of it.
            raise ConfigError(
                f"--teacher {path} with --teacher-classes {classes} cannot be read ({error}); give "
                "a file of torch.export.save and a YAML list"
            ) from error
        known = {name.lower(): number for number, name in enumerate(table.names)}
        if not isinstance(names, list) or not any(names):
            raise ConfigError(
                f"--teacher-classes {classes} must be a list with a name or null for each class"
            )
        unknown = [name for name in names if name is not None and str(name).lower() not in known]
        if unknown:
            raise ConfigError(
                f"--teacher-classes {classes} names {unknown[0]!r}; known: {', '.join(table.names)}"
            )
        columns = [None if name is None else known[str(name).lower()] for name in names]
        return cls(program, columns, len(table.names), device)

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
