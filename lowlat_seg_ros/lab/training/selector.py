"""Stage 3: the key-frame selector (paper Sec. 4), and what is chosen on drives that nothing saw.

The selector learns the measured deviation: the share of locations at which the base network's maps
of both frames, as fine as its logits, differ. The base network is frozen, so its features are
computed once and kept. Afterwards rendered drives that nothing was trained on decide on the
threshold, and on how far the gate trusts carried answers: the gate is trained on pairs, most of
them warped stills, whose optical flow is worse than that of a video at 15 Hz, so that it trusts
fresh answers too little. Two numbers, a constant and a share of the age, correct that.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from lowlat_seg_ros.lab.data.sequence import LabelledFrame
from lowlat_seg_ros.lab.metrics import Confusion
from lowlat_seg_ros.lab.training.pairs import carry_all
from lowlat_seg_ros.network.gate import weighed
from lowlat_seg_ros.network.segmenter import STRIDE, Segmenter

#: Frames between those of a pair at the most.
MAX_LAG = 10

#: Thresholds that are tried.
THRESHOLDS = np.linspace(0.0, 0.5, 41)

#: Frames from the one that Sh has seen to the current one; every so many of them one is judged.
LAGS, EVERY = (1, 2, 3, 4, 6, 8, 12, 16), 6
#: What may be added to the logit of the trust; the grid of constants and of shares of the age.
SHIFTS = np.arange(-2.0, 3.01, 0.25)
CONSTANTS, SHARES = np.arange(0.0, 3.01, 0.25), np.arange(-5.0, 0.01, 0.5)


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


@torch.inference_mode()
def key_shares(segmenter: Segmenter, clips: Iterable[Tensor]) -> list[tuple[float, float]]:
    """(threshold, share of key frames) of the selector's schedule, replayed on ``clips``.

    Every clip is uint8 (T, 3, H, W); its first frame counts as a key frame.
    """
    reduced = []
    for clip in clips:
        images = [segmenter.normalise(image[None].float() / 255) for image in clip]
        reduced.append([segmenter.selector.reduce(segmenter.lower(image)) for image in images])
    return [(float(t), _key_share(segmenter, reduced, float(t))) for t in THRESHOLDS]


def _key_share(segmenter: Segmenter, clips: list[list[Tensor]], threshold: float) -> float:
    keys = 0
    for clip in clips:
        key, keys = clip[0], keys + 1
        for frame in clip[1:]:
            if segmenter.selector.deviation(key, frame).item() > threshold:
                key, keys = frame, keys + 1
    return keys / sum(len(clip) for clip in clips)


def threshold_for(curve: list[tuple[float, float]], key_share: float) -> float:
    """The lowest threshold whose share of key frames is at most ``key_share``."""
    return next((threshold for threshold, share in curve if share <= key_share), curve[-1][0])


@torch.inference_mode()
def calibrate_gate(
    segmenter: Segmenter, drives: Sequence[Sequence[LabelledFrame]]
) -> dict[str, float]:
    """Set the calibration of the gate of ``segmenter`` to what gives the best masks on ``drives``.

    That is the mean over all lags of the mIoU, at the answers' own resolution. Returns both
    numbers, and that mean before and after.
    """
    gate, config = segmenter.gate, segmenter.config
    assert gate is not None
    gate.calibration.zero_()
    pairs = [(d[t - lag], d[t], lag) for d in drives for lag in LAGS
             for t in range(lag, len(d), EVERY)]  # fmt: skip
    confusion = {(lag, shift): Confusion(config.num_classes) for lag in LAGS for shift in SHIFTS}
    ages = {}
    points = config.classifier_upsampling
    step = STRIDE // points
    for key, now, lag in tqdm(pairs, desc="calibrating the gate", unit="pair"):
        own, carried, logit, ages[lag] = _answers(segmenter, key, now)
        label = now.label[step // 2 :: step, step // 2 :: step]
        for shift in SHIFTS:
            cells = weighed(own, carried, (logit + float(shift)).sigmoid())
            mask = F.pixel_shuffle(cells, points).argmax(dim=1)[0].to(torch.uint8).cpu().numpy()
            mask = np.ascontiguousarray(mask[: label.shape[0], : label.shape[1]])
            confusion[lag, shift].update(label, mask)
    miou = np.array([[confusion[lag, shift].miou for shift in SHIFTS] for lag in LAGS])

    def mean(constant: float, share: float) -> float:
        shifts = [constant + share * ages[lag] for lag in LAGS]
        found = [np.interp(shift, SHIFTS, row) for shift, row in zip(shifts, miou, strict=True)]
        return float(np.mean(found))

    best = max(((c, s) for c in CONSTANTS for s in SHARES), key=lambda pair: mean(*pair))
    gate.calibration.copy_(torch.tensor(best))
    return {
        "gate_constant": float(best[0]),
        "gate_share_of_age": float(best[1]),
        "gate_miou_before": mean(0.0, 0.0),
        "gate_miou": mean(*best),
    }


def _answers(
    net: Segmenter, key: LabelledFrame, now: LabelledFrame
) -> tuple[Tensor, Tensor, Tensor, float]:
    """Own and carried answers (1, classes*r*r, H/8, W/8), logit of the trust, age as evidence."""
    device = next(net.parameters()).device
    arrays = np.stack([key.image, now.image]).transpose(0, 3, 1, 2)
    images = torch.from_numpy(arrays).to(device).float() / 255
    both = net.normalise(images).contiguous(memory_format=torch.channels_last)
    low = net.lower(both)
    high = net.higher(net.source(both[:1], low[:1]))
    seconds = torch.tensor([(now.stamp_ns - key.stamp_ns) / 1e9], device=device)
    carried, answers, known = carry_all(net, low.chunk(2), high, images.chunk(2), seconds)
    assert answers is not None
    assert known is not None
    own, logit = net.judge(carried, low[1:], known, answers, net.predictor.reduce(low[1:]))
    return own, answers, logit, float(known[0, 1, 0, 0])
