"""Slow tracks, ledger, gate and cache on their own, without a network."""

import dataclasses
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lowlat_seg_ros.config import ConfigError, EngineConfig
from lowlat_seg_ros.engine.counters import LiveCounters, failed
from lowlat_seg_ros.engine.cpu_threads import cores, use_threads
from lowlat_seg_ros.engine.key_frame import KeyFrame, KeyFrameCache, NonFiniteError, Pause
from lowlat_seg_ros.engine.preprocess import plan
from lowlat_seg_ros.engine.slow_track import STARVED_S, Gate, SlowTrackState, ThreadedSlowTrack
from lowlat_seg_ros.engine.virtual_slow_track import Delay, VirtualSlowTrack
from lowlat_seg_ros.frames import Outcome, Refinement, ResetReason

WAIT_S = 30.0  # far beyond what anything here takes; a test that needs it has failed


def key(index: int, epoch: int = 0) -> KeyFrame:
    empty = torch.empty(0)
    size = plan((8, 8), 0)
    return KeyFrame(
        empty, empty, empty, empty, None, size, index * 10**8, index, epoch, exact=False
    )


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, "the slow track is stuck"
        time.sleep(0.001)


class Recorder:
    """A job that notes which key frames it ran on, and can be held."""

    def __init__(self) -> None:
        self.ran: list[int] = []
        self.started, self.go = threading.Semaphore(0), threading.Semaphore(0)

    def __call__(self, key: KeyFrame, pause: Pause) -> Outcome:
        self.started.release()
        assert self.go.acquire(timeout=WAIT_S)
        pause()
        self.ran.append(key.index)
        return Outcome.REFINED


def test_newest_waiting_job_wins() -> None:
    job, ledger = Recorder(), LiveCounters()
    track = ThreadedSlowTrack(job, ledger, EngineConfig())
    track.submit(key(0))
    assert job.started.acquire(timeout=WAIT_S)
    for index in (1, 2, 3):
        track.submit(key(index))
    assert track.state().running
    assert track.state().waiting
    assert (ledger.snapshot().superseded, ledger.snapshot().pending) == (2, 2)
    job.go.release(2)
    assert job.started.acquire(timeout=WAIT_S)
    until(lambda: not ledger.snapshot().pending)
    assert track.close(WAIT_S)
    assert job.ran == [0, 3]
    assert ledger.snapshot().refined == 2
    assert not track.state().alive


def test_job_that_raises_is_counted_and_the_next_one_runs() -> None:
    def fail_first(job: KeyFrame, pause: Pause) -> Outcome:
        if job.index == 0:
            raise MemoryError("no memory left")
        return Outcome.REFINED

    ledger = LiveCounters()
    track = ThreadedSlowTrack(fail_first, ledger, EngineConfig())
    for index in (0, 1):
        track.submit(key(index))
        until(lambda: not (ledger.snapshot().pending or track.state().running))
        assert ("no memory left" in track.state().last_error) is (index == 0)
    assert track.close(WAIT_S)
    assert (ledger.snapshot().failed, ledger.snapshot().refined) == (1, 1)
    assert "frame 0: MemoryError: no memory left" in ledger.snapshot().last_failure


def test_close_drops_what_waits_and_stops_what_runs() -> None:
    ended: list[tuple[int, Outcome]] = []
    job, ledger = Recorder(), LiveCounters(lambda end: ended.append((end.stamp_ns, end.outcome)))
    track = ThreadedSlowTrack(job, ledger, EngineConfig())
    track.submit(key(0))
    assert job.started.acquire(timeout=WAIT_S)
    track.submit(key(1))
    assert not track.close(timeout_s=0.0)  # held inside a block: abandoned for now
    track.submit(key(2))
    job.go.release()
    assert track.close(WAIT_S)
    assert job.ran == []  # its next pause ended it
    assert (ledger.snapshot().dropped_stale, ledger.snapshot().pending) == (3, 0)
    assert ended == [(number * 10**8, Outcome.STALE) for number in (1, 2, 0)]


