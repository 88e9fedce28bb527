"""CPU threads of frames: as many as cores are free, and one less where Sh is starved."""

import dataclasses
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lowlat_seg_ros.config import EngineConfig
from lowlat_seg_ros.engine import gate, threads
from lowlat_seg_ros.engine.cache import KeyFrame
from lowlat_seg_ros.engine.device import (
    apart,
    cores,
    foreground_threads,
    give_way,
    gives_way,
    lower_priority,
    raise_priority,
    use_threads,
)
from lowlat_seg_ros.engine.device import threads as use
from lowlat_seg_ros.engine.engine import Engine
from lowlat_seg_ros.engine.gate import Gate
from lowlat_seg_ros.engine.ledger import Ledger
from lowlat_seg_ros.engine.refine import Pause
from lowlat_seg_ros.engine.resize import plan
from lowlat_seg_ros.engine.shared import ThreadedSlowTrack
from lowlat_seg_ros.engine.threads import LOOK_S, WAITED_S, ForegroundThreads
from lowlat_seg_ros.frames import Frame, Outcome, Segmentation
from lowlat_seg_ros.network import inference
from lowlat_seg_ros.network.segmenter import Segmenter

WAIT_S = 30.0  # far beyond what anything here takes; a test that needs it has failed
AUTO = EngineConfig()


def account(stat: Path, busy_s: float) -> Path:
    """Linux' account of one core that this process may use."""
    ticks = round(busy_s * os.sysconf("SC_CLK_TCK"))
    stat.write_text(f"cpu{min(os.sched_getaffinity(0))} {ticks} 0 0 0 0 0 0 0 0 0\n")
    return stat


def alone(config: EngineConfig) -> ForegroundThreads:
    frames = ForegroundThreads(config)
    frames.ignore_others()
    return frames


def test_a_frame_leaves_the_cores_that_other_processes_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stat = account(tmp_path / "stat", 0)
    frames = ForegroundThreads(AUTO, stat)
    assert frames.count(starved=False) == foreground_threads(AUTO)
    account(stat, 1e6)  # more than there are cores
    time.sleep(LOOK_S)
    assert frames.count(starved=False) == 1
    time.sleep(LOOK_S)
    assert frames.count(starved=False) == 1  # they may be back any moment
    monkeypatch.setattr(threads, "CALM_S", 0.0)
    time.sleep(LOOK_S)
    assert frames.count(starved=False) == foreground_threads(AUTO)


def test_a_burst_of_others_takes_no_core_from_frames_that_come_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threads, "LOOK_S", 0.0)
    monkeypatch.setattr(threads, "raise_priority", lambda: True)
    monkeypatch.setattr(threads, "lower_priority", lambda: None)
    stat = account(tmp_path / "stat", 0)
    frames = ForegroundThreads(AUTO, stat)
    for busy_s, count in ((1e6, foreground_threads(AUTO)), (2e6, 1)):
        with frames.priority():
            account(stat, busy_s)
        assert frames.count(starved=False) == count


def test_all_cores_are_free_where_nobody_knows(tmp_path: Path) -> None:
    frames = ForegroundThreads(AUTO, tmp_path / "none")
    time.sleep(LOOK_S)
    assert frames.count(starved=False) == foreground_threads(AUTO)


@pytest.mark.skipif(foreground_threads(AUTO) == 1, reason="a frame has one thread anyway")
def test_a_frame_that_waits_for_its_threads_goes_on_alone(tmp_path: Path) -> None:
    with use(2):
        frames = ForegroundThreads(AUTO, tmp_path / "none")
        frames.count(starved=False)
        frames.relieve()
        assert torch.get_num_threads() == 2
        time.sleep(2 * WAITED_S)
        frames.relieve()
        assert torch.get_num_threads() == 1


@pytest.mark.parametrize("frames", [ForegroundThreads(EngineConfig(foreground_threads=2)),
                                    alone(AUTO)])  # fmt: skip
def test_threads_that_are_set_or_must_not_vary_are_kept(frames: ForegroundThreads) -> None:
    with use(2):
        frames.count(starved=False)
        time.sleep(2 * WAITED_S)
        frames.relieve()
        assert torch.get_num_threads() == 2


