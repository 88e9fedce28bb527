"""Frames stay on one core and the background off it, until another program needs the cores."""

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import Queue
from typing import Any

import pytest

from lowlat_seg_ros.config import EngineConfig
from lowlat_seg_ros.engine.beside import Beside
from lowlat_seg_ros.engine.cpu_threads import LOOK_S, ForegroundThreads, gives_way
from lowlat_seg_ros.engine.engine import Engine
from lowlat_seg_ros.engine.own_core import BACKGROUND, Background, helpers_begin
from lowlat_seg_ros.frames import Frame
from lowlat_seg_ros.network.segmenter import Segmenter

CORES = os.sched_getaffinity(0)
HOME, OTHERS = {min(CORES)}, CORES - {min(CORES)}

pytestmark = pytest.mark.skipif(
    not gives_way(EngineConfig()), reason="needs two cores and SCHED_IDLE"
)


class Worker:
    """A thread that says which cores it may use."""

    def __init__(self, background: Background) -> None:
        self._asked, self._answers = Queue[Callable[[], Any] | None](), Queue[Any]()
        self._thread = threading.Thread(target=self._work, args=(background,))
        self._thread.start()

    @property
    def cores(self) -> set[int]:
        return self.do(lambda: os.sched_getaffinity(0))

    def do(self, work: Callable[[], Any]) -> Any:
        self._asked.put(work)
        return self._answers.get()

    def end(self) -> None:
        self._asked.put(None)
        self._thread.join()

    def _work(self, background: Background) -> None:
        background.add()
        while (work := self._asked.get()) is not None:
            self._answers.put(work())
        background.remove()


@contextmanager
def worker(background: Background) -> Iterator[Worker]:
    found = Worker(background)
    try:
        yield found
    finally:
        found.end()


@pytest.fixture(autouse=True)
def _untouched() -> Iterator[None]:
    yield
    assert os.sched_getaffinity(0) == CORES
    BACKGROUND.use(frozenset(CORES))


def test_threads_move_whether_they_came_before_or_after() -> None:
    background = Background()
    with worker(background) as early:
        assert early.cores == CORES
        background.use(frozenset(OTHERS))
        with worker(background) as late:
            assert early.cores == late.cores == OTHERS
            early.do(background.remove)  # it is about to end
            background.use(frozenset(CORES))
            assert (early.cores, late.cores) == (OTHERS, CORES)


def test_cores_that_are_gone_are_no_error() -> None:
    background = Background()
    with worker(background) as thread:
        background.use(frozenset({10**4}))
        assert thread.cores == CORES


def test_helpers_stay_off_the_core_of_frames_and_others_do_not() -> None:
    """Also where what began them fails, and where it was called on that core."""
    background = Background()
    with worker(background) as earlier:
        os.sched_setaffinity(0, HOME)
        begun = []

        def fails() -> None:
            begun.append(Worker(background))
            assert begun[0].cores == CORES
            raise RuntimeError

        with pytest.raises(RuntimeError), helpers_begin(frozenset(CORES)):
            fails()
        assert begun[0].cores == OTHERS
        assert earlier.cores == os.sched_getaffinity(0) == CORES
        begun[0].end()


def loaded(stat: Path, busy_s: float) -> Path:
    ticks = round(busy_s * os.sysconf("SC_CLK_TCK"))
    stat.write_text(f"cpu{min(CORES)} {ticks} 0 0 0 0 0 0 0 0 0\n")
    return stat


def test_a_frame_has_a_core_until_another_program_needs_one(tmp_path: Path) -> None:
    now_s = [0.0]
    stat = loaded(tmp_path / "stat", 0)
    frames = ForegroundThreads(EngineConfig(), stat, lambda: now_s[0])
    with worker(BACKGROUND) as beside:
        with frames.until_mask(starved=False):
            assert os.sched_getaffinity(0) == CORES  # Sh may run here, on all cores
            assert frames.settle()
            assert (os.sched_getaffinity(0), beside.cores) == (HOME, OTHERS)
        assert (os.sched_getaffinity(0), beside.cores) == (CORES, OTHERS)
        now_s[0] += LOOK_S
        loaded(stat, 1e6)
        with frames.until_mask(starved=False):
            assert not frames.settle()
            assert os.sched_getaffinity(0) == beside.cores == CORES


@pytest.mark.parametrize("config", [{"foreground_threads": 1}, {"slow_track_priority": "normal"}])
def test_what_is_set_by_hand_is_left_to_linux(config: dict[str, Any]) -> None:
    frames = ForegroundThreads(EngineConfig(**config))
    with frames.until_mask(starved=False):
        assert not frames.settle()
        assert os.sched_getaffinity(0) == CORES


def test_a_frame_that_fails_gives_its_core_back() -> None:
    frames = ForegroundThreads(EngineConfig())

    def fails() -> None:
        frames.settle()
        assert os.sched_getaffinity(0) == HOME
        raise RuntimeError

    with pytest.raises(RuntimeError), frames.until_mask(starved=False):
        fails()
    assert os.sched_getaffinity(0) == CORES


def test_work_beside_a_frame_is_not_on_its_core() -> None:
    """Also where its thread is started by one that is on that core."""
    BACKGROUND.use(frozenset(OTHERS))
    beside, began = Beside(), threading.Event()

    def work() -> tuple[int, set[int]]:
        began.set()
        return threading.get_native_id(), os.sched_getaffinity(0)

    os.sched_setaffinity(0, HOME)
    try:
        answer = beside.start(work, urgent=False)
        assert began.wait(30)  # else this thread would do it
    finally:
        os.sched_setaffinity(0, CORES)
    thread, cores = answer()
    assert cores == OTHERS
    assert thread in BACKGROUND._threads
    beside.close()
    assert thread not in BACKGROUND._threads


def test_the_engine_leaves_no_thread_behind(
    tiny: Segmenter, make_frame: Callable[..., Frame]
) -> None:
    before = BACKGROUND._threads.copy()
    with Engine(tiny, threshold=1.0) as engine:
        for index in range(3):
            engine.process(make_frame(index))
        own = BACKGROUND._threads - before
        assert len(own) in (1, 2)  # the slow track's, and perhaps one beside frames
    assert not own & BACKGROUND._threads
