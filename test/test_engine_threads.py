"""The engine with its background thread: never waits, loses nothing, ends when told."""

from __future__ import annotations

import dataclasses
import itertools
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lowlat_seg_ros.config import EngineConfig
from lowlat_seg_ros.engine.engine import Engine
from lowlat_seg_ros.engine.postprocess import mask_of
from lowlat_seg_ros.engine.preprocess import plan
from lowlat_seg_ros.engine.runner import Runner
from lowlat_seg_ros.engine.slow_track import Gate
from lowlat_seg_ros.frames import (
    Counters,
    Frame,
    MaskKind,
    Outcome,
    Refinement,
    ResetReason,
)
from lowlat_seg_ros.network.segmenter import Segmenter

MakeFrame = Callable[..., Frame]
ALWAYS, NEVER = 0.0, 1.0
WAIT_S = 30.0  # far beyond what anything here takes; a test that needs it has failed

#: Key frames only where the selector wants them: what Sh is given does not depend on its speed.
BY_DEVIATION = {"key_frame_policy": "deviation"}


class Hold(nn.Module):
    """A block of Sh that can be held, for as long as the test wants, in the slow track only."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block
        self.held = False
        self.entered = threading.Semaphore(0)
        self.go = threading.Semaphore(0)
        self.action: Callable[[Tensor], Tensor] = lambda x: x

    def forward(self, x: Tensor) -> Tensor:
        if self.held and threading.current_thread().name == "slow-track":
            self.entered.release()
            assert self.go.acquire(timeout=WAIT_S)
        return self.block(self.action(x))


@pytest.fixture
def sh(tiny: Segmenter) -> Iterator[Hold]:
    """A block in the middle of Sh; whatever happens, no thread is left hanging in it."""
    hold = tiny.backbone.layer4[0] = Hold(tiny.backbone.layer4[0])
    yield hold
    hold.go.release(1000)


@contextmanager
def threaded(segmenter: Segmenter, threshold: float, **config: object) -> Iterator[Engine]:
    # Sh does not yield here: what is tested does not depend on the machine's speed.
    fixed = {"foreground_threads": 1, "slow_track_min_share": 1.0}
    with Engine(
        segmenter,
        EngineConfig(**(BY_DEVIATION | fixed | config)),
        threshold=threshold,
    ) as engine:  # type: ignore[arg-type]
        yield engine


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, "the slow track is stuck"
        time.sleep(0.001)


def drain(engine: Engine) -> None:
    until(lambda: engine.counters.pending == 0)


def assert_balanced(c: Counters) -> None:
    ended = c.refined + c.carried + c.superseded + c.dropped_late + c.dropped_stale + c.failed
    assert c.submitted == ended + c.pending, c
    assert min(v for v in vars(c).values() if isinstance(v, int)) >= 0, c


def test_fast_track_never_waits_for_sh(tiny: Segmenter, sh: Hold, make_frame: MakeFrame) -> None:
    """Sh hangs until all masks are out: if one waited for it, the test would never end."""
    with threaded(tiny, ALWAYS) as engine:
        engine.process(make_frame(0))
        sh.held = True
        engine.process(make_frame(1))
        assert sh.entered.acquire(timeout=WAIT_S)
        for index in range(2, 12):
            result = engine.process(make_frame(index))
            assert result.provenance.kind is MaskKind.PROPAGATED
            assert not result.provenance.exact
            assert engine.slow_track().running
        counters = engine.counters
        assert (counters.frames, counters.submitted, counters.refined) == (12, 11, 0)
        # Frame 1 runs, frame 11 waits, those between were superseded.
        assert (counters.superseded, counters.pending) == (9, 2)
        assert engine.slow_track().waiting
        assert engine.slow_track().running_ms > 0
        sh.go.release(2)
        drain(engine)
        # Frame 1's features were late for their own, frame 11's were not.
        assert (engine.counters.carried, engine.counters.refined) == (1, 1)
        sh.held = False
        result = engine.process(make_frame(12))
        assert result.provenance.exact
        assert result.provenance.key_stamp_ns == make_frame(11).stamp_ns


def test_results_from_before_a_reset_are_dropped(
    tiny: Segmenter, sh: Hold, make_frame: MakeFrame
) -> None:
    with threaded(tiny, ALWAYS) as engine:
        engine.process(make_frame(0))
        sh.held = True
        engine.process(make_frame(1))
        assert sh.entered.acquire(timeout=WAIT_S)
        engine.process(make_frame(2))  # waits behind it
        engine.reset()
        assert engine.counters.dropped_stale == 1
        sh.held = False
        result = engine.process(make_frame(3))
        assert (result.provenance.kind, result.provenance.epoch) == (MaskKind.FULL, 1)
        sh.go.release()
        drain(engine)
        assert engine.counters.dropped_stale == 2
        assert (engine.counters.refined, engine.counters.carried) == (0, 0)


def test_each_job_is_told_with_its_outcome_and_times(
    tiny: Segmenter, sh: Hold, make_frame: MakeFrame
) -> None:
    told: list[Refinement] = []

    def listen(refinement: Refinement) -> None:
        told.append(refinement)
        raise RuntimeError("a listener that fails stops nothing")

    config = EngineConfig(**BY_DEVIATION, foreground_threads=1, slow_track_min_share=1.0)
    with Engine(tiny, config, threshold=ALWAYS, on_refinement=listen) as engine:
        engine.process(make_frame(0))
        sh.held = True
        engine.process(make_frame(1))
        assert sh.entered.acquire(timeout=WAIT_S)
        engine.process(make_frame(2))
        engine.process(make_frame(3))  # replaces frame 2, which waits
        assert [(r.stamp_ns, r.outcome) for r in told] == [(2 * 10**8, Outcome.SUPERSEDED)]
        assert (told[0].compute_ms, told[0].frame_id) == (0.0, "camera")
        assert told[0].wait_ms > 0
        sh.go.release()
        assert sh.entered.acquire(timeout=WAIT_S)
        assert (told[1].stamp_ns, told[1].outcome) == (10**8, Outcome.CARRIED)
        assert told[1].outcome.applied
        assert told[1].compute_ms > 0
        engine.reset()
        sh.go.release()
        until(lambda: len(told) == 3)
        assert (told[2].outcome, told[2].epoch) == (Outcome.STALE, 0)
        sh.held, sh.action = False, fail
        engine.process(make_frame(4))  # full and degraded: Sh fails
        engine.process(make_frame(5))
        until(lambda: len(told) == 4)
        assert (told[3].outcome, told[3].epoch) == (Outcome.FAILED, 1)
        assert "injected" in told[3].error
        assert not told[3].outcome.applied
        assert engine.counters.submitted == len(told)


def fail(_: Tensor) -> Tensor:
    raise RuntimeError("injected")


def test_stale_sh_stops_at_its_next_block(tiny: Segmenter, sh: Hold, make_frame: MakeFrame) -> None:
    contexts: list[str] = []
    tiny.context.register_forward_hook(lambda *_: contexts.append(threading.current_thread().name))
    with threaded(tiny, ALWAYS) as engine:
        engine.process(make_frame(0))
        sh.held = True
        engine.process(make_frame(1))
        assert sh.entered.acquire(timeout=WAIT_S)
        engine.reset()
        sh.go.release()
        drain(engine)
        assert "slow-track" not in contexts


def test_reset_in_the_last_part_of_sh(tiny: Segmenter, sh: Hold, make_frame: MakeFrame) -> None:
    """By when the job is done a frame of the new epoch is the key frame: it must stay untouched."""
    hold = tiny.context.project = Hold(tiny.context.project)
    with threaded(tiny, ALWAYS) as engine:
        engine.process(make_frame(0))
        hold.held = True
        engine.process(make_frame(1))
        assert hold.entered.acquire(timeout=WAIT_S)
        engine.reset()
        hold.held = False
        engine.process(make_frame(2))
        sh.held = True  # nothing else may refine frame 3
        engine.process(make_frame(3))
        hold.go.release()
        until(lambda: engine.counters.dropped_stale == 1)
        assert (engine.counters.refined, engine.counters.carried) == (0, 0)
        sh.held = False
        sh.go.release()


def test_reset_while_a_frame_is_in_the_foreground(tiny: Segmenter, make_frame: MakeFrame) -> None:
    """The frame's mask comes out, but it does not become the key frame of the new epoch."""
    with threaded(tiny, ALWAYS) as engine:
        first = engine.segment(make_frame(0))
        engine.reset()
        engine.finish(first)
        second = engine.process(make_frame(1))
        assert (second.provenance.kind, second.provenance.epoch) == (MaskKind.FULL, 1)
        step = engine.segment(make_frame(2))
        engine.reset()
        third = engine.finish(step)
        assert third.selection is not None
        assert not third.selection.is_key
        assert engine.process(make_frame(3)).provenance.kind is MaskKind.FULL
        assert_balanced(engine.counters)


