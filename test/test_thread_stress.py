"""Thousands of swaps and jobs between threads that are interrupted anywhere (docs/threads.md)."""

from __future__ import annotations

import dataclasses
import itertools
import sys
import threading
from collections.abc import Callable, Iterator

import pytest
import torch

from lowlat_seg_ros.config import EngineConfig
from lowlat_seg_ros.engine.counters import LiveCounters
from lowlat_seg_ros.engine.key_frame import KeyFrame, KeyFrameCache, Pause
from lowlat_seg_ros.engine.preprocess import plan
from lowlat_seg_ros.engine.slow_track import SharedSlowTrack
from lowlat_seg_ros.frames import Counters, Outcome
from lowlat_seg_ros.pipeline import Bookkeeper

SWAPS, WAIT_S = 3000, 60.0
EMPTY = torch.empty(0)


@pytest.fixture(params=[5e-3, 1e-6], ids=["usual switches", "a switch each microsecond"])
def switches(request: pytest.FixtureRequest) -> Iterator[None]:
    """How long a thread keeps the interpreter: Python's default, and as short as can be."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(request.param)
    yield
    sys.setswitchinterval(before)


def key(index: int, epoch: int = 0) -> KeyFrame:
    return KeyFrame(EMPTY, EMPTY, EMPTY, EMPTY, None, plan((8, 8), 0), 0, index, epoch, exact=False)


def together(*bodies: Callable[[], None]) -> None:
    """Run all at once; what one raises is raised here."""
    errors: list[BaseException] = []
    start = threading.Barrier(len(bodies))

    def run(body: Callable[[], None]) -> None:
        start.wait()
        try:
            body()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(body,), daemon=True) for body in bodies]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_S)
        assert not thread.is_alive(), "deadlock"
    assert not errors, errors


@pytest.mark.usefixtures("switches")
def test_no_swap_of_the_key_frame_is_lost() -> None:
    """Each thread counts up from the record that it saw; epochs begin in between."""
    cache, accepted = KeyFrameCache(), itertools.count()
    epochs = 50

    def swap() -> None:
        done = 0
        while done < SWAPS:
            current, epoch = cache.snapshot()
            assert current is None or current.epoch == epoch
            new = key(0 if current is None else current.index + 1, epoch)
            if cache.replace(current, new):
                next(accepted)
                done += 1

    def begin() -> None:
        for _ in range(epochs):
            cache.begin_epoch()

    together(swap, swap, begin)
    assert next(accepted) == 2 * SWAPS
    current, epoch = cache.snapshot()
    assert epoch == epochs
    last = current
    together(swap, swap)  # and without epochs every one of them counts
    current, _ = cache.snapshot()
    assert current is not None
    assert current.index == (-1 if last is None else last.index) + 2 * SWAPS


@pytest.mark.usefixtures("switches")
def test_no_job_of_three_cameras_is_lost() -> None:
    """They submit, cancel and ask while others read; the last camera closes early."""
    track, ran = SharedSlowTrack(EngineConfig(slow_track_priority="normal")), itertools.count()

    def refine(job: KeyFrame, pause: Pause) -> Outcome:
        next(ran)
        pause()
        if job.index % 7 == 0:
            raise MemoryError("out of memory")
        return Outcome.REFINED

    cameras = [LiveCounters() for _ in range(3)]
    queues = [track.camera_queue(refine, counters, EngineConfig()) for counters in cameras]
    stop = threading.Event()

    def submit(number: int) -> None:
        queue = queues[number]
        for index in range(SWAPS // 3):
            queue.begin_frame(index, 0)
            if queue.take_turn() or queue.take_idle_turn() or index % 3 == 0:
                queue.submit(key(index))
            queue.end_frame()
            if index % 50 == 0:
                queue.cancel()
        assert number < 2 or queue.close(WAIT_S)

    def read() -> None:
        while not stop.is_set():
            for queue, counters in zip(queues, cameras, strict=True):
                assert balanced(counters.snapshot())
                queue.state()
                queue.starved()

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    together(*[lambda number=number: submit(number) for number in range(3)])
    stop.set()
    reader.join(WAIT_S)
    assert track.close(WAIT_S)
    counts = [counters.snapshot() for counters in cameras]
    assert all(balanced(count) and count.pending == 0 for count in counts)
    assert all(count.submitted >= SWAPS // 9 for count in counts)
    ended_by_sh = sum(count.refined + count.failed for count in counts)
    assert ended_by_sh <= next(ran)


def balanced(c: Counters) -> bool:
    ended = c.refined + c.carried + c.superseded + c.dropped_late + c.dropped_stale + c.failed
    return c.submitted == ended + c.pending and c.pending >= 0


@pytest.mark.usefixtures("switches")
def test_ledger_balances_at_every_moment() -> None:
    """One thread writes it, as the node's does; two read."""
    books, stop = Bookkeeper(), threading.Event()

    def write() -> None:
        for number in range(SWAPS):
            books.receive(number % 3)
            (books.publish, books.reject, books.fail)[number % 3]()
        stop.set()

    def read() -> None:
        while not stop.is_set():
            ledger = books.snapshot()
            ended = ledger.published + ledger.rejected + ledger.failed
            assert ledger.received == ended + ledger.in_flight
            assert ledger.in_flight in (0, 1)

    together(write, read, read)
    assert dataclasses.asdict(books.snapshot())["received"] == SWAPS
