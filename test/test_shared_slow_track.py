"""Several engines with one network and one slow track: fair, and none in another's way."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from lowlat_seg_ros.config import EngineConfig
from lowlat_seg_ros.engine.counters import LiveCounters
from lowlat_seg_ros.engine.engine import Engine
from lowlat_seg_ros.engine.key_frame import KeyFrame, Pause, Refine
from lowlat_seg_ros.engine.preprocess import plan
from lowlat_seg_ros.engine.slow_track import (
    PATIENCE_S,
    CameraQueue,
    RequestOrder,
    SharedSlowTrack,
)
from lowlat_seg_ros.frames import Frame, Outcome
from lowlat_seg_ros.network.segmenter import Segmenter

WAIT_S = 30.0  # far beyond what anything here takes; a test that needs it has failed
CAMERAS = 3


def key(index: int) -> KeyFrame:
    empty = torch.empty(0)
    return KeyFrame(empty, empty, empty, empty, None, plan((8, 8), 0), 0, index, 0, exact=False)


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, "the slow track is stuck"
        time.sleep(0.001)


class Held:
    """A slow track for ``CAMERAS`` cameras whose jobs run when the test says so."""

    def __init__(self) -> None:
        # Time stands still, so that no camera is ever given up, however busy the machine is.
        self.track = SharedSlowTrack(EngineConfig(), clock=lambda: 0.0)
        self.ledgers = [LiveCounters() for _ in range(CAMERAS)]
        self.ran: list[tuple[int, int]] = []  # camera, frame
        self.started, self.go = threading.Semaphore(0), threading.Semaphore(0)
        self.queues = [
            self.track.camera_queue(self._job(camera), ledger, EngineConfig())
            for camera, ledger in enumerate(self.ledgers)
        ]

    def _job(self, camera: int) -> Refine:
        def run(frame: KeyFrame, pause: Pause) -> Outcome:
            self.ran.append((camera, frame.index))
            self.started.release()
            assert self.go.acquire(timeout=WAIT_S)
            return Outcome.REFINED

        return run

    def wait_for_begin(self) -> None:
        assert self.started.acquire(timeout=WAIT_S)


@given(st.lists(st.one_of(st.integers(0, CAMERAS - 1), st.just("finish")), max_size=25))
def test_whoever_has_waited_longest_is_next_with_its_newest_frame(events: list[int | str]) -> None:
    """``events``: a camera hands over a key frame, or the running job ends."""
    held, running = Held(), False
    newest: dict[int, int] = {}  # of the cameras that wait, the longest waiting one first
    wanted, submitted = [], [0] * CAMERAS

    def begin() -> bool:
        if not newest:
            return False
        camera = next(iter(newest))
        wanted.append((camera, newest.pop(camera)))
        held.wait_for_begin()
        return True

    for index, event in enumerate(events):
        if isinstance(event, int):
            held.queues[event].submit(key(index))
            submitted[event] += 1
            newest[event] = index
            running = running or begin()
        elif running:
            held.go.release()
            running = begin()
    assert held.ran == wanted
    for camera, ledger in enumerate(held.ledgers):
        now = ledger.snapshot()
        mine = [frame for by, frame in wanted if by == camera]
        assert now.submitted == submitted[camera]
        # What is neither run nor waiting was replaced by its own camera's newer frame.
        assert now.superseded == submitted[camera] - len(mine) - (camera in newest)
    held.go.release(CAMERAS + 1)
    assert held.track.close(WAIT_S)
    assert [ledger.snapshot().pending for ledger in held.ledgers] == [0] * CAMERAS


def test_end_of_one_camera_leaves_the_others_running() -> None:
    held = Held()
    held.queues[0].submit(key(0))
    held.wait_for_begin()
    for camera in (1, 2):
        held.queues[camera].submit(key(camera))
    assert held.queues[1].close(WAIT_S)
    assert not held.queues[0].close(0.0)  # its job runs and is held
    held.go.release(2)
    assert held.queues[0].close(WAIT_S)
    held.wait_for_begin()
    assert held.ran == [(0, 0), (2, 2)]
    held.queues[1].submit(key(3))
    assert held.ledgers[1].snapshot().dropped_stale == 2
    assert held.track.close(WAIT_S)


@given(
    st.lists(
        st.tuples(st.integers(0, CAMERAS - 1), st.booleans(), st.floats(0.0, 0.9 * PATIENCE_S / 8)),
        max_size=60,
    )
)
def test_no_camera_that_keeps_asking_is_passed_by_more_than_once(
    asked: list[tuple[int, bool, float]],
) -> None:
    order, now_s = RequestOrder(), 0.0
    passed_by: dict[int, list[int]] = {}  # who had a turn since this camera began to wish
    last_asked = dict.fromkeys(range(CAMERAS), 0.0)
    for camera, free, step_s in asked:
        now_s += step_s
        for other in [*passed_by]:
            if now_s - last_asked[other] > PATIENCE_S:
                del passed_by[other]  # it has given up
        last_asked[camera] = now_s
        if order.grant(camera, free=free, now_s=now_s):
            assert free
            passed_by.pop(camera, None)
            for others in passed_by.values():
                others.append(camera)
        else:
            passed_by.setdefault(camera, [])
        assert all(len(others) == len(set(others)) for others in passed_by.values())


def test_camera_that_has_stopped_is_not_waited_for() -> None:
    order = RequestOrder()
    assert not order.grant("a", free=False, now_s=0.0)
    assert not order.grant("b", free=True, now_s=0.5)  # a comes first
    assert order.grant("b", free=True, now_s=PATIENCE_S + 0.1)


def test_a_camera_that_was_refused_and_then_submits_no_longer_holds_a_place() -> None:
    """A forced key frame is handed over without asking."""
    held = Held()
    asking, other, busy = held.queues
    busy.submit(key(0))
    held.wait_for_begin()
    busy.submit(key(1))
    assert not asking.take_turn()  # a key frame waits already
    asking.submit(key(2))
    for _ in range(2):
        held.go.release()
        held.wait_for_begin()
    assert other.take_turn()
    held.go.release()
    assert held.track.close(WAIT_S)


def test_frames_that_deviate_are_taken_in_the_order_in_which_their_cameras_began_to_ask() -> None:
    """A camera whose key frame waits may always give a newer one in its place."""
    held = Held()
    first, second, busy = held.queues
    busy.submit(key(0))
    held.wait_for_begin()
    assert busy.take_turn()
    busy.submit(key(1))
    assert not first.take_turn()
    assert not second.take_turn()
    assert busy.take_turn()
    busy.submit(key(2))
    held.go.release()
    held.wait_for_begin()
    assert not second.take_turn()  # nothing waits, but the first has asked before
    assert first.take_turn()
    first.submit(key(3))
    held.go.release()
    held.wait_for_begin()
    assert second.take_turn()
    assert held.ran == [(2, 0), (2, 2), (0, 3)]
    held.go.release()
    assert held.track.close(WAIT_S)


def noise(seed: int, size: tuple[int, int] = (48, 64)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def test_engines_share_a_network_and_nothing_else(tiny: Segmenter) -> None:
    """A change of size of one camera begins no new epoch of another, nor changes its masks."""
    track = SharedSlowTrack(EngineConfig())
    config = EngineConfig(key_frame_policy="deviation", deviation_threshold=1.0)
    alone = Engine(tiny, config, threshold=1.0)
    engines = [
        Engine(tiny, config, threshold=1.0, slow_track=track.camera_queue) for _ in range(CAMERAS)
    ]
    for number in range(4):
        for camera, engine in enumerate(engines):
            size = (96, 80) if camera == 1 and number == 2 else (48, 64)
            result = engine.process(Frame(noise(100 * camera + number, size), number * 10**8))
            if camera == 0:
                wanted = alone.process(Frame(noise(number), number * 10**8))
                np.testing.assert_array_equal(result.mask, wanted.mask)
    resets = [engine.counters.resets for engine in engines]
    assert resets == [0, 2, 0]
    for engine in (*engines, alone):
        assert engine.close(WAIT_S)
    assert track.close(WAIT_S)


def test_key_frames_that_are_due_together_are_staggered(tiny: Segmenter) -> None:
    """Every frame is due. While Sh is held one camera's waits, and the others' are put off."""
    track, go, begun = SharedSlowTrack(EngineConfig()), threading.Event(), threading.Event()
    config = EngineConfig(key_frame_policy="deviation", max_key_interval=1)

    def held_queue(refine: Refine, ledger: LiveCounters, settings: EngineConfig) -> CameraQueue:
        def held(frame: KeyFrame, pause: Pause) -> Outcome:
            begun.set()
            assert go.wait(WAIT_S)
            return refine(frame, pause)

        return track.camera_queue(held, ledger, settings)

    engines = [Engine(tiny, config, threshold=1.0, slow_track=held_queue) for _ in range(CAMERAS)]
    numbers = itertools.count()

    def round_of_frames() -> None:
        stamp_ns = 10**8 * next(numbers)
        for camera, engine in enumerate(engines):
            engine.process(Frame(noise(camera), stamp_ns))

    def pending() -> list[int]:
        return [engine.counters.pending for engine in engines]

    round_of_frames()  # the first frames are full and need no further Sh
    assert pending() == [0] * CAMERAS
    round_of_frames()
    assert begun.wait(WAIT_S)
    for _ in range(4):
        round_of_frames()
    assert sorted(pending()) == [0, 1, 1]  # one runs, one waits
    go.set()

    def all_had_a_turn() -> bool:
        round_of_frames()
        return all(engine.counters.submitted for engine in engines)

    until(all_had_a_turn)
    for engine in engines:
        assert engine.close(WAIT_S)
    assert track.close(WAIT_S)


def test_idle_time_is_offered_in_turn_whoever_asks_first_in_a_burst() -> None:
    """All cameras see a frame at once, always in the same order, and Sh ends between the bursts."""
    held = Held()
    for burst in range(7):
        for queue in held.queues:
            if queue.take_idle_turn():
                queue.submit(key(burst))
                held.wait_for_begin()
        assert len(held.ran) == burst + 1
        # Those that come while it runs are told no, and keep their place.
        assert not any(queue.take_idle_turn() for queue in held.queues)
        held.go.release()
        until(lambda: not held.queues[0].state().running)
    assert [camera for camera, _ in held.ran] == [0, 1, 2, 0, 1, 2, 0]
    assert held.track.close(WAIT_S)
