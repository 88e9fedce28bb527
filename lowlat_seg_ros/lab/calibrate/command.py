"""The command ``lowlat-seg calibrate``: fit the model, write it into a checkpoint, judge it."""

from __future__ import annotations

import argparse
import dataclasses
import time
from pathlib import Path

import numpy as np
import torch

from lowlat_seg_ros.config import ConfigError
from lowlat_seg_ros.lab.arguments import size
from lowlat_seg_ros.lab.calibrate import fit
from lowlat_seg_ros.lab.calibrate.samples import (
    CLEAN,
    Collector,
    Samples,
    approached,
    pieces,
    rendered,
)
from lowlat_seg_ros.lab.data.camvid import CamVid
from lowlat_seg_ros.lab.data.clip import one_drive
from lowlat_seg_ros.lab.data.sequence import LabelledFrame, Sequence
from lowlat_seg_ros.network import checkpoint, inference
from lowlat_seg_ros.network.segmenter import Segmenter

#: First seed of the rendered drives, which are of no other use.
SEED = 5_000_000

#: Kinds of corruption that are never fitted, but judged.
HELD_OUT = ("drops", "flicker", "glare", "motion")

#: Groups of scenes; each is judged by a model that was fitted to the others.
FOLDS = 4

#: Sources of scenes. Stills were trained on, so that their masks are better than others'.
RENDERED, CLIP, STILLS = "rendered", "clip", "stills"

