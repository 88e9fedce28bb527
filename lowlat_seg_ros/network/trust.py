"""How far each location trusts the carried answer (beyond the paper).

Features carried for long, or to where something else came into view, are wrong, and then the
frame's own answer is the better one. The gate weighs both, so that late or stale features fade out
instead of misleading. DAVSS (Zhuang et al., TCSVT 2021) and Tamed Warping (Feng et al., 2020)
correct warped features where flow fails; here one number per location says where.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

#: Channels between the gate's two layers.
HIDDEN = 16
#: Age in seconds at which its input is 1: 16 frames at 15 Hz.
AGE_S = 16 / 15
#: Differences of luma are small: a tenth of white is much.
RESIDUAL_SCALE = 8.0


class TrustGate(nn.Module):
    """Two layers per location -> trust in [0, 1] for each of its answers.

    0 stands for the frame's own answer alone, as on a single frame; 1 for the carried one, as
    fusion corrects it.
    """

    def __init__(self, width: int, answers: int, points: int, flow_evidence: bool) -> None:
        """``width``: channels of the fused features; ``answers``: of all classes at all points.

        ``points``: of a location that are answered for; ``flow_evidence`` as in ``NetworkConfig``.
        """
        super().__init__()
        self.points = points
        evidence = 2 + (points if flow_evidence else 0)
        self.first = nn.Conv2d(width + answers + evidence, HIDDEN, 1)
        self.last = nn.Conv2d(HIDDEN, points, 1)

    def forward(self, fused: Tensor, carried: Tensor, own: Tensor, evidence: Tensor) -> Tensor:
        """Trust (N, points, H/8, W/8).

        ``fused`` (N, width, H/8, W/8); ``carried`` and ``own``, the answers as
        :meth:`~.classifier.SubPixel.cells` gives them; ``evidence`` as :func:`evidence_of` does.
        """
        distance = (carried - own).abs()
        kind = distance.dtype
        inputs = [fused.to(kind), distance, evidence.to(kind)]
        trust: Tensor = self.last(self.first(torch.cat(inputs, dim=1)).relu()).sigmoid()
        return trust

    def combine(
        self, fused: Tensor, own: Tensor, carried: Tensor, correction: Tensor, evidence: Tensor
    ) -> Tensor:
        """Own and carried answers, the latter with fusion's ``correction``, weighed by the gate.

        Logits, and the trust as one more plane, (N, classes + 1, r*H/8, r*W/8), r*r being the
        points. Inputs as for :meth:`forward`.
        """
        trust = self(fused, carried, own, evidence)
        cells = torch.cat([weighed(own, correction + carried, trust), trust], dim=1)
        return F.pixel_shuffle(cells, math.isqrt(self.points))


def evidence_of(
    reduced_key: Tensor, reduced: Tensor, age_s: Tensor, residual: Tensor | None = None
) -> Tensor:
    """What speaks against carried features before they are seen, (N, 2, H/8, W/8) float32.

    The mean change of F_l, from the kernel predictor's reductions of both frames
    (N, width, H/8, W/8); and ``age_s`` (N,), the seconds since the frame that Sh has seen, on a
    logarithmic scale. With ``residual`` (N, points, H/8, W/8), see :class:`~.warping.Motion`, that
    many channels more.
    """
    change = (reduced - reduced_key).abs().mean(dim=1, keepdim=True, dtype=torch.float32)
    # 8: the scale on which the first frames differ most.
    age = torch.log1p(8 * age_s.clamp(min=0) / AGE_S) / math.log(9)
    planes = [change, age.view(-1, 1, 1, 1).expand_as(change)]
    if residual is not None:
        planes.append(residual * RESIDUAL_SCALE)
    both = torch.cat(planes, dim=1)
    return both.contiguous(memory_format=torch.channels_last)  # as all that it is put beside


def weighed(own: Tensor, carried: Tensor, trust: Tensor) -> Tensor:
    """Both answers (N, classes*points, h, w) as ``trust`` (N, points, h, w) has it."""
    # Channels are ordered by class, then by point, as ``torch.nn.PixelShuffle`` has them. In NHWC,
    # as everything else is: else each step would copy there and back.
    times = own.shape[1] // trust.shape[1]
    of_classes = trust.permute(0, 2, 3, 1).repeat(1, 1, 1, times).permute(0, 3, 1, 2)
    # Under autocast they are of several types.
    kind = carried.dtype
    return torch.lerp(own.to(kind), carried, of_classes.to(kind))
