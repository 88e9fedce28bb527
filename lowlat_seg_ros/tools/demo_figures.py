"""What the demo shows of a run: a chart, a picture for each frame of its video, tables."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from matplotlib.axes import Axes
from matplotlib.container import BarContainer
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from rich.console import Console

from lowlat_seg_ros.frames import MaskKind
from lowlat_seg_ros.lab.metrics import Accuracy, Latency, is_key_frame
from lowlat_seg_ros.lab.report import Table, terminal_table
from lowlat_seg_ros.labels import ClassTable, overlay
from lowlat_seg_ros.tools.account import Account, Answer

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

#: Height of a line of the caption, and of its letters, at a picture width of 960 px.
_LINE, _SCALE = 24, 0.45
_WHITE, _GREY, _PINK = (255, 255, 255), (150, 150, 150), (238, 102, 170)


def latency_chart(path: Path, answers: Sequence[Answer], played: int, title: str) -> None:
    """Write a PNG: above, each frame's stages and its age when received; below, its deviation.

    ``answers`` are those of a clip of ``played`` frames, at least one. Key frames are marked.
    """
    figure = Figure(figsize=(12, 7), layout="constrained")
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
    return [answer.index for answer in answers if is_key_frame(answer.segmentation)]


class Storyboard:
    """Pictures for a clip of ``count`` frames of ``size`` (H, W): input, overlay, a caption."""

    def __init__(self, count: int, size: tuple[int, int], table: ClassTable) -> None:
        self._count, self._table = count, table
        self._unit = 2 * size[1] / 960
        self._line = max(1, round(_LINE * self._unit))
        self._legend = self._strip()
        self._draw_legend(self._legend)
        self.size = (size[0] + 3 * self._line, 2 * size[1])

    def picture(self, index: int, image: np.ndarray, answer: Answer | None) -> np.ndarray:
        """uint8 RGB of :attr:`size` for frame ``index``; without an ``answer`` it says so."""
        right = image // 3
        if answer is not None:
            right = overlay(image, answer.segmentation.mask, self._table)
        first, second = self._strip(), self._strip()
        self._write(first, 0.01, f"frame {index + 1} of {self._count}", _WHITE)
        if answer is None:
            self._write(first, 0.17, "no mask: superseded by a newer frame, or lost", _PINK)
        else:
            self._caption(first, second, answer)
        return np.concatenate([np.hstack([image, right]), first, second, self._legend])

    def _caption(self, first: np.ndarray, second: np.ndarray, answer: Answer) -> None:
        source = answer.segmentation.provenance
        origin = source.kind.value
        if source.reset is not None:
            origin += f": {source.reset.value.replace('_', ' ')}"
        if source.key_age_frames:
            exact = "exact" if source.exact else "provisional"
            frames = "1 frame" if source.key_age_frames == 1 else f"{source.key_age_frames} frames"
            origin += f" from {exact} key frame {frames} ({source.key_age_ms:.0f} ms) ago"
        self._write(first, 0.17, origin, _WHITE)
        engine_ms = answer.segmentation.timing.latency_ms
        times = f"engine {engine_ms:.0f} ms, camera to mask {answer.received_ms:.0f} ms"
        self._write(first, 0.66, times, _WHITE)
        selection = answer.segmentation.selection
        if selection is not None:
            relation = ">" if selection.deviation > selection.threshold else "<="
            verdict = f"predicted deviation {selection.deviation:.3f} {relation} "
            self._write(second, 0.17, verdict + f"{selection.threshold:.3f}", _GREY)
            if selection.is_key:
                why = "" if selection.deviation > selection.threshold else ", Sh being idle"
                self._write(second, 0.66, f"becomes the key frame{why}", _PINK)

    def _strip(self) -> np.ndarray:
        return np.zeros((self._line, round(960 * self._unit), 3), np.uint8)

    def _draw_legend(self, strip: np.ndarray) -> None:
        """Swatch and name of each class, as wide as their names ask for."""
        lengths = [len(name) + 3 for name in self._table.names]
        starts = np.cumsum([0, *lengths]) / sum(lengths)
        side = self._line // 2
        for name, colour, start in zip(
            self._table.names, self._table.colours, starts, strict=False
        ):
            left, top = round((0.01 + 0.98 * start) * strip.shape[1]), self._line // 4
            strip[top : top + side, left : left + side] = colour
            self._write(strip, 0.01 + 0.98 * start + 1.3 * side / strip.shape[1], name, _WHITE)

    def _write(
        self, strip: np.ndarray, left: float, text: str, colour: tuple[int, int, int]
    ) -> None:
        """Draw ``text`` from ``left``, a share of the width."""
        corner = round(left * strip.shape[1]), round(0.7 * self._line)
        cv2.putText(strip, text, corner, cv2.FONT_HERSHEY_SIMPLEX, _SCALE * self._unit, colour, 1,
                    cv2.LINE_AA)  # fmt: skip


def print_figures(console: Console, title: str, figures: dict[str, Any], account: Account) -> None:
    """Latency, accuracy and account of a run, of ``figures`` as they stand in summary.json."""
    full = figures["full_network"]
    latencies: dict[str, Latency] = {
        "engine, frame to mask": figures["latency_ms"]["engine"],
        "stamp to mask published": figures["latency_ms"]["published"],
        "stamp to mask received": figures["latency_ms"]["received"],
        "full network per frame": full["latency_ms"],
    }
    scored: dict[str, Accuracy] = {"node": figures["accuracy"], "full network": full["accuracy"]}
    rows = []
    for name, latency in latencies.items():
        steady = latency.steady  # without the first frame, which runs the whole network
        known = (steady.p50, steady.p95, steady.p99, steady.max)
        cells = (f"{value:.1f}" if steady.count else "-" for value in known)
        rows.append((name, *cells, f"{latency.first:.1f}"))
    columns = ("latency in ms", "p50", "p95", "p99", "max", "first frame")
    console.print(terminal_table(Table.plain(columns, rows), title))
    rows = []
    for name, scores in scored.items():
        shares = (scores.miou, scores.pixel_accuracy, scores.class_accuracy, scores.vc8)
        # NaN where there is nothing to score, as for VC8 in a clip that is too short.
        cells = ("-" if share != share else f"{100 * share:.1f}" for share in shares)
        rows.append((name, *cells, str(scores.frames)))
    columns = ("accuracy in %", "mIoU", "pixel", "class", "VC8", "frames scored")
    console.print(terminal_table(Table.plain(columns, rows), ""))

    counters, keys = figures["counters"], figures["key_frames"]
    console.print(f"Frames: {account}")
    console.print(
        f"Key frames: {keys['count']} ({keys['share']:.0%} of the masks), "
        f"{counters.resets} resets; {counters.submitted} were handed to Sh in the background: "
        f"{counters.refined} refined, {counters.carried} carried on, "
        f"{counters.superseded} superseded, "
        f"{counters.dropped_late + counters.dropped_stale} dropped, {counters.failed} failed, "
        f"{counters.pending} pending"
    )
    console.print(f"Measured on {figures['machine']}")