EPILOG = """\
Run this last, after 'lowlat-seg quantize'; docs/expected_accuracy.md says what the model is for. It
takes the time of --minutes and about one more minute.

examples, CamVid in DIR:
  lowlat-seg calibrate --checkpoint edgetpu.safetensors --root DIR
  lowlat-seg calibrate --checkpoint rendered.safetensors --root DIR --judge-only
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EPILOG
    add = parser.add_argument
    add("--checkpoint", type=Path, required=True, metavar="FILE", help="weights to calibrate")
    add("--out", type=Path, metavar="FILE",
        help="file for the weights with the model (default: the checkpoint itself; its .sha256 "
        "file is then updated, too)")  # fmt: skip
    add("--root", type=Path, metavar="DIR",
        help="CamVid's folder: the model is then also fitted on its val clip and on corrupted "
        "stills of its train split; clean stills are only judged")  # fmt: skip
    add(
        "--judge-only",
        action="store_true",
        help="fit the model without CamVid, and judge it on CamVid",
    )
    add("--only-drive", metavar="NAME",
        help="take stills of this drive of CamVid alone, for a network that was trained without "
        "it")  # fmt: skip
    add("--minutes", type=float, default=9.0, help="time to collect samples (default %(default)s)")
    add("--size", type=size, default=(360, 480), metavar="HxW",
        help="size of the rendered frames (default 360x480)")  # fmt: skip
    add("--seed", type=int, default=0, help="of the samples (default %(default)s)")
    add("--report", type=Path, metavar="DIR", help="write a reliability diagram and tables there")


def run(args: argparse.Namespace) -> int:
    """Collect, fit, write and judge."""
    if args.judge_only and args.root is None:
        raise ConfigError("--judge-only needs --root, the folder of CamVid")
    if args.only_drive is not None and args.root is None:
        raise ConfigError("--only-drive needs --root, the folder of CamVid")
    if not args.minutes > 0:
        raise ConfigError(f"--minutes is {args.minutes}; give it some time")
    header = checkpoint.read_header(args.checkpoint)
    segmenter, _ = inference.load(args.checkpoint, torch.device("cpu"), "auto")
    samples = _collected(segmenter, args)
    counts = _counts(samples)
    known = _known(samples, args.judge_only)
    model = fit.fit(samples.of(known), counts[known])
    out = args.out or args.checkpoint
    checkpoint.with_header(args.checkpoint, dataclasses.replace(header, accuracy=model), out)
    beside = Path(f"{out}{checkpoint.SHA256_SUFFIX}")
    if args.out is None and beside.is_file():
        beside.write_text(f"{checkpoint.sha256(out)}  {out.name}\n")
    fair, unseen = judged(samples, judge_only=args.judge_only)
    text = []
    for source in np.unique(samples.source):
        mine = samples.source == source
        text += [f"{source}: {fit.summary(samples.of(mine), fair[mine])}",
                 f"{source}, kind not fitted: {fit.summary(samples.of(mine), unseen[mine])}",
                 fit.table(samples.of(mine), fair[mine], unseen[mine])]  # fmt: skip
    text.append(f"all: {fit.summary(samples, fair)}")
    never = np.isin(samples.kind, HELD_OUT)
    held_out = fit.summary(samples.of(never), fair[never])
    text.append(f"kinds that were never fitted ({', '.join(HELD_OUT)}): {held_out}")
    print("\n".join(text))
    if args.report is not None:
        args.report.mkdir(parents=True, exist_ok=True)
        (args.report / "calibration.md").write_text("\n\n".join(text) + "\n")
        real = samples.source != RENDERED
        chosen = real if real.any() else ~real
        fit.diagram(samples.of(chosen), fair[chosen], args.report / "reliability.png")
    print(out)
    return 0


def judged(samples: Samples, *, judge_only: bool) -> tuple[np.ndarray, np.ndarray]:
    """Expected accuracies (n,): by models that know neither the scene nor a held-out kind of
    corruption; and by models that do not know any corruption of this kind.
    """
    counts, known = _counts(samples), _known(samples, judge_only)
    fold = (samples.scene + np.unique(samples.source, return_inverse=True)[1]) % FOLDS

    def by_those(others: np.ndarray, mine: np.ndarray) -> np.ndarray:
        chosen = others & known
        return fit.predict(fit.fit(samples.of(chosen), counts[chosen]), samples.of(mine))

    fair = np.empty(len(samples))
    for index in range(FOLDS):
        fair[fold == index] = by_those(fold != index, fold == index)
    unseen = fair.copy()
    for kind in np.unique(samples.kind):
        if kind != CLEAN and kind not in HELD_OUT:
            mine = samples.kind == kind
            unseen[mine] = by_those(~mine, mine)
    return fair, unseen


def _known(samples: Samples, judge_only: bool) -> np.ndarray:
    """bool (n,): which samples a model may know."""
    return ~np.isin(samples.kind, HELD_OUT) & ((samples.source == RENDERED) | (not judge_only))


def _counts(samples: Samples) -> np.ndarray:
    """How much each sample counts (n,): clean stills, which were trained on, only show what images
    are like; under corruption they count half.
    """
    still = samples.source == STILLS
    return np.where(still, np.where(samples.kind == CLEAN, 0.0, 0.5), 1.0)


def _collected(segmenter: Segmenter, args: argparse.Namespace) -> Samples:
    collector, random = Collector(segmenter, args.seed), np.random.default_rng(args.seed)
    clip: list[tuple[int, list[LabelledFrame]]] = []
    stills: Sequence | None = None
    order: list[int] = []
    if args.root is not None:
        video, stills = CamVid(args.root, "val"), CamVid(args.root, "train")
        if args.only_drive is not None:
            _, stills = one_drive("CamVid train", stills, args.only_drive)
        clip = list(enumerate(pieces([video[index] for index in range(len(video))], 6)))
        order = random.permutation(len(stills)).tolist()
    end, number = time.monotonic() + 60 * args.minutes, 0
    while number < FOLDS or time.monotonic() < end:
        seed = SEED + args.seed * 100_000 + number
        if number % 3 == 0:
            frames = rendered(seed, args.size, 18)
            collector.frozen(frames, RENDERED, seed)
        else:
            frames = rendered(seed, args.size, 6)
        collector.scene(frames[:6], RENDERED, seed, kinds=5)
        if stills is not None:
            block, piece = clip[number % len(clip)]
            collector.scene(piece, CLIP, block // 2, kinds=5)
            still = order[number % len(order)]
            collector.scene(approached(stills[still]), STILLS, still, kinds=4)
        number += 1
    return collector.samples()