SMALLER = "; set a smaller inference_height, or end what else uses the device's memory"
REPORT = "; where it fails again, report it with the traceback in the log"


@pytest.mark.parametrize(
    ("error", "advice", "traceback"),
    [
        (RuntimeError("gone"), REPORT, True),
        (MemoryError(), SMALLER, False),
        (RuntimeError("CUDA out of memory"), SMALLER, False),
        (NonFiniteError("NaN; use fp32"), "", True),
    ],
)
def test_what_sh_raises_is_said_with_what_to_do(
    error: Exception, advice: str, traceback: bool, caplog: pytest.LogCaptureFixture
) -> None:
    ledger = LiveCounters()
    message = failed("on frame 7", error, ledger)
    assert message == f"Sh failed on frame 7: {type(error).__name__}: {error}{advice}"
    assert ledger.snapshot().last_failure == message
    assert [record.getMessage() for record in caplog.records] == [message]
    assert (caplog.records[0].exc_info is not None) is traceback


def test_sh_waits_from_the_begin_of_a_frame_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    at_gate, wait = threading.Event(), Gate.wait

    def noticed(gate: Gate) -> None:
        at_gate.set()
        wait(gate)

    monkeypatch.setattr(Gate, "wait", noticed)
    job, ledger = Recorder(), LiveCounters()
    job.go.release()
    track = ThreadedSlowTrack(job, ledger, EngineConfig(slow_track_min_share=0.0))
    track.begin_frame(0, 0)
    track.submit(key(0))
    assert at_gate.wait(WAIT_S)
    assert ledger.snapshot().pending == 1
    track.end_frame()
    until(lambda: ledger.snapshot().refined == 1)
    assert track.close(WAIT_S)


def test_the_state_says_what_runs_and_how_long_the_last_job_took() -> None:
    job, ledger = Recorder(), LiveCounters()
    track = ThreadedSlowTrack(job, ledger, EngineConfig())
    thread = track._track.thread
    assert (thread.name, thread.daemon) == ("slow-track", True)  # as docs/threads.md says
    assert track.state() == SlowTrackState()
    began = time.perf_counter()
    track.submit(key(0))
    assert job.started.acquire(timeout=WAIT_S)
    first, after = track.state(), time.perf_counter()
    passed_ms = (time.perf_counter() - after) * 1e3
    second = track.state()
    assert first.running_ms >= 0
    assert second.running_ms - first.running_ms >= 0.99 * passed_ms
    assert not first.waiting
    job.go.release()
    until(lambda: not track.state().running)
    assert 0 < track.state().last_ms <= (time.perf_counter() - began) * 1e3
    assert second.running_ms <= track.state().last_ms
    assert track.state().running_ms == 0
    assert track.close(WAIT_S)


def test_the_time_and_error_of_a_job_appear_when_it_no_longer_runs() -> None:
    job, ledger = Recorder(), LiveCounters()
    track = ThreadedSlowTrack(job, ledger, EngineConfig())
    track.submit(key(0))
    assert job.started.acquire(timeout=WAIT_S)
    with track._track.changed:  # so that nothing that it guards changes
        job.go.release()
        until(lambda: ledger.snapshot().refined == 1)
        time.sleep(0.1)
        state = track.state()
        assert (state.running, state.last_ms) == (True, 0.0)
    until(lambda: not track.state().running)
    assert track.state().last_ms > 0
    assert track.close(WAIT_S)


