"""Stage 3: the key-frame selector, regressing the measured deviation (paper Sec. 4).

The target is the share of locations at which the base network's maps of both frames, as fine as its
logits, differ. The base network is frozen, so its features are computed once and kept.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from lowlat_seg_ros.network.segmenter import Segmenter

#: Frames between those of a pair at the most.
MAX_LAG = 10


@dataclass(frozen=True)
class DeviationBank:
    """Low-level features of frames in half precision and the pairs (key, current, deviation)."""

    low: Tensor  # (frames, Cl, h, w)
    pairs: Tensor  # int64 (pairs, 2): indices into ``low``
    deviation: Tensor  # float32 (pairs,)


@torch.inference_mode()
def deviation_bank(
    segmenter: Segmenter, clips: Iterable[Tensor], dtype: torch.dtype
) -> DeviationBank:
    """Run the frozen base network over ``clips``, each uint8 (T, 3, H, W) of consecutive frames.

    All pairs up to :data:`MAX_LAG` frames apart are kept, in both directions of time.
    """
    lows: list[Tensor] = []
    pairs: list[tuple[int, int]] = []
    deviations: list[float] = []
    for clip in tqdm(list(clips), desc="deviation", unit="clip"):
        first, masks = len(lows), []
        for image in clip:
            with torch.autocast(image.device.type, dtype, enabled=dtype != torch.float32):
                seen = segmenter.normalise(image[None].float() / 255)
                low = segmenter.lower(seen)
                high = segmenter.higher(segmenter.source(seen, low))
                masks.append(segmenter.classify_high(high).argmax(dim=1)[0])
            lows.append(low[0].half())
        for k in range(len(masks)):
            for t in range(max(0, k - MAX_LAG), min(len(masks), k + MAX_LAG + 1)):
                pairs.append((first + k, first + t))
                deviations.append(float((masks[k] != masks[t]).float().mean()))
    device = lows[0].device
    deviation = torch.tensor(deviations, device=device)
    return DeviationBank(torch.stack(lows), torch.tensor(pairs, device=device), deviation)


class SelectorStage:
    """Cross-entropy between predicted and measured deviation, a soft target in [0, 1]."""

    name = "selector"

    def __init__(self, segmenter: Segmenter, data: DeviationBank, held_out: DeviationBank) -> None:
        self.segmenter, self.data, self.held_out = segmenter, data, held_out
        # Begin at the usual deviation: the optimiser would take long to move the bias there.
        usual = data.deviation.mean().clamp(1e-3, 1 - 1e-3)
        with torch.no_grad():
            segmenter.selector.unit.bias.copy_(usual.logit())

    def trained(self) -> list[list[torch.nn.Module]]:
        return [[self.segmenter.selector]]

    def loss(self, batch_size: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        """Loss of a batch of pairs."""
        count, device = len(self.data.pairs), self.data.low.device
        index = torch.randint(count, (batch_size,), generator=generator, device=device)
        logit, target = self._logit(self.data, index), self.data.deviation[index]
        error = (logit.sigmoid() - target).abs().mean().item()
        return F.binary_cross_entropy_with_logits(logit, target), {"error": error}

    def _logit(self, data: DeviationBank, index: Tensor) -> Tensor:
        low = data.low[data.pairs[index].T.flatten()].float()
        key, current = self.segmenter.selector.reduce(low).chunk(2)
        return self.segmenter.selector(key, current).float()

    def evaluate(self) -> dict[str, float]:
        """Mean absolute error and correlation of the held-out deviations."""
        indices = torch.arange(len(self.held_out.pairs), device=self.held_out.low.device)
        logits = [self._logit(self.held_out, chunk) for chunk in indices.split(16)]
        predicted, target = torch.cat(logits).sigmoid(), self.held_out.deviation
        correlation = np.corrcoef(predicted.cpu().numpy(), target.cpu().numpy())[0, 1]
        error = float((predicted - target).abs().mean())
        return {"error": error, "correlation": float(correlation)}
