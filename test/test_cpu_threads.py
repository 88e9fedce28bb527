"""CPU threads of frames: as many as cores are free, and one less where Sh is starved."""

import dataclasses
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lowlat_seg_ros.config import EngineConfig
from lowlat_seg_ros.engine import cpu_threads
from lowlat_seg_ros.engine.counters import LiveCounters
from lowlat_seg_ros.engine.cpu_threads import (
    CALM_S,
    HOPELESS,
    LOOK_S,
    TRIAL,
    WAITED_S,
    WARM_UP,
    ExternalCpuLoad,
    ForegroundThreads,
    Trial,
    cores,
    foreground_threads,
    frame_priority,
    give_way,
    gives_way,
    realtime_allowed,
    run_in_temporary_thread,
)
from lowlat_seg_ros.engine.engine import Engine
from lowlat_seg_ros.engine.key_frame import KeyFrame, Pause
from lowlat_seg_ros.engine.preprocess import plan
from lowlat_seg_ros.engine.slow_track import STARVED_S, Gate, ThreadedSlowTrack
from lowlat_seg_ros.engine.timing import measure
from lowlat_seg_ros.frames import Frame, Outcome
from lowlat_seg_ros.network import inference
from lowlat_seg_ros.network.layers import num_threads
from lowlat_seg_ros.network.segmenter import Segmenter

WAIT_S = 30.0  # far beyond what anything here takes; a test that needs it has failed
AUTO = EngineConfig()
URGENT = EngineConfig(foreground_priority="realtime")


def account(stat: Path, busy_s: float) -> Path:
    """Linux' account of one core that this process may use."""
    ticks = round(busy_s * os.sysconf("SC_CLK_TCK"))
    stat.write_text(f"cpu{min(os.sched_getaffinity(0))} {ticks} 0 0 0 0 0 0 0 0 0\n")
    return stat


def alone(config: EngineConfig) -> ForegroundThreads:
    frames = ForegroundThreads(config)
    frames.ignore_others()
    return frames


class Clock:
    """Seconds, as the test says."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s

    def advance(self, seconds: float) -> None:
        self.now_s += seconds


@pytest.mark.parametrize(("gain", "threads"), [(0.5, 4), (0.84, 4), (0.86, 1), (1.4, 1)])
def test_more_threads_are_kept_only_where_the_first_frames_gain_by_them(
    gain: float, threads: int
) -> None:
    trial, used = Trial(4), []
    for frame in range(WARM_UP + 2 * TRIAL):
        used.append(trial.threads)
        slow_start = 10.0 if frame < WARM_UP else 0.0
        trial.add(used[-1], slow_start + (gain if used[-1] == 4 else 1.0))
    tries = TRIAL if gain < 1 else HOPELESS  # no frame more than needed is slow
    assert used == [1] * (WARM_UP + TRIAL) + [4] * tries + [1] * (TRIAL - tries)
    assert trial.threads == threads
    trial.add(1, 0.001)  # what comes later changes nothing
    assert trial.threads == threads


@pytest.mark.skipif(foreground_threads(AUTO) == 1, reason="a frame has one thread anyway")
def test_frames_of_another_height_are_measured_by_themselves(tmp_path: Path) -> None:
    clock, trials = Clock(), {}
    frames = ForegroundThreads(AUTO, tmp_path / "none", clock, trials)
    frames.at_height(360)
    assert frames.count(starved=False) == 1
    for _ in range(WARM_UP + TRIAL):
        with frames.until_mask(starved=False):
            clock.advance(0.001)
    assert frames.count(starved=False) == foreground_threads(AUTO)  # which are tried now
    frames.at_height(720)
    assert frames.count(starved=False) == 1
    assert frames.full() == foreground_threads(AUTO)  # Sh is not light
    other = ForegroundThreads(AUTO, tmp_path / "none", clock, trials)  # of the same network
    other.at_height(360)
    assert other.count(starved=False) == foreground_threads(AUTO)


def test_what_is_measured_at_the_start_spares_the_frames(
    tiny: Segmenter, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Beside other programs frames get fewer threads than are to be tried, and the trial goes on.
    monkeypatch.setattr(ExternalCpuLoad, "cores", lambda load: 0.0)
    measure(tiny, AUTO, (48, 64))
    asked = list[int]()
    with Engine(tiny, AUTO, threshold=1.0) as engine:
        for index in range(6):
            engine.process(Frame(np.zeros((48, 64, 3), np.uint8), index * 10**8))
            asked.append(engine._threads._trial.threads)
    assert len(set(asked)) == 1  # nothing is tried any more


@pytest.fixture
def more_threads_pay(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the first frames had shown it."""
    monkeypatch.setattr(Trial, "threads", property(lambda trial: trial._most))


