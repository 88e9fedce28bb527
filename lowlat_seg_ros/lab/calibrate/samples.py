"""Masks whose accuracy is known, of clean and corrupted images, and what the engine saw of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np

from lowlat_seg_ros.config import EngineConfig
from lowlat_seg_ros.engine.engine import Engine
from lowlat_seg_ros.engine.step import Step
from lowlat_seg_ros.frames import IGNORE_LABEL, Frame
from lowlat_seg_ros.lab.data.degrading import BY_NAME, STRENGTHS, corrupted
from lowlat_seg_ros.lab.data.sequence import LabelledFrame
from lowlat_seg_ros.network.expected_accuracy import STEP, Looker
from lowlat_seg_ros.network.segmenter import Segmenter

CLEAN, FROZEN = "clean", "frozen"

#: Kinds of corruption that are the same for all frames of a scene; each frame draws the others.
LASTING = ("fog", "dirt", "channels", "glare", "motion", "drops")

#: Every so many of the logits that were observed are kept, to judge the confidence of pixels.
KEPT = 3

#: Frames of a scene of which a mask is a sample, and frames that Sh takes, one of them a scene.
SAMPLED, DELAYS = (0, 2, 5), (1, 4)

#: Frames of a frozen camera, and those of them that are samples: five strengths.
STUCK, STUCK_SAMPLED = 15, (1, 3, 5, 8, 14)


@dataclass(frozen=True)
class Samples:
    """One mask each (n,): its scene's ``source`` and number, the ``kind`` of corruption, its
    ``strength``, the share of pixels that are ``right``, and what was observed: ``values`` by name,
    ``bands``, and for some pixels their ``logits`` (n, classes, pixels) and ``label`` (n, pixels).
    """

    source: np.ndarray
    scene: np.ndarray
    kind: np.ndarray
    strength: np.ndarray
    right: np.ndarray
    bands: np.ndarray
    logits: np.ndarray
    label: np.ndarray
    values: dict[str, np.ndarray] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.right)

    def of(self, chosen: np.ndarray) -> Samples:
        """Those that are ``chosen``, bool (n,)."""
        values = {name: value[chosen] for name, value in self.values.items()}
        others = {n: v[chosen] for n, v in vars(self).items() if n != "values"}
        return Samples(**others, values=values)


class Collector:
    """Plays scenes, clean and corrupted, through an engine, and keeps what it saw."""

    def __init__(self, segmenter: Segmenter, seed: int) -> None:
        self._net, self._random = segmenter, np.random.default_rng(seed)
        self._rows: list[dict[str, object]] = []

    def scene(self, frames: Sequence[LabelledFrame], source: str, number: int, kinds: int) -> None:
        """``frames``, clean and with so many ``kinds`` of corruption, each of a random strength."""
        place, names = (source, number), list(BY_NAME)
        sampled = [index for index in SAMPLED if index < len(frames)]
        self._play(frames, sampled, (*place, CLEAN, 0.0))
        for kind in self._random.choice(names, kinds, replace=False):
            strength = float(self._random.choice(STRENGTHS))
            seed = int(self._random.integers(2**30))
            seeds = [seed if kind in LASTING else seed + i for i in range(len(frames))]
            worse = [
                dataclasses.replace(f, image=corrupted(f.image, str(kind), strength, own))
                for f, own in zip(frames, seeds, strict=True)
            ]
            self._play(worse, sampled, (*place, str(kind), strength))

    def frozen(self, frames: Sequence[LabelledFrame], source: str, number: int) -> None:
        """The image of the third of ``frames`` again and again, while their labels go on."""
        stuck = [
            dataclasses.replace(f, image=frames[min(i, 2)].image) for i, f in enumerate(frames)
        ]
        chosen = [2 + count for count in STUCK_SAMPLED if 2 + count < len(frames)]
        self._play(stuck, chosen, (source, number, FROZEN, 1.0))

    def samples(self) -> Samples:
        """All so far."""
        columns = {name: np.array([row[name] for row in self._rows]) for name in self._rows[0]}
        split = {n: v for n, v in columns.items() if "/" in n}
        values = {name.removeprefix("values/"): value for name, value in split.items()}
        return Samples(**{n: v for n, v in columns.items() if n not in split}, values=values)

    def _play(
        self,
        frames: Sequence[LabelledFrame],
        sampled: Sequence[int],
        what: tuple[str, int, str, float],
    ) -> None:
        delay, looker = int(self._random.choice(DELAYS)), Looker()
        names = ("source", "scene", "kind", "strength")
        # Each frame may be the key frame. One thread: others of the machine may have work as well.
        config = EngineConfig(foreground_threads=1)
        with Engine.deterministic(self._net, config, threshold=0.0, delay_frames=delay) as engine:
            for index, labelled in enumerate(frames):
                frame = Frame(labelled.image, index * 10**9 // 15, "camera")
                step = engine.segment(frame)
                look = looker.look(frame.image, frame.stamp_ns)
                if index in sampled and (labelled.label != IGNORE_LABEL).any():
                    seen = step.features.observed(step.arrival, look)
                    row = dict(zip(names, what, strict=True)) | _judged(step, labelled.label)
                    row |= {"bands": seen.bands.astype(np.float32)}
                    row |= {f"values/{name}": value for name, value in seen.values.items()}
                    row |= {"logits": seen.logits[:, ::KEPT].astype(np.float16)}
                    self._rows.append(row)
                engine.finish(step)


def _judged(step: Step, label: np.ndarray) -> dict[str, object]:
    """The share of pixels that are right, and the labels of those whose logits are kept."""
    valid = label != IGNORE_LABEL
    rows, columns = step.features.logits.shape[2:]
    # Where the centre of each answer is in the label.
    down, across = (
        ((np.arange(0, cells, STEP) + 0.5) * side / cells).astype(int)
        for cells, side in zip((rows, columns), label.shape, strict=True)
    )
    return {
        "right": float((step.mask == label)[valid].mean()),
        "label": label[np.ix_(down, across)].ravel()[::KEPT],
    }


def rendered(seed: int, size: tuple[int, int], frames: int) -> list[LabelledFrame]:
    """The first ``frames`` frames of a drive, at 15 Hz."""
    from lowlat_seg_ros.lab.data.synthetic import RenderedDrive

    drive = RenderedDrive(seed=seed, frames=frames, rate_hz=15.0, size=size)
    return [drive[index] for index in range(frames)]


def approached(still: LabelledFrame, frames: int = 6) -> list[LabelledFrame]:
    """A still as a scene: views from a little further along the road."""
    height, width = still.label.shape
    views = []
    for step in range(frames):
        closer = cv2.getRotationMatrix2D((width / 2, height / 2), 0, 1 + 0.02 * step)
        image = cv2.warpAffine(still.image, closer, (width, height), flags=cv2.INTER_LINEAR)
        label = cv2.warpAffine(still.label, closer, (width, height), flags=cv2.INTER_NEAREST)
        views.append(dataclasses.replace(still, image=image, label=label))
    return views


def pieces(frames: Sequence[LabelledFrame], length: int) -> Iterator[list[LabelledFrame]]:
    """Consecutive pieces of ``frames``, each of this ``length``."""
    for start in range(0, len(frames) - length + 1, length):
        yield list(frames[start : start + length])