def test_settings_and_resets_that_come_within_a_frame_are_the_next_one_s(
    tiny: Segmenter, make_frame: MakeFrame
) -> None:
    """They come while Sh runs on the first frame: its mask, its reason and its choice stay."""
    with threaded(tiny, NEVER) as engine, threaded(tiny, NEVER) as undisturbed:
        whole = undisturbed.process(make_frame(0))
        strict = dataclasses.replace(engine.config, confidence_threshold=1.0)
        hold = tiny.context.project = Hold(tiny.context.project)

        def disturb(x: Tensor) -> Tensor:
            engine.reconfigure(strict)
            engine.reset(ResetReason.TIME_JUMPED_BACK)
            return x

        hold.action = disturb
        first = engine.process(make_frame(0))
        assert (first.provenance.epoch, first.provenance.reset) == (0, ResetReason.FIRST_FRAME)
        np.testing.assert_array_equal(first.mask, whole.mask)
        hold.action = lambda x: x
        second = engine.process(make_frame(1))
        assert second.provenance.reset is ResetReason.TIME_JUMPED_BACK
        assert (second.mask == 255).any()


@torch.inference_mode()
def test_refinement_that_comes_during_a_frame_is_not_lost(
    tiny: Segmenter, sh: Hold, make_frame: MakeFrame
) -> None:
    """Frame 2 becomes the key frame from frame 1's provisional features, which are refined
    meanwhile: its own provisional features are then those of an engine that had them in time."""
    with threaded(tiny, ALWAYS) as engine:
        sh.held = True
        engine.process(make_frame(0))
        engine.process(make_frame(1))
        assert sh.entered.acquire(timeout=WAIT_S)

        step = engine.segment(make_frame(2))
        sh.go.release()
        until(lambda: engine.counters.refined == 1)
        engine.finish(step)
        mask = engine.process(make_frame(3)).mask  # Sh of frame 2 is still held
        assert engine.counters.refined == 1
        sh.held = False
        sh.go.release(2)
    assert (mask == mask_by_hand(tiny, [make_frame(i) for i in (1, 2, 3)])).all()


