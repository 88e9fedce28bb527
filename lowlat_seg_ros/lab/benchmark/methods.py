"""The methods that are compared, in turns and in one process.

They are the full network and DDRNet on every frame, back to back and at the camera's rate, Sl and
AdaptNet alone at that rate, and the engine with Sh idle and Sh saturated.
"""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from torch import Tensor

from lowlat_seg_ros.config import EngineConfig
from lowlat_seg_ros.engine.counters import LiveCounters
from lowlat_seg_ros.engine.cpu_threads import cores, foreground_threads, run_in_temporary_thread
from lowlat_seg_ros.engine.engine import Engine
from lowlat_seg_ros.engine.key_frame import KeyFrame, Pause, Refine
from lowlat_seg_ros.engine.slow_track import ThreadedSlowTrack
from lowlat_seg_ros.frames import MaskKind, Outcome, StageTiming
from lowlat_seg_ros.lab.baselines.ddrnet import DDRNet23Slim
from lowlat_seg_ros.lab.baselines.stream import FullEngine, PerFrameEngine, single_frame
from lowlat_seg_ros.lab.benchmark.timing import Camera, Latency, Run, play
from lowlat_seg_ros.lab.evaluation.comparison import Method
from lowlat_seg_ros.network.segmenter import Segmenter

Progress = Callable[[int], object]

#: Never a key frame: the deviation is a share, and stamps may jump between blocks.
IDLE = EngineConfig(
    key_frame_policy="deviation", deviation_threshold=1.0, max_key_interval=0, max_gap_ms=0.0,
    inference_height=0,
)  # fmt: skip

#: Every frame a key frame, as the engine has it when the scene changes fast: mostly a job waits
#: when one is done. Where Sh is faster than the camera, see :class:`EndlessSlowTrack`.
SATURATED = dataclasses.replace(IDLE, max_key_interval=1)

#: The methods; those without ``_paced`` that run a network on every frame get them back to back.
METHODS = (
    "full", "ddrnet23_slim", "full_paced", "ddrnet23_slim_paced", "single_frame_paced",
    "fast_idle", "fast_busy",
)  # fmt: skip

#: Frames of a method before it is the next one's turn; long enough for several jobs of Sh.
BLOCK = 40

#: Frames that decide how many threads serve a network best.
TRIAL = 5

#: Jobs of Sh that are timed for each block, and that warm it up.
JOBS = 3


class EndlessSlowTrack(ThreadedSlowTrack):
    """The engine's own thread, which does a job again while ``endless`` is set and none waits.

    So it is busy however fast Sh is and however seldom the camera brings a key frame. Each job is
    counted and gated as any other.
    """

    def __init__(
        self, endless: threading.Event, refine: Refine, ledger: LiveCounters, config: EngineConfig
    ) -> None:
        def again(key: KeyFrame, pause: Pause) -> Outcome:
            outcome = refine(key, pause)
            # A key frame that comes at this very instant is superseded: the load is the same.
            if endless.is_set() and not self.state().waiting:
                self.submit(key)
            return outcome

        super().__init__(again, ledger, config)


class FastTrack:
    """The engine with its slow track idle or saturated, by ``network``.

    ``jobs`` and ``found_busy`` belong to the frames of :meth:`busy`: jobs that Sh did meanwhile,
    and whether each frame found Sh busy. Raises ``RuntimeError`` if Sh fails, as masks without it
    cost less than they should.
    """

    def __init__(
        self,
        network: Segmenter,
        camera: Camera,
        rate_hz: float = 0.0,
        priority: str = EngineConfig.foreground_priority,
    ) -> None:
        self.camera, self.rate_hz = camera, rate_hz
        self._idle, self._saturated = (
            dataclasses.replace(config, foreground_priority=priority)
            for config in (IDLE, SATURATED)
        )
        self.jobs, self.found_busy = 0, list[bool]()
        self._endless = threading.Event()
        track = partial(EndlessSlowTrack, self._endless)
        self.engine = Engine(network, self._idle, threshold=1.0, slow_track=track)

    def __enter__(self) -> FastTrack:
        return self

    def __exit__(self, *_: object) -> None:
        self.engine.close()

    def process(self) -> StageTiming:
        """One frame, whose mask must owe something to Sh. The mask itself is not kept."""
        answer = self.engine.process(self.camera.frame())
        if answer.provenance.kind is MaskKind.DEGRADED or answer.counters.failed:
            raise RuntimeError(f"Sh failed, so times mean nothing: {answer.counters.last_failure}")
        return answer.timing

    def idle(self, frames: int, progress: Progress = lambda count: None) -> Run[StageTiming]:
        """Sh has nothing to do."""
        self.engine.reconfigure(self._idle)
        run = play(self.process, frames, self.rate_hz, progress=progress)
        self.drain()
        return run

    def busy(self, frames: int, progress: Progress = lambda count: None) -> Run[StageTiming]:
        """Sh never rests."""
        found: list[bool] = []
        before = 0

        def begin() -> None:
            nonlocal before
            before = self._jobs_done()
            found.clear()

        def step() -> StageTiming:
            state = self.engine.slow_track()
            found.append(state.running or state.waiting)
            return self.process()

        self.engine.reconfigure(self._saturated)
        self._endless.set()
        try:
            run = play(step, frames, self.rate_hz, progress=progress, begin=begin)
            self.jobs += self._jobs_done() - before
            self.found_busy += found
        finally:
            self._endless.clear()
        self.drain()
        return run

    def job_ms(self) -> float:
        """Milliseconds that Sh takes for a key frame while no frame is in the foreground.

        The engine has segmented frames before.
        """
        self.engine.reconfigure(self._saturated)
        run_in_temporary_thread(self.process)
        self.drain()
        return self.engine.slow_track().last_ms

    def drain(self) -> None:
        """Wait until Sh has nothing to do, so that it does not run beside the next method."""
        while self.engine.counters.pending or self.engine.slow_track().running:
            if not self.engine.slow_track().alive:
                raise RuntimeError("the slow track's thread has ended before its work")
            time.sleep(0.001)

    def _jobs_done(self) -> int:
        """Used on their own key frame or carried to a newer one, or too late."""
        counters = self.engine.counters
        return counters.refined + counters.carried + counters.dropped_late


