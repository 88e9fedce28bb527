"""Charts of a run, drawn without a display."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.container import BarContainer
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lowlat_seg_ros.frames import MaskKind
from lowlat_seg_ros.lab.evaluation.summary import Answer

#: Stages that make up a frame's latency, in the order in which they run: name and colour.
STAGES = {
    "preprocess_ms": ("resize, normalise", "#bbbbbb"),
    "lower_ms": ("Sl, lower network", "#4477aa"),
    "higher_ms": ("Sh, higher network", "#222255"),
    "predictor_ms": ("kernel predictor", "#66ccee"),
    "propagation_ms": ("propagation", "#228833"),
    "fusion_ms": ("AdaptNet, fusion, classifier", "#ccbb44"),
    "postprocess_ms": ("to full size, arg max", "#ee8866"),
}
_KEY, _END_TO_END = "#aa3377", "black"


def latency_chart(path: Path, answers: Sequence[Answer], played: int, title: str) -> None:
    """Write a PNG: above, each frame's stages and its age when received; below, its deviation.

    ``answers`` are those of a clip of ``played`` frames, at least one. Key frames are marked.
    """
    figure = Figure(figsize=(12, 7), layout="constrained")
    FigureCanvasAgg(figure)
    stages, selection = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    _draw_stages(stages, answers, played)
    _draw_selection(selection, answers)
    for axes in (stages, selection):
        for index in _key_frames(answers):
            axes.axvline(index, color=_KEY, linewidth=0.8, linestyle=":", zorder=0)
        axes.spines[["top", "right"]].set_visible(False)
    stages.set_title(title, loc="left", pad=12)
    selection.xaxis.set_major_locator(MaxNLocator(integer=True))
    selection.set_xlim(-0.7, played - 0.3)
    selection.set_xlabel("frame of the clip")
    figure.savefig(path, dpi=110)


def _draw_stages(axes: Axes, answers: Sequence[Answer], played: int) -> None:
    index = [answer.index for answer in answers]
    bottom = np.zeros(len(answers))
    for stage, (name, colour) in STAGES.items():
        height = np.array([getattr(a.segmentation.timing, stage) for a in answers])
        if height.any():
            axes.bar(index, height, bottom=bottom, width=0.8, color=colour, label=name)
        bottom += height
    received = [answer.received_ms for answer in answers]
    axes.plot(index, received, ".", color=_END_TO_END, label="camera stamp to mask received")
    top = _top(answers)
    axes.set_ylim(0, top)
    for answer in answers:
        if answer.received_ms > top:
            result = answer.segmentation
            times = f"{result.timing.latency_ms:.0f} ms, received after {answer.received_ms:.0f} ms"
            _note_above(axes, answer.index, f"{result.provenance.kind.value}: {times}")
    missing = sorted(set(range(played)) - set(index))
    if missing:
        axes.plot(missing, np.full(len(missing), top * 0.01), "x", color="red", clip_on=False,
                  label="no mask")  # fmt: skip
    keys = _key_frames(answers)
    axes.plot(keys, np.full(len(keys), top), "v", color=_KEY, clip_on=False, label="key frame")
    axes.set_ylabel("ms")
    handles, _ = axes.get_legend_handles_labels()
    bars = [handle for handle in handles if isinstance(handle, BarContainer)]
    marks = [handle for handle in handles if not isinstance(handle, BarContainer)]
    # The stages as they are stacked, the last one above.
    _legend(axes, handles=[*marks, *reversed(bars)])


def _top(answers: Sequence[Answer]) -> float:
    """End of the axis: full masks, several times slower, must not press down the others."""
    usual = [a for a in answers if a.segmentation.provenance.kind is MaskKind.PROPAGATED]
    return 1.25 * max(
        max(a.received_ms, a.segmentation.timing.latency_ms) for a in usual or answers
    )


def _note_above(axes: Axes, index: int, text: str) -> None:
    axes.annotate(
        text, (index + 0.5, 0.97), xycoords=("data", "axes fraction"), rotation=90, va="top",
        ha="left", fontsize=8, bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
    )  # fmt: skip


def _draw_selection(axes: Axes, answers: Sequence[Answer]) -> None:
    chosen = [(a.index, a.segmentation.selection) for a in answers if a.segmentation.selection]
    index = [number for number, _ in chosen]
    axes.plot(index, [s.deviation for _, s in chosen], ".-", color="#4477aa", linewidth=1,
              label="predicted deviation")  # fmt: skip
    axes.step(index, [s.threshold for _, s in chosen], where="mid", color=_KEY, linestyle="--",
              label="threshold")  # fmt: skip
    keys = [(number, s.deviation) for number, s in chosen if s.is_key]
    axes.plot(
        *zip(*keys, strict=True) if keys else ((), ()), "o", color=_KEY, label="new key frame"
    )
    axes.set_ylim(bottom=0)
    axes.set_ylabel("share of pixels")
    _legend(axes)


def _legend(axes: Axes, **options: Any) -> None:
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, **options)


def _key_frames(answers: Sequence[Answer]) -> list[int]:
    """Frames that became the key frame: chosen by the selector, or the first of an epoch."""
    found = []
    for answer in answers:
        result = answer.segmentation
        chosen = result.selection is not None and result.selection.is_key
        if chosen or result.provenance.kind is MaskKind.FULL:
            found.append(answer.index)
    return found