def mask_by_hand(net: Segmenter, frames: list[Frame]) -> np.ndarray:
    """Exact F_h of the first frame, carried from frame to frame, and the mask of the last."""
    geometry = plan(frames[0].image.shape[:2], 0)
    low = [net.lower(Runner(net).image(frame.image, geometry)[0]) for frame in frames]
    reduced = [net.predictor.reduce(features) for features in low]
    high = net.higher(low[0])
    for before, after in itertools.pairwise(reduced):
        high = net.propagate(high, net.predictor(net.predictor.remember(before), after))
    return mask_of(net.classify_fused(high, low[-1]), geometry)


def test_failure_in_the_thread_never_stops_masks(
    tiny: Segmenter, sh: Hold, make_frame: MakeFrame
) -> None:
    def fail(_: Tensor) -> Tensor:
        raise RuntimeError("the accelerator is gone")

    with threaded(tiny, ALWAYS) as engine:
        engine.process(make_frame(0))
        sh.action = fail
        for index in (1, 2, 3):
            assert engine.process(make_frame(index)).provenance.kind is MaskKind.PROPAGATED
            drain(engine)
        assert engine.counters.failed == 3
        assert "the accelerator is gone" in engine.counters.last_failure
        sh.action = lambda x: x
        engine.process(make_frame(4))
        drain(engine)
        assert engine.process(make_frame(5)).provenance.exact