def test_threads_are_set_in_the_worker_alone() -> None:
    before, asked, seen = torch.get_num_threads(), cores() + 1, []

    def look(job: KeyFrame, pause: Pause) -> Outcome:
        torch.ones(100_000).exp()  # parallel: the first such work of a thread may set its threads
        seen.append(torch.get_num_threads())
        return Outcome.REFINED

    track = ThreadedSlowTrack(
        look, ledger := LiveCounters(), EngineConfig(slow_track_threads=asked)
    )
    track.submit(key(0))
    until(lambda: not ledger.snapshot().pending)
    assert track.close(WAIT_S)
    assert seen == [asked]
    assert torch.get_num_threads() == before


def test_threads_of_a_thread_outlast_what_others_set() -> None:
    """PyTorch gives a thread the newest default of all at its first parallel work."""
    before, seen = torch.get_num_threads(), []
    is_set, go = threading.Event(), threading.Event()

    def body() -> None:
        use_threads(before + 1)
        is_set.set()
        assert go.wait(WAIT_S)
        torch.ones(100_000).exp()
        seen.append(torch.get_num_threads())

    thread = threading.Thread(target=body, daemon=True)
    thread.start()
    assert is_set.wait(WAIT_S)
    torch.set_num_threads(before)
    go.set()
    thread.join(WAIT_S)
    assert seen == [before + 1]


@pytest.mark.parametrize(
    ("delay", "due"),
    [
        (Delay(frames=0), 3),
        (Delay(frames=2), 4),
        (Delay(ms=150), 4),
        (Delay(ms=200), 4),
        (Delay(ms=201), 5),
    ],
)
def test_virtual_result_shows_at_its_time(delay: Delay, due: int) -> None:
    """A job submitted at frame 2, 10 Hz."""
    job, ledger = Recorder(), LiveCounters()
    job.go.release(100)
    track = VirtualSlowTrack(job, ledger, EngineConfig(), delay)
    for index in range(10):
        track.begin_frame(index, index * 10**8)
        assert (2 in job.ran) is (index >= due)
        if index == 2:
            track.submit(key(2))


def test_virtual_jobs_queue_like_real_ones() -> None:
    """Every frame is a key frame, Sh takes 3 frames: it always takes the newest waiting one."""
    job, ledger = Recorder(), LiveCounters()
    job.go.release(100)
    track = VirtualSlowTrack(job, ledger, EngineConfig(), Delay(frames=3))
    shown: dict[int, int] = {}
    for index in range(10):
        track.begin_frame(index, 0)
        shown |= {ran: index for ran in job.ran if ran not in shown}
        track.submit(key(index))
    assert shown == {0: 3, 2: 6, 5: 9}
    assert (ledger.snapshot().refined, ledger.snapshot().superseded, ledger.snapshot().pending) == (
        3,
        5,
        2,
    )
    track.cancel()
    assert (ledger.snapshot().dropped_stale, ledger.snapshot().pending) == (2, 0)


def test_virtual_job_begins_when_the_one_before_it_ends() -> None:
    """Which is between two frames: 150 ms at 10 Hz, every frame a key frame."""
    job = Recorder()
    job.go.release(100)
    track = VirtualSlowTrack(job, LiveCounters(), EngineConfig(), Delay(ms=150))
    shown: dict[int, int] = {}
    for index in range(10):
        track.begin_frame(index, index * 10**8)
        shown |= {ran: index for ran in job.ran if ran not in shown}
        track.submit(key(index))
    assert shown == {0: 2, 1: 3, 2: 5, 4: 6, 5: 8, 7: 9}


@pytest.mark.parametrize(
    "wrong", [{}, {"frames": 1, "ms": 1.0}, {"frames": -1}, {"ms": float("nan")}]
)
def test_delay_must_be_one_duration(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="give one of them"):
        Delay(**wrong)  # type: ignore[arg-type]


def run_through(gate: Gate) -> threading.Thread:
    def body() -> None:
        gate.begin_job()
        gate.wait()

    thread = threading.Thread(target=body, daemon=True)
    thread.start()
    return thread