@dataclass(frozen=True)
class MethodResult:
    """``latency`` of frames in to masks out; ``timings`` of each. ``rate_hz``: frames per second.

    ``threads``: CPU threads that it uses at most; ``other_cores``: cores that other processes kept
    busy, which the fast track leaves them. ``control``: of a fixed convolution after each frame.
    """

    latency: Latency
    timings: tuple[StageTiming, ...]
    rate_hz: float
    threads: int
    other_cores: float
    control: Latency

    @classmethod
    def of(cls, run: Run[StageTiming], threads: int) -> MethodResult:
        """What ``run`` measured."""
        timings = tuple(run.answers)
        latency = Latency.of([timing.latency_ms for timing in timings])
        rate_hz, others = len(timings) / run.window_s, run.other_work_s / run.window_s
        control = Latency.of(run.control_ms)
        return cls(latency, timings, rate_hz, threads, others, control)

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
    """``methods`` by name, and what the slow track got done."""

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
    rate_hz: float,
    priority: str,
    progress: Progress,
) -> Comparison:
    """``frames`` frames of each method, in blocks that take turns, so that drifts hit all of them.

    One network serves all methods, so that all have the same optimisations, and one engine both
    states of the slow track. Methods get frames at ``rate_hz``, and ``full`` and ``ddrnet23_slim``
    also back to back. ``priority``: of frames, see ``EngineConfig``; a network on every frame has
    the normal one. ``progress`` is called for each of ``len(METHODS)`` * ``frames`` frames. Raises
    ``RuntimeError`` if Sh fails.
    """

    def alone(image: Tensor) -> Tensor:
        logits: Tensor = ddrnet(image)  # without the auxiliary head, as it is in eval mode
        return logits

    # The segmenter only prepares DDRNet's images.
    full, full_threads = fastest(lambda config: FullEngine(segmenter, config), camera)
    other, other_threads = fastest(
        lambda config: PerFrameEngine(segmenter, alone, MaskKind.FULL, config), camera
    )
    alone_on_frame, own_threads = fastest(partial(single_frame, segmenter), camera)
    runs: dict[str, Run[StageTiming]] = {name: Run() for name in METHODS}
    jobs_ms: list[float] = []
    with FastTrack(segmenter, camera, rate_hz, priority) as fast:
        for _ in range(JOBS):  # Sh warms up as well; on a GPU its second job captures graphs
            fast.busy(TRIAL)
        fast.jobs, fast.found_busy = 0, []
        for start in range(0, frames, BLOCK):
            count = min(BLOCK, frames - start)
            for name, method, rate in (
                ("full", full, 0.0),
                ("ddrnet23_slim", other, 0.0),
                ("full_paced", full, rate_hz),
                ("ddrnet23_slim_paced", other, rate_hz),
                ("single_frame_paced", alone_on_frame, rate_hz),
            ):
                step = partial(_next, method, camera)
                runs[name].add(play(step, count, rate, progress=progress))
            runs["fast_idle"].add(fast.idle(count, progress))
            runs["fast_busy"].add(fast.busy(count, progress))
            jobs_ms += [fast.job_ms() for _ in range(JOBS)]
    own = foreground_threads(IDLE)
    used = (full_threads, other_threads, full_threads, other_threads, own_threads, own, own)
    threads = dict(zip(runs, used, strict=True))
    return Comparison(
        {name: MethodResult.of(run, threads[name]) for name, run in runs.items()},
        Refinements.of(fast.jobs, fast.found_busy, runs["fast_busy"], jobs_ms),
    )


def fastest(make: Callable[[EngineConfig], Method], camera: Camera) -> tuple[Method, int]:
    """A network on every frame with its CPU threads: all cores, or all but one if that is faster.

    Beside other work a team of threads waits for the displaced one: all cores may then be many
    times as slow as one, and a slow baseline would flatter the fast track.
    """
    trials = []
    for threads in sorted({cores(), max(1, cores() - 1)}, reverse=True):
        method = make(EngineConfig(foreground_threads=threads, inference_height=0))
        run = play(partial(_next, method, camera), TRIAL)
        trials.append((float(np.median(run.spent_ms)), method, threads))
    _, method, threads = min(trials, key=lambda trial: trial[0])
    return method, threads


def _next(method: Method, camera: Camera) -> StageTiming:
    return method.process(camera.frame()).timing