def test_close_while_sh_yields_between_blocks(
    tiny: Segmenter, sh: Hold, make_frame: MakeFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With no share of its own Sh waits at the gate for as long as a frame is in the foreground."""
    at_gate, wait = threading.Event(), Gate.wait

    def noticed(gate: Gate) -> None:
        at_gate.set()
        wait(gate)

    monkeypatch.setattr(Gate, "wait", noticed)
    with threaded(tiny, ALWAYS, slow_track_min_share=0.0) as engine:
        engine.process(make_frame(0))
        sh.held = True
        engine.process(make_frame(1))
        assert sh.entered.acquire(timeout=WAIT_S)

        step = engine.segment(make_frame(2))
        at_gate.clear()
        sh.go.release()
        assert at_gate.wait(WAIT_S)
        assert engine.slow_track().running
        assert engine.close(WAIT_S)
        engine.finish(step)
        assert engine.counters.pending == 0
        assert not engine.slow_track().alive
        assert_balanced(engine.counters)


def test_close_gives_up_on_a_hanging_block(
    tiny: Segmenter, sh: Hold, make_frame: MakeFrame
) -> None:
    engine = Engine(tiny, EngineConfig(**BY_DEVIATION, foreground_threads=1), threshold=ALWAYS)
    engine.process(make_frame(0))
    sh.held = True
    engine.process(make_frame(1))
    assert sh.entered.acquire(timeout=WAIT_S)
    assert not engine.close(timeout_s=0.05)
    with pytest.raises(RuntimeError, match="the engine is closed"):
        engine.process(make_frame(2))
    sh.go.release()
    assert engine.close(WAIT_S)
    assert_balanced(engine.counters)
    assert engine.counters.dropped_stale == 1


@pytest.mark.slow
@given(
    steps=st.lists(
        st.sampled_from(["frame", "frame", "frame", "reset", "size", "fail", "heal", "nap"]),
        min_size=5, max_size=40,
    ),
    policy=st.sampled_from(["propagate", "as_is", "drop"]),
    seed=st.integers(0, 1000),
)  # fmt: skip
@settings(max_examples=settings().max_examples // 4)
def test_every_job_is_accounted_for(
    tiny: Segmenter, make_frame: MakeFrame, steps: list[str], policy: str, seed: int
) -> None:
    """Random work, random delays in Sh; another thread checks the balance at every instant."""
    dice = random.Random(seed)
    sh = tiny.backbone.layer3[0] = Hold(tiny.backbone.layer3[0])
    masks, size, stop = 0, (16, 24), threading.Event()
    unbalanced: list[AssertionError] = []

    def jitter(x: Tensor) -> Tensor:
        time.sleep(dice.random() * 0.002)
        return x

    def watch(engine: Engine) -> None:
        while not stop.is_set():
            try:
                assert_balanced(engine.counters)
            except AssertionError as error:
                unbalanced.append(error)

    sh.action = jitter
    with threaded(tiny, 0.45, late_refinement=policy) as engine:
        watcher = threading.Thread(target=watch, args=(engine,))
        watcher.start()
        for index, step in enumerate(steps):
            if step == "reset":
                engine.reset()
            elif step == "size":
                size = (24, 16) if size == (16, 24) else (16, 24)
            elif step in ("fail", "heal"):
                sh.action = fail if step == "fail" else jitter
            elif step == "nap":
                time.sleep(dice.random() * 0.004)
            else:
                result = engine.process(make_frame(index, size=size))
                masks += 1
                assert result.mask.shape == size
                assert_balanced(result.counters)
        assert engine.close(WAIT_S)
        stop.set()
        watcher.join(WAIT_S)
    tiny.backbone.layer3[0] = sh.block
    assert unbalanced == []
    assert engine.counters.frames == masks
    assert engine.counters.pending == 0
    assert engine.counters.resets <= engine.counters.key_frames + steps.count("reset")
