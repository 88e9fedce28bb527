"""What the charts of a comparison have in common."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from lowlat_seg_ros.lab.evaluation.catalogue import Spec
from lowlat_seg_ros.lab.evaluation.run import Result

#: Colours that also differ for the colour-blind (Tol's bright scheme); ours, and those of others.
OURS, OTHERS, PER_FRAME, VARIANTS = "#aa3377", "#4477aa", "#666666", "#228833"
MARKERS = "osD^vP*Xph<>d"


@dataclass(frozen=True)
class Entry:
    """A method and what it achieved."""

    spec: Spec
    result: Result

    @property
    def in_sweep(self) -> bool:
        """Whether it is one of many that differ in a number, which have charts of their own."""
        return self.spec.name.startswith(("schedule_", "adaptive_low_latency_"))


def new_axes(inches: tuple[float, float], title: str) -> tuple[Figure, Axes]:
    """A figure with one chart."""
    figure = Figure(figsize=inches, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.set_title(title, loc="left", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.2)
    return figure, axes


def save(figure: Figure, axes: Axes, path: Path) -> None:
    """Write the figure, with its legend beside the chart, where it hides nothing."""
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, fontsize=8)
    figure.savefig(path, dpi=110)