def test_gate_holds_until_the_foreground_is_idle() -> None:
    gate = Gate(min_share=0.0)
    gate.set_foreground(True)
    thread = run_through(gate)
    thread.join(0.1)
    assert thread.is_alive()
    gate.set_foreground(False)
    thread.join(WAIT_S)
    assert not thread.is_alive()


@pytest.mark.parametrize("share", [0.25, 1.0])
def test_gate_never_starves_the_slow_track(share: float) -> None:
    gate = Gate(share)
    gate.set_foreground(True)
    thread = run_through(gate)
    thread.join(WAIT_S)
    assert not thread.is_alive()


class Timed:
    """A gate whose clock goes on only while it waits, and when the test says so."""

    def __init__(self, min_share: float, patch: pytest.MonkeyPatch) -> None:
        self.now_s, self.waits_s = 0.0, list[float]()
        self.gate = Gate(min_share, clock=lambda: self.now_s)
        patch.setattr(self.gate._changed, "wait", self._wait)
        self.gate.set_foreground(True)

    def _wait(self, timeout_s: float) -> None:
        self.waits_s.append(timeout_s)
        self.now_s += timeout_s
        if timeout_s > 1000:  # with no share it waits for the end of the frame
            self.gate._foreground = False


def test_the_waits_of_a_job_are_what_its_share_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    timed = Timed(0.25, monkeypatch)
    timed.now_s = 7.0
    timed.gate.begin_job()
    timed.gate.wait()
    assert timed.waits_s == []  # it has not worked yet
    timed.now_s += 1.0
    timed.gate.wait()
    timed.gate.wait()
    assert timed.waits_s == [3.0]  # it has worked for a quarter of the time
    timed.now_s += 2.0
    timed.gate.wait()
    assert timed.waits_s == [3.0, 6.0]
    timed.gate.begin_job()  # an account of its own
    timed.now_s += 1.0
    timed.gate.wait()
    assert timed.waits_s == [3.0, 6.0, 3.0]
    timed.gate.set_foreground(False)
    timed.now_s += 1.0
    timed.gate.wait()
    assert len(timed.waits_s) == 3


