"""All figures of a benchmark, and the ratios by which the engine is judged."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from lowlat_seg_ros.engine.runner import Captures
from lowlat_seg_ros.lab.benchmark.arithmetic import MultiplyAdds
from lowlat_seg_ros.lab.benchmark.contest import Contest, SideResult
from lowlat_seg_ros.lab.benchmark.freshness import Freshness
from lowlat_seg_ros.lab.benchmark.kernel import Kernel
from lowlat_seg_ros.lab.benchmark.limits import Limits
from lowlat_seg_ros.lab.benchmark.memory import Memory
from lowlat_seg_ros.lab.benchmark.scaling import Resolutions, Rig
from lowlat_seg_ros.lab.evaluation.machine import Machine


@dataclass(frozen=True)
class Facts:
    """What figures mean nothing without.

    ``command``: what was run, without the places of files. ``weights``: name and SHA-256 of the
    checkpoint, or that they are random. ``size``: (H, W) of the frames, ``frames`` of each side.
    ``precision``: what the inner convolutions of all networks run in.
    ``slow_track_threads``: CPU threads of Sh; those of the others stand with their figures.
    ``load_average``: threads of all processes that wanted a core in the minute before;
    ``other_cores``: those that other processes kept busy during the run.
    """

    command: str
    config: str
    weights: str
    size: tuple[int, int]
    frames: int
    rate_hz: float
    device: str
    precision: str
    slow_track_threads: int
    load_average: float
    other_cores: float
    machine: Machine

    @property
    def title(self) -> str:
        """Network, size and frames in a few words."""
        height, width = self.size
        return f"{self.config}, {width}x{height}, {self.frames} frames of each"


@dataclass(frozen=True)
class Bars:
    """The ratios by which the engine is judged; those of latencies are better when small.

    None where a part was not measured. ``propagation_vs_*``: how many times as fast as the other.
    ``linear_deviation``: of the cost over the pixels from a straight line.
    """

    fast_busy_p99_over_full_p50: float | None = None
    fast_busy_p99_over_fast_idle_p50: float | None = None
    fast_busy_p99_over_ddrnet_p50: float | None = None
    refinements_share_of_allowed: float | None = None
    propagation_vs_unfold: float | None = None
    propagation_vs_conv3x3: float | None = None
    propagation_vs_unfold_beside_busy_core: float | None = None
    propagation_vs_conv3x3_beside_busy_core: float | None = None
    linear_deviation: float | None = None

    def measured(self) -> dict[str, float]:
        """Those that are not None, by name."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True)
class Sides:
    """``contest`` of the sides, and the ``memory`` that their process took."""

    contest: Contest
    memory: Memory


@dataclass(frozen=True)
class Kernels:
    """Propagation at the ``paper``'s size and at that of the network ``here``; the ``limits``."""

    paper: Kernel
    here: Kernel
    limits: Limits


@dataclass(frozen=True)
class Benchmark:
    """What was not measured is None, ``cameras`` empty.

    ``graphs``: what CUDA graphs were captured; nothing on a CPU.
    """

    facts: Facts
    multiply_adds: MultiplyAdds
    graphs: Captures
    sides: Sides | None = None
    propagation: Kernels | None = None
    resolutions: Resolutions | None = None
    cameras: tuple[Rig, ...] = ()
    freshness: Freshness | None = None

    @property
    def bars(self) -> Bars:
        """What the figures say."""
        ratios = {}
        if self.sides is not None:
            contest = self.sides.contest
            latency = {name: side.latency for name, side in contest.sides.items()}
            worst = latency["fast_busy"].p99_ms
            ratios = {
                "fast_busy_p99_over_full_p50": worst / latency["full"].p50_ms,
                "fast_busy_p99_over_fast_idle_p50": worst / latency["fast_idle"].p50_ms,
                "fast_busy_p99_over_ddrnet_p50": worst / latency["ddrnet23_slim"].p50_ms,
                "refinements_share_of_allowed": contest.refinements.share_of_allowed,
            }
        if self.propagation is not None:
            paper = self.propagation.paper
            ratios |= {
                "propagation_vs_unfold": paper.alone.vs_unfold,
                "propagation_vs_conv3x3": paper.alone.vs_conv3x3,
                "propagation_vs_unfold_beside_busy_core": paper.beside_busy_core.vs_unfold,
                "propagation_vs_conv3x3_beside_busy_core": paper.beside_busy_core.vs_conv3x3,
            }
        if self.resolutions is not None:
            ratios["linear_deviation"] = self.resolutions.linear_deviation
        return Bars(**ratios)

    def as_json(self) -> dict[str, Any]:
        """For :func:`~lowlat_seg_ros.lab.evaluation.summary.write_json`; units stand in the names.

        What was not measured is not there.
        """
        written: dict[str, Any] = {"facts": asdict(self.facts)}
        if self.sides is not None:
            contest = self.sides.contest
            written |= {name: _side(side) for name, side in contest.sides.items()}
            written |= {
                "ratio_busy_p99": self.bars.fast_busy_p99_over_full_p50,
                "refinements_per_s": contest.refinements.busy_per_s,
                "refinements": asdict(contest.refinements),
                "stages": contest.stages,
                "memory": asdict(self.sides.memory),
            }
        if self.propagation is not None:
            written |= {
                "propagation": _kernel(self.propagation.paper),
                "propagation_here": _kernel(self.propagation.here),
                "limits": asdict(self.propagation.limits),
            }
        if self.resolutions is not None:
            written["resolutions"] = asdict(self.resolutions)
        if self.freshness is not None:
            written["freshness"] = asdict(self.freshness)
        if self.cameras:
            written["cameras"] = [asdict(rig) for rig in self.cameras]
        return written | {
            "multiply_adds": asdict(self.multiply_adds),
            "graphs": asdict(self.graphs),
            "bars": self.bars.measured(),
        }


def _side(side: SideResult) -> dict[str, Any]:
    row = {"rate_hz": side.rate_hz, "threads": side.threads, "other_cores": side.other_cores}
    return asdict(side.latency) | row


def _kernel(kernel: Kernel) -> dict[str, Any]:
    fields = asdict(kernel)
    return fields.pop("alone") | fields
