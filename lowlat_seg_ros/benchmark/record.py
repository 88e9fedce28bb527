"""All figures of a benchmark, and the ratios by which the engine is judged."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from lowlat_seg_ros.benchmark.arithmetic import MultiplyAdds
from lowlat_seg_ros.benchmark.contest import Contest, SideResult
from lowlat_seg_ros.benchmark.kernel import Kernel
from lowlat_seg_ros.benchmark.limits import Limits
from lowlat_seg_ros.benchmark.memory import Memory
from lowlat_seg_ros.benchmark.scaling import Resolutions, Rig
from lowlat_seg_ros.engine.runner import Captures
from lowlat_seg_ros.evaluation.machine import Machine


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

    ``propagation_vs_*``: how many times as fast as the other. ``linear_deviation``: of the cost
    over the pixels from a straight line.
    """

    fast_busy_p99_over_full_p50: float
    fast_busy_p99_over_fast_idle_p50: float
    fast_busy_p99_over_ddrnet_p50: float
    refinements_share_of_allowed: float
    propagation_vs_unfold: float
    propagation_vs_conv3x3: float
    propagation_vs_unfold_beside_busy_core: float
    propagation_vs_conv3x3_beside_busy_core: float
    linear_deviation: float


@dataclass(frozen=True)
class Benchmark:
    """``kernel`` is measured at the paper's size, ``own_kernel`` at that of the network here.

    ``graphs``: what CUDA graphs were captured; nothing on a CPU.
    """

    facts: Facts
    contest: Contest
    kernel: Kernel
    own_kernel: Kernel
    limits: Limits
    resolutions: Resolutions
    rigs: tuple[Rig, ...]
    memory: Memory
    multiply_adds: MultiplyAdds
    graphs: Captures

    @property
    def bars(self) -> Bars:
        """What the figures say."""
        latency = {name: side.latency for name, side in self.contest.sides.items()}
        worst = latency["fast_busy"].p99_ms
        return Bars(
            fast_busy_p99_over_full_p50=worst / latency["full"].p50_ms,
            fast_busy_p99_over_fast_idle_p50=worst / latency["fast_idle"].p50_ms,
            fast_busy_p99_over_ddrnet_p50=worst / latency["ddrnet23_slim"].p50_ms,
            refinements_share_of_allowed=self.contest.refinements.share_of_allowed,
            propagation_vs_unfold=self.kernel.alone.vs_unfold,
            propagation_vs_conv3x3=self.kernel.alone.vs_conv3x3,
            propagation_vs_unfold_beside_busy_core=self.kernel.beside_busy_core.vs_unfold,
            propagation_vs_conv3x3_beside_busy_core=self.kernel.beside_busy_core.vs_conv3x3,
            linear_deviation=self.resolutions.linear_deviation,
        )

    def as_json(self) -> dict[str, Any]:
        """For :func:`~lowlat_seg_ros.evaluation.summary.write_json`; units stand in the names."""
        return {
            "facts": asdict(self.facts),
            **{name: _side(side) for name, side in self.contest.sides.items()},
            "ratio_busy_p99": self.bars.fast_busy_p99_over_full_p50,
            "refinements_per_s": self.contest.refinements.busy_per_s,
            "refinements": asdict(self.contest.refinements),
            "stages": self.contest.stages,
            "propagation": _kernel(self.kernel),
            "propagation_here": _kernel(self.own_kernel),
            "limits": asdict(self.limits),
            "resolutions": asdict(self.resolutions),
            "cameras": [asdict(rig) for rig in self.rigs],
            "memory": asdict(self.memory),
            "multiply_adds": asdict(self.multiply_adds),
            "graphs": asdict(self.graphs),
            "bars": asdict(self.bars),
        }


def _side(side: SideResult) -> dict[str, Any]:
    row = {"rate_hz": side.rate_hz, "threads": side.threads, "other_cores": side.other_cores}
    return asdict(side.latency) | row


def _kernel(kernel: Kernel) -> dict[str, Any]:
    fields = asdict(kernel)
    return fields.pop("alone") | fields