def test_masks_do_not_depend_on_threads(
    tiny: Segmenter, make_frame: Callable[..., Frame], monkeypatch: pytest.MonkeyPatch
) -> None:
    def masks(config: EngineConfig) -> list[np.ndarray]:
        # One key frame, so that Sh has nothing to do; what the engine sets ends with it.
        config = dataclasses.replace(config, key_frame_policy="deviation")
        with use(1), Engine(tiny, config, threshold=1.0) as engine:
            return [engine.process(make_frame(index)).mask for index in range(4)]

    expected = masks(EngineConfig(foreground_threads=1))
    assert np.array_equal(masks(EngineConfig(foreground_threads=cores())), expected)
    monkeypatch.setattr(threads, "WAITED_S", -1.0)  # each frame finds itself waiting
    assert np.array_equal(masks(AUTO), expected)


def test_a_starved_slow_track_is_left_its_cores() -> None:
    frames = alone(AUTO)
    left = foreground_threads(AUTO) - AUTO.slow_track_threads * gives_way(AUTO)
    assert frames.count(starved=True) == max(1, left)
    assert frames.count(starved=False) == foreground_threads(AUTO)


def test_threads_that_are_set_stay(tmp_path: Path) -> None:
    stat = account(tmp_path / "stat", 0)
    frames = ForegroundThreads(EngineConfig(foreground_threads=3), stat)
    account(stat, 1e6)
    time.sleep(LOOK_S)
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

        track = ThreadedSlowTrack(look, Ledger(), config)
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


def may_be_urgent() -> bool:
    allowed = raise_priority()
    if allowed:
        lower_priority()
    return allowed


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

            def mask_is_out(_: Segmentation) -> None:
                assert policy() == os.SCHED_OTHER

            tiny.high_classifier.register_forward_hook(look)
            engine.process(make_frame(0), mask_is_out)
            assert policy() == os.SCHED_OTHER

    urged = priority == "realtime" and may_be_urgent()
    apart(body)
    assert set(seen) == {os.SCHED_RR if urged else os.SCHED_OTHER}


def test_urgency_ends_with_an_error_and_a_class_of_its_own_is_kept() -> None:
    frames, seen = alone(AUTO), list[int]()

    def body() -> None:
        give_way()
        with frames.priority():
            seen.append(policy())
        seen.append(policy())

    apart(body)
    assert seen == [os.SCHED_IDLE, os.SCHED_IDLE]
    with pytest.raises(ZeroDivisionError), frames.priority():
        raise ZeroDivisionError
    assert policy() == os.SCHED_OTHER


@pytest.mark.parametrize(("given", "left"), [(0, 1), (2, 2)])
def test_once_the_mask_is_out_its_delivery_has_a_core(given: int, left: int) -> None:
    """The selector, which comes after it, is content with one thread; what the user sets stays."""
    frames, seen = alone(EngineConfig(foreground_threads=given)), list[int]()

    def body() -> None:
        use_threads(2)
        with frames.priority():
            frames.mask_out()
            seen.extend((policy(), torch.get_num_threads()))
        seen.append(torch.get_num_threads())

    apart(body)
    assert seen == [os.SCHED_OTHER, left, 2]


def test_a_frame_that_takes_long_is_urgent_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    frames = ForegroundThreads(AUTO)
    urged = os.SCHED_RR if may_be_urgent() else os.SCHED_OTHER
    with frames.priority():
        frames.relieve()
        assert policy() == urged
        monkeypatch.setattr(threads, "URGENT_S", 0.0)
        frames.relieve()
        assert policy() == os.SCHED_OTHER
    with frames.priority():
        assert policy() == urged


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

    assert apart(body) == 10.0
    assert seen[0] is not threading.current_thread()
    assert not seen[0].is_alive()
    with pytest.raises(ZeroDivisionError):
        apart(lambda: 1 // 0)


def test_a_job_without_a_core_is_starved(monkeypatch: pytest.MonkeyPatch) -> None:
    door = Gate(min_share=0.9)
    assert not door.starved()  # there is no job
    door.begin_job()
    time.sleep(0.02)
    assert not door.starved()  # it may just have come at a bad moment
    monkeypatch.setattr(gate, "STARVED_S", 0.0)
    assert door.starved()
    door.min_share = 0.0
    assert not door.starved()
    door.min_share = 0.9
    door.end_job()
    assert not door.starved()
