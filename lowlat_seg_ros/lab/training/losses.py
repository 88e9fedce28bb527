"""What the stages minimise."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from lowlat_seg_ros.frames import IGNORE_LABEL


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