@pytest.mark.usefixtures("more_threads_pay")
def test_a_frame_leaves_the_cores_that_other_processes_use(tmp_path: Path) -> None:
    stat, clock = account(tmp_path / "stat", 0), Clock()
    frames = ForegroundThreads(AUTO, stat, clock)
    assert frames.count(starved=False) == foreground_threads(AUTO)
    account(stat, 1e6)  # more than there are cores
    clock.advance(LOOK_S)
    assert frames.count(starved=False) == 1
    clock.advance(LOOK_S)
    assert frames.count(starved=False) == 1  # they may be back any moment
    clock.advance(CALM_S)
    assert frames.count(starved=False) == foreground_threads(AUTO)


@pytest.mark.usefixtures("more_threads_pay")
def test_a_burst_of_others_takes_no_core_from_frames_that_come_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu_threads, "raise_priority", lambda: True)
    monkeypatch.setattr(cpu_threads, "lower_priority", lambda: None)
    stat, clock = account(tmp_path / "stat", 0), Clock()
    frames = ForegroundThreads(URGENT, stat, clock)
    for busy_s, count in ((1e6, foreground_threads(AUTO)), (2e6, 1)):
        with frames.until_mask(starved=False):
            account(stat, busy_s)
        clock.advance(LOOK_S)
        assert frames.count(starved=False) == count


@pytest.mark.usefixtures("more_threads_pay")
def test_all_cores_are_free_where_nobody_knows(tmp_path: Path) -> None:
    clock = Clock()
    frames = ForegroundThreads(AUTO, tmp_path / "none", clock)
    clock.advance(LOOK_S)
    assert frames.count(starved=False) == foreground_threads(AUTO)


@pytest.mark.usefixtures("more_threads_pay")
@pytest.mark.skipif(foreground_threads(AUTO) == 1, reason="a frame has one thread anyway")
def test_a_frame_that_waits_for_its_threads_continues_on_one(tmp_path: Path) -> None:
    clock = Clock()
    with num_threads(2):
        frames = ForegroundThreads(AUTO, tmp_path / "none", clock)
        with frames.until_mask(starved=False):
            frames.relieve()
            assert torch.get_num_threads() == foreground_threads(AUTO)
            clock.advance(2 * WAITED_S)
            frames.relieve()
            assert torch.get_num_threads() == 1


@pytest.mark.parametrize("adapts", [True, False])
def test_threads_that_are_set_or_must_not_vary_stay(adapts: bool) -> None:
    clock = Clock()
    with num_threads(2):
        frames = ForegroundThreads(EngineConfig(foreground_threads=2 * adapts), clock=clock)
        if not adapts:
            frames.ignore_others()
        with frames.until_mask(starved=False):
            before = torch.get_num_threads()
            clock.advance(2 * WAITED_S)
            frames.relieve()
            assert torch.get_num_threads() == before