def test_without_a_share_a_job_waits_for_the_end_of_the_frame(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    timed = Timed(0.0, monkeypatch)
    timed.gate.begin_job()
    timed.gate.wait()
    assert timed.waits_s == [threading.TIMEOUT_MAX]


def test_a_job_is_starved_where_its_thread_has_had_less_than_its_share_for_a_second() -> None:
    now_s = 100.0
    gate = Gate(0.5, clock=lambda: now_s)
    assert not gate.starved()
    gate.begin_job()
    now_s += STARVED_S
    assert not gate.starved()  # it may just have come at a bad moment
    now_s = 1e6  # of which this thread has worked for a moment
    assert gate.starved()
    gate.min_share = 0.0
    assert not gate.starved()
    gate.min_share = 0.5
    gate.end_job()
    assert not gate.starved()


def test_released_gate_lets_everyone_through() -> None:
    gate = Gate(min_share=0.0)
    gate.set_foreground(True)
    thread = run_through(gate)
    gate.release()
    thread.join(WAIT_S)
    assert not thread.is_alive()


def test_cache_refuses_outdated_work() -> None:
    cache = KeyFrameCache()
    first = key(0)
    assert cache.replace(None, first)
    assert not cache.replace(None, key(1))  # not based on the current one
    refined = dataclasses.replace(first, exact=True)
    assert cache.replace(first, refined)
    assert not cache.replace(first, key(1))
    cache.begin_epoch()
    assert cache.snapshot() == (None, 1)
    assert not cache.replace(refined, key(1))
    assert not cache.replace(None, key(1, epoch=0))  # computed before the reset
    assert cache.replace(None, key(1, epoch=1))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_thread_that_ends_is_replaced_and_its_job_has_failed() -> None:
    """Whatever ends it, in Sh or where it waits: no job is lost, and the next one runs."""

    def end_first(job: KeyFrame, pause: Pause) -> Outcome:
        if job.index == 0:
            raise SystemExit("the thread is to end")
        return Outcome.REFINED

    errors: list[str] = []
    ledger = LiveCounters(lambda end: errors.append(end.error))
    track = ThreadedSlowTrack(end_first, ledger, EngineConfig())
    first = track._track.thread
    track.submit(key(0))
    until(lambda: not ledger.snapshot().pending)
    assert (ledger.snapshot().failed, track.state().alive) == (1, True)
    assert "frame 0 and ended its thread: SystemExit: the thread" in track.state().last_error
    until(lambda: errors == [track.state().last_error])
    second, shared = track._track.thread, track._track
    assert first is not second
    take = shared._take

    def end_where_it_waits() -> None:
        shared._take = take
        raise SystemExit("the thread is to end")

    shared._take = end_where_it_waits
    track.submit(key(1))
    until(lambda: shared.thread is not second)
    assert (ledger.snapshot().refined, ledger.snapshot().failed) == (1, 1)
    track.submit(key(2))
    until(lambda: not ledger.snapshot().pending)
    assert track.state().last_error == ""
    assert track.close(WAIT_S)
    second.join(WAIT_S)
    assert not second.is_alive()


def test_a_job_s_end_is_reported_with_its_times_and_a_listener_that_raises_is_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    now_ns, ends = 10**9, list[Refinement]()
    counters = LiveCounters(ends.append, clock=lambda: now_ns)
    frame = dataclasses.replace(key(3, epoch=2), frame_id="camera")
    job = counters.submit(frame)
    now_ns += 4_000_000
    job = counters.begin(job)
    now_ns += 7_000_000
    counters.end(job, Outcome.FAILED, "no memory")
    never_began = counters.submit(frame)
    now_ns += 5_000_000
    counters.end(never_began, Outcome.SUPERSEDED)
    assert ends == [
        Refinement(3 * 10**8, "camera", 2, Outcome.FAILED, 4.0, 7.0, "no memory"),
        Refinement(3 * 10**8, "camera", 2, Outcome.SUPERSEDED, 5.0, 0.0),
    ]
    deaf = LiveCounters(lambda end: [][0])
    deaf.end(deaf.submit(frame), Outcome.REFINED)
    assert deaf.snapshot().refined == 1
    assert [record.getMessage() for record in caplog.records] == [
        "Reporting a job of the slow track failed"
    ]


def test_the_first_epoch_is_no_reset() -> None:
    ledger = LiveCounters()
    with pytest.raises(ValueError, match="first epoch is no reset; give another reason"):
        ledger.reset(ResetReason.FIRST_FRAME)
    ledger.reset(ResetReason.GAP)
    assert (ledger.snapshot().resets, ledger.snapshot().resets_gap) == (1, 1)


FORGETFUL = """
import torch
from lowlat_seg_ros.engine.counters import LiveCounters
from lowlat_seg_ros.engine.slow_track import ThreadedSlowTrack
from lowlat_seg_ros.config import EngineConfig
import test_slow_track as here

def refine(key, pause):
    x = torch.rand(64, 64)
    while True:  # as Sh does: in PyTorch most of the time, and at the gate between slices
        for _ in range(50):
            x = (x @ x).softmax(1)
        started.set()
        pause()

started = here.threading.Event()
track = ThreadedSlowTrack(refine, LiveCounters(), EngineConfig())
track.submit(here.key(0))
assert started.wait(here.WAIT_S)
"""


def test_a_program_that_closes_no_engine_ends_as_it_should() -> None:
    """It was aborted: the interpreter cannot end a thread that is inside PyTorch."""
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])
    }
    done = subprocess.run(
        [sys.executable, "-c", FORGETFUL],
        env=environment,
        capture_output=True,
        text=True,
        timeout=2 * WAIT_S,
    )
    assert (done.returncode, done.stderr) == (0, "")
