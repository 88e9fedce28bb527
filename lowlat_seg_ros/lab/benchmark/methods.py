"""The methods that are compared, in turns and in one process.

They are the full network and DDRNet on every frame, back to back and at the camera's rate, Sl and
AdaptNet alone at that rate, and the engine with Sh idle and Sh saturated.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from lowlat_seg_ros.config import EngineConfig
from lowlat_seg_ros.engine.cpu_threads import cores, foreground_threads
from lowlat_seg_ros.engine.openvino import HELPED
from lowlat_seg_ros.engine.runner import runtime_of
from lowlat_seg_ros.frames import MaskKind, StageTiming
from lowlat_seg_ros.lab.baselines.ddrnet import DDRNet23Slim
from lowlat_seg_ros.lab.baselines.stream import (
    FullEngine,
    PerFrameEngine,
    SingleFrameEngine,
    Stream,
)
from lowlat_seg_ros.lab.benchmark.timing import (
    BLOCK,
    IDLE,
    Camera,
    FastTrack,
    Latency,
    Progress,
    Run,
    Settings,
    play,
)
from lowlat_seg_ros.lab.evaluation.comparison import Method
from lowlat_seg_ros.network.segmenter import Segmenter

#: The methods that get frames back to back, and those that get them at the camera's rate.
BACK_TO_BACK = ("full", "ddrnet23_slim")
PACED = ("full_paced", "ddrnet23_slim_paced", "single_frame_paced", "fast_idle", "fast_busy")

#: Frames that decide how many threads serve a network best.
TRIAL = 5

#: Jobs of Sh that are timed for each block, and that warm it up.
JOBS = 3


@dataclass(frozen=True)
class MethodResult:
    """``latency`` of frames in to masks out; ``timings`` of each. ``rate_hz``: frames per second.

    ``threads``: CPU threads that it uses at most; ``other_cores``: cores that other processes kept
    busy, which the fast track leaves them. ``control``: of a fixed convolution after each frame.
    ``late``: share of the frames whose mask was out later than the next frame was due, and not
    ``excused``: their control took more than twice its median, so the machine itself was slow.
    Frames back to back are never late.
    """

    latency: Latency
    timings: tuple[StageTiming, ...]
    rate_hz: float
    threads: int
    other_cores: float
    control: Latency
    late: float
    excused: float

    @classmethod
    def of(cls, run: Run[StageTiming], threads: int, paced_hz: float) -> MethodResult:
        """What ``run`` measured, with frames at ``paced_hz``; 0 for frames back to back."""
        timings = tuple(run.answers)
        latency = Latency.of([timing.latency_ms for timing in timings])
        rate_hz, others = len(timings) / run.window_s, run.other_work_s / run.window_s
        control = Latency.of(run.control_ms)
        restless = np.array(run.control_ms) > 2 * control.p50_ms
        period_ms = 1e3 / paced_hz if paced_hz else float("inf")
        late = np.array([timing.latency_ms for timing in timings]) > period_ms
        return cls(
            latency, timings, rate_hz, threads, others, control,
            late=float((late & ~restless).mean()), excused=float((late & restless).mean()),
        )  # fmt: skip

    def stages(self) -> dict[str, Latency]:
        """Those that were run, by the field of StageTiming."""
        names = [item.name for item in dataclasses.fields(StageTiming) if item.name != "latency_ms"]
        values = {name: [getattr(timing, name) for timing in self.timings] for name in names}
        return {name: Latency.of(ms) for name, ms in values.items() if any(ms)}


@dataclass(frozen=True)
class Refinements:
    """What the slow track gets done.

    ``busy_per_s``: jobs done per second while the camera runs and the slow track never rests;
    ``idle_per_s``: the same without any frame, from ``job``, the time of one. ``idle_time_share``:
    share of the time with the camera in which no frame was in the foreground; ``allowed_per_s`` is
    what it would allow, ``share_of_allowed`` what was reached (above 1 where Sh also runs beside
    frames). ``saturated_share``: share of the frames that found Sh busy.
    """

    busy_per_s: float
    idle_per_s: float
    idle_time_share: float
    allowed_per_s: float
    share_of_allowed: float
    saturated_share: float
    job: Latency

    @classmethod
    def of(
        cls, jobs: int, found_busy: Sequence[bool], run: Run[StageTiming], jobs_ms: Sequence[float]
    ) -> Refinements:
        """``jobs`` done during ``run``, and the times of single jobs without frames."""
        busy_per_s, idle_per_s = jobs / run.window_s, 1e3 / float(np.mean(jobs_ms))
        idle_share = 1 - sum(run.spent_ms) / 1e3 / run.window_s
        allowed = idle_per_s * idle_share
        return cls(
            busy_per_s=busy_per_s,
            idle_per_s=idle_per_s,
            idle_time_share=idle_share,
            allowed_per_s=allowed,
            share_of_allowed=busy_per_s / allowed if allowed > 0 else float("nan"),
            saturated_share=float(np.mean(found_busy)),
            job=Latency.of(jobs_ms),
        )


@dataclass(frozen=True)
class Comparison:
    """``methods`` by name, with a camera of ``rate_hz``, and what the slow track got done."""

    rate_hz: float
    methods: dict[str, MethodResult]
    refinements: Refinements

    @property
    def stages(self) -> dict[str, dict[str, Latency]]:
        """Of the full network and of the fast track, slow track idle."""
        return {"full": self.methods["full"].stages(), "fast": self.methods["fast_idle"].stages()}


def compare(
    segmenter: Segmenter,
    ddrnet: DDRNet23Slim,
    camera: Camera,
    frames: int,
    rates_hz: Sequence[float],
    settings: Settings,
    progress: Progress,
) -> tuple[Comparison, ...]:
    """``frames`` frames of each method, in blocks that take turns, so that drifts hit all of them.

    One network serves all methods, so that all have the same optimisations, and one engine both
    states of the slow track. Methods get frames at each of ``rates_hz``, and ``full`` and
    ``ddrnet23_slim`` also back to back. ``settings``: the fast track's; a network on every frame
    has what is fastest for it. ``progress`` is called for each of :func:`steps` frames. Raises
    ``RuntimeError`` if Sh fails.
    """

    # The segmenter only prepares DDRNet's images.
    makers: dict[str, Callable[[EngineConfig], Stream]] = {
        "full": lambda config: FullEngine(segmenter, config),
        "ddrnet23_slim": lambda config: PerFrameEngine(segmenter, ddrnet, MaskKind.FULL, config),
        "single_frame": lambda config: SingleFrameEngine(segmenter, config),
    }
    asked = settings["runtime"]  # auto falls back to PyTorch for what OpenVINO does not compile
    runtimes = ["pytorch"]
    if runtime_of(segmenter, asked) != "pytorch":
        runtimes.insert(0, asked)
    found = {name: fastest(make, camera, runtimes) for name, make in makers.items()}
    on_every_frame = {name: partial(_next, method, camera) for name, (method, _) in found.items()}
    back_to_back: dict[str, Run[StageTiming]] = {name: Run() for name in BACK_TO_BACK}
    at_rate = {rate: _AtRate() for rate in rates_hz}
    with FastTrack(segmenter, camera, settings=settings) as fast:
        for _ in range(JOBS):  # Sh warms up as well; on a GPU its second job captures graphs
            fast.busy(TRIAL)
        for start in range(0, frames, BLOCK):
            count = min(BLOCK, frames - start)
            for name, run in back_to_back.items():
                run.add(play(on_every_frame[name], count, progress=progress))
            for rate_hz, here in at_rate.items():
                for name, step in on_every_frame.items():
                    run = play(step, count, rate_hz, progress=progress)
                    here.runs[f"{name}_paced"].add(run)
                here.fast_track(fast, rate_hz, count, progress)
    threads = {name: used for name, (_, used) in found.items()}
    threads |= {f"{name}_paced": used for name, used in threads.items()}
    threads |= dict.fromkeys(("fast_idle", "fast_busy"), foreground_threads(IDLE))
    always = {name: MethodResult.of(run, threads[name], 0.0) for name, run in back_to_back.items()}
    return tuple(
        Comparison(
            rate_hz,
            always
            | {name: MethodResult.of(r, threads[name], rate_hz) for name, r in here.runs.items()},
            Refinements.of(here.jobs, here.found_busy, here.runs["fast_busy"], here.jobs_ms),
        )
        for rate_hz, here in at_rate.items()
    )


def steps(frames: int, rates: int) -> int:
    """Frames that :func:`compare` processes at so many rates."""
    return frames * (len(BACK_TO_BACK) + rates * len(PACED))


@dataclass
class _AtRate:
    """What was measured so far with a camera of one rate."""

    runs: dict[str, Run[StageTiming]] = field(
        default_factory=lambda: {name: Run() for name in PACED}
    )
    jobs: int = 0
    found_busy: list[bool] = field(default_factory=list)
    jobs_ms: list[float] = field(default_factory=list)

    def fast_track(self, fast: FastTrack, rate_hz: float, frames: int, progress: Progress) -> None:
        fast.rate_hz, fast.jobs, fast.found_busy = rate_hz, 0, []
        self.runs["fast_idle"].add(fast.idle(frames, progress))
        self.runs["fast_busy"].add(fast.busy(frames, progress))
        self.jobs += fast.jobs
        self.found_busy += fast.found_busy
        self.jobs_ms += [fast.job_ms() for _ in range(JOBS)]


def steady(
    segmenter: Segmenter,
    camera: Camera,
    frames: int,
    rate_hz: float,
    settings: Settings,
    progress: Progress,
) -> MethodResult:
    """``fast_busy`` alone, for ``frames`` frames in a row: how seldom a mask is late.

    Raises ``RuntimeError`` if Sh fails.
    """
    with FastTrack(segmenter, camera, rate_hz, settings) as fast:
        for _ in range(JOBS):
            fast.busy(TRIAL)
        return MethodResult.of(fast.busy(frames, progress), foreground_threads(IDLE), rate_hz)


def fastest(
    make: Callable[[EngineConfig], Method], camera: Camera, runtimes: Sequence[str]
) -> tuple[Method, int]:
    """A network on every frame, by the fastest of ``runtimes``, with its CPU threads.

    These are all cores, or all but one: beside other work a team of threads waits for the displaced
    one, and may be many times as slow as one thread. OpenVINO has two or one, as in the engine. A
    slow baseline would flatter the fast track.
    """
    trials, most = [], cores()
    for name in runtimes:
        counts = {min(HELPED, most), 1} if name != "pytorch" else {most, max(1, most - 1)}
        for threads in sorted(counts, reverse=True):
            config = EngineConfig(foreground_threads=threads, inference_height=0, runtime=name)
            method = make(config)
            run = play(partial(_next, method, camera), TRIAL)
            trials.append((float(np.median(run.spent_ms)), method, threads))
    _, method, threads = min(trials, key=lambda trial: trial[0])
    return method, threads


def _next(method: Method, camera: Camera) -> StageTiming:
    return method.process(camera.frame()).timing