def test_masks_do_not_depend_on_threads(
    tiny: Segmenter, make_frame: Callable[..., Frame], monkeypatch: pytest.MonkeyPatch
) -> None:
    def masks(config: EngineConfig) -> list[np.ndarray]:
        # One key frame, so that Sh has nothing to do; what the engine sets ends with it.
        config = dataclasses.replace(config, key_frame_policy="deviation")
        with num_threads(1), Engine(tiny, config, threshold=1.0) as engine:
            return [engine.process(make_frame(index)).mask for index in range(4)]

    expected = masks(EngineConfig(foreground_threads=1))
    assert np.array_equal(masks(EngineConfig(foreground_threads=cores())), expected)
    monkeypatch.setattr(cpu_threads, "WAITED_S", -1.0)  # each frame finds itself waiting
    assert np.array_equal(masks(AUTO), expected)


@pytest.mark.usefixtures("more_threads_pay")
def test_a_starved_slow_track_is_left_its_cores() -> None:
    frames = alone(AUTO)
    left = foreground_threads(AUTO) - AUTO.slow_track_threads * gives_way(AUTO)
    assert frames.count(starved=True) == max(1, left)
    assert frames.count(starved=False) == foreground_threads(AUTO)


def test_threads_that_are_set_stay(tmp_path: Path) -> None:
    stat, clock = account(tmp_path / "stat", 0), Clock()
    frames = ForegroundThreads(EngineConfig(foreground_threads=3), stat, clock)
    account(stat, 1e6)
    clock.advance(LOOK_S)
    assert frames.count(starved=True) == 3


@pytest.mark.parametrize("priority", ["idle", "normal"])
def test_a_frame_with_sh_uses_no_more_than_the_cores(priority: str) -> None:
    frames = alone(EngineConfig(slow_track_priority=priority))
    frames.count(starved=False)
    assert frames.full() == cores()


def test_only_the_slow_track_gives_way() -> None:
    seen: dict[str, int] = {}
    empty = torch.empty(0)
    key = KeyFrame(empty, empty, empty, empty, None, plan((8, 8), 0), 0, 0, 0, exact=False)
    for priority in ("idle", "normal"):
        config, ended = EngineConfig(slow_track_priority=priority), threading.Event()

        def look(job: KeyFrame, pause: Pause, name: str = priority) -> Outcome:
            seen[name] = os.sched_getscheduler(0)
            ended.set()  # noqa: B023 - waited for before the next one is made
            return Outcome.REFINED

        track = ThreadedSlowTrack(look, LiveCounters(), config)
        track.submit(key)
        assert ended.wait(WAIT_S)
        assert track.close(WAIT_S)
    own = os.sched_getscheduler(0)
    idle = os.SCHED_IDLE if gives_way(EngineConfig(slow_track_priority="idle")) else own
    assert seen == {"idle": idle, "normal": own}


def test_a_thread_that_gives_way_still_runs() -> None:
    ran: list[float] = []

    def body() -> None:
        give_way()
        ran.append(float(torch.ones(10).sum()))

    thread = threading.Thread(target=body, daemon=True)
    thread.start()
    thread.join(WAIT_S)
    assert ran == [10.0]


def tasks() -> set[int]:
    """This process's threads."""
    return {int(task) for task in os.listdir("/proc/self/task")}


def policy() -> int:
    """Scheduling class of the calling thread."""
    return os.sched_getscheduler(0)


@pytest.mark.parametrize("priority", ["realtime", "normal"])
def test_a_frame_and_its_team_are_urgent_as_set_and_nothing_after_it(
    tiny: Segmenter, make_frame: Callable[..., Frame], priority: str
) -> None:
    """Where that is allowed; elsewhere frames are as without."""
    config = EngineConfig(foreground_priority=priority, foreground_threads=2)
    seen: list[int] = []

    def body() -> None:
        with Engine(tiny, config, threshold=1.0) as engine:
            before = tasks()

            def look(*_: object) -> None:
                torch.ones(2**20).add_(1)  # starts the team, if nothing has
                team = tasks() - before
                assert team
                seen.extend(os.sched_getscheduler(task) for task in {0, *team})

            tiny.high_classifier.register_forward_hook(look)
            step = engine.segment(make_frame(0))
            assert policy() == os.SCHED_OTHER
            engine.finish(step)
            assert policy() == os.SCHED_OTHER

    urged = priority == "realtime" and realtime_allowed()
    run_in_temporary_thread(body)
    assert set(seen) == {os.SCHED_RR if urged else os.SCHED_OTHER}


def test_urgency_ends_with_an_error_and_a_class_of_its_own_is_kept() -> None:
    frames, seen = alone(AUTO), list[int]()

    def body() -> None:
        give_way()
        with frames.until_mask(starved=False):
            seen.append(policy())
        seen.append(policy())

    run_in_temporary_thread(body)
    assert seen == [os.SCHED_IDLE, os.SCHED_IDLE]
    with pytest.raises(ZeroDivisionError), frames.until_mask(starved=False):
        raise ZeroDivisionError
    assert policy() == os.SCHED_OTHER


@pytest.mark.parametrize(("given", "left"), [(0, 1), (2, 2)])
def test_once_the_mask_is_out_its_delivery_has_a_core(given: int, left: int) -> None:
    """The selector, which comes after it, is content with one thread; what the user sets stays."""
    frames, seen = alone(EngineConfig(foreground_threads=given)), list[int]()

    def body() -> None:
        with frames.until_mask(starved=False):
            pass
        before = torch.get_num_threads()
        with frames.after_mask():
            seen.extend((policy(), torch.get_num_threads()))
        assert torch.get_num_threads() == before

    run_in_temporary_thread(body)
    assert seen == [os.SCHED_OTHER, left]


def test_a_frame_that_takes_long_is_urgent_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    frames = ForegroundThreads(URGENT)
    urged = os.SCHED_RR if realtime_allowed() else os.SCHED_OTHER
    with frames.until_mask(starved=False):
        frames.relieve()
        assert policy() == urged
        monkeypatch.setattr(cpu_threads, "URGENT_S", 0.0)
        frames.relieve()
        assert policy() == os.SCHED_OTHER
    with frames.until_mask(starved=False):
        assert policy() == urged


def test_a_priority_that_is_refused_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    for allowed, said in ((True, "realtime"), (False, "normal, as realtime is refused")):
        monkeypatch.setattr(cpu_threads, "realtime_allowed", lambda allowed=allowed: allowed)
        assert frame_priority(URGENT) == said
        assert frame_priority(AUTO) == "normal"


def test_loading_leaves_no_team_to_the_frames(
    weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[threading.Thread] = []
    load = inference.load

    def look(*arguments: Any) -> Any:
        seen.append(threading.current_thread())
        return load(*arguments)

    monkeypatch.setattr(inference, "load", look)
    Engine.from_checkpoint(weights).close()
    assert len(seen) == 1
    assert not seen[0].is_alive()


def test_what_runs_apart_leaves_no_thread_behind() -> None:
    seen: list[threading.Thread] = []

    def body() -> float:
        seen.append(threading.current_thread())
        return float(torch.ones(10).sum())

    assert run_in_temporary_thread(body) == 10.0
    assert seen[0] is not threading.current_thread()
    assert not seen[0].is_alive()
    with pytest.raises(ZeroDivisionError):
        run_in_temporary_thread(lambda: 1 // 0)


def test_an_interrupt_does_not_wait_for_what_it_may_leave_behind() -> None:
    gate, seen = threading.Event(), []

    def body() -> None:
        seen.append(threading.current_thread())
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        gate.wait(WAIT_S)

    with pytest.raises(KeyboardInterrupt):
        run_in_temporary_thread(body, interruptible=True)
    assert seen[0].is_alive()
    gate.set()
    seen[0].join(WAIT_S)


def test_a_job_without_a_core_is_starved() -> None:
    clock = Clock()
    door = Gate(min_share=0.9, clock=clock)
    assert not door.starved()  # there is no job
    door.begin_job()
    clock.advance(0.9 * STARVED_S)
    assert not door.starved()  # it may just have come at a bad moment
    clock.advance(0.2 * STARVED_S)
    assert door.starved()
    door.min_share = 0.0
    assert not door.starved()
    door.min_share = 0.9
    door.end_job()
    assert not door.starved()
