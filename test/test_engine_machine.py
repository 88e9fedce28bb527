"""The engine under anything that may happen, in any order (hypothesis' state machine)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)
from torch import Tensor

from lowlat_seg_ros.config import EngineConfig
from lowlat_seg_ros.engine.engine import Engine
from lowlat_seg_ros.engine.step import Step
from lowlat_seg_ros.frames import Frame, MaskKind, Segmentation
from lowlat_seg_ros.network.segmenter import Segmenter

CLASSES = 11
SIZES = [(16, 24), (24, 16), (8, 8), (1, 1), (17, 31)]

#: Milliseconds from one stamp to the next: usual, repeated, back, a gap, and none that can be true.
STEPS_MS = [66, 66, 66, 0, -50, 5_000, 10**12]


class Injected(Exception):
    """What the machine makes the network raise."""


class Fault:
    """Stands before a track of the network, and fails as it is told to."""

    def __init__(self, track: Callable[..., Tensor]) -> None:
        self.track, self.kind = track, ""

    def __call__(self, x: Tensor, *pause: Callable[[], None]) -> Tensor:
        if self.kind == "raise":
            raise Injected
        if self.kind == "memory":
            torch.empty(2**55)
        return self.track(x * float("nan") if self.kind == "nan" else x, *pause)


class EngineMachine(RuleBasedStateMachine):
    """Frames of any size and time, resets, settings, failures of Sl and Sh, steps left open."""

    def __init__(self, network: Segmenter, sl: Fault, sh: Fault) -> None:
        super().__init__()
        self.network, self.sl, self.sh = network, sl, sh
        self.engine: Any = None
        self.stamp_ms, self.size, self.encoding = 0, SIZES[0], "rgb8"
        self.epoch, self.epoch_began, self.masks = 0, 0, 0

    @initialize(
        delay=st.sampled_from([None, 0, 1, 3, 100]),
        policy=st.sampled_from(["when_free", "deviation"]),
        late=st.sampled_from(["propagate", "as_is", "drop"]),
        threshold=st.sampled_from([0.0, 0.3, 1.0]),
    )
    def start(self, delay: int | None, policy: str, late: str, threshold: float) -> None:
        """With the slow track's thread where ``delay`` is None, else on a virtual clock."""
        config = EngineConfig(
            foreground_threads=1, inference_height=0, key_frame_policy=policy,
            late_refinement=late, slow_track_priority="normal",
        )  # fmt: skip
        if delay is None:
            self.engine = Engine(self.network, config, threshold=threshold)
        else:
            self.engine = Engine.deterministic(
                self.network, config, threshold=threshold, delay_frames=delay
            )

    @rule(step_ms=st.sampled_from(STEPS_MS), seed=st.integers(0, 3), finish=st.sampled_from("yyyn"))
    def frame(self, step_ms: int, seed: int, finish: str) -> None:
        self.stamp_ms += step_ms
        pixels = np.random.default_rng(seed).integers(0, 256, (*self.size, 3), np.uint8)
        frame = Frame(pixels, self.stamp_ms * 10**6, "camera", self.encoding)
        index = self.engine.counters.frames
        try:
            step = self.engine.segment(frame)
        except (Injected, RuntimeError):
            assert self.sl.kind, "a frame fails though Sl works"
            assert self.engine.counters.frames == index
            return
        self.masks += 1
        self.check(step, index)
        if finish == "y":
            self.check(self.engine.finish(step), index)

    def check(self, result: Segmentation | Step, index: int) -> None:
        """The mask has valid classes, and nothing of an older epoch is in it."""
        assert result.mask.shape == self.size
        assert result.mask.dtype == np.uint8
        assert result.mask.max() < CLASSES
        source = result.provenance
        assert source.epoch >= self.epoch
        if source.epoch > self.epoch or source.reset is not None:
            self.epoch, self.epoch_began = source.epoch, index
        assert index - source.key_age_frames >= self.epoch_began
        if source.kind is MaskKind.FULL:
            assert source.key_age_frames == 0

    @rule(size=st.sampled_from(SIZES), encoding=st.sampled_from(["rgb8", "bgr8"]))
    def other_camera(self, size: tuple[int, int], encoding: str) -> None:
        self.size, self.encoding = size, encoding

    @rule(kind=st.sampled_from(["raise", "nan", "memory", ""]))
    def sh_fails(self, kind: str) -> None:
        self.sh.kind = kind

    @rule(kind=st.sampled_from(["raise", "memory", "", ""]))
    def sl_fails(self, kind: str) -> None:
        self.sl.kind = kind

    @rule()
    def reset(self) -> None:
        self.engine.reset()

    @rule()
    def force(self) -> None:
        self.engine.force_key_frame()

    @rule(
        interval=st.sampled_from([0, 1, 5]),
        budget=st.sampled_from([0.0, 0.3]),
    )
    def settings_change(self, interval: int, budget: float) -> None:
        self.engine.reconfigure(
            dataclasses.replace(
                self.engine.config, max_key_interval=interval, key_frame_budget=budget
            )
        )

    @invariant()
    def balances(self) -> None:
        if self.engine is None:
            return
        c = self.engine.counters
        ended = c.refined + c.carried + c.superseded + c.dropped_late + c.dropped_stale + c.failed
        assert c.submitted == ended + c.pending
        assert c.frames == self.masks
        assert min(v for v in vars(c).values() if isinstance(v, int)) >= 0

    def teardown(self) -> None:
        if self.engine is not None:
            assert self.engine.close(30.0)
            if self.engine.slow_track().alive is False:
                assert self.engine.counters.pending == 0


def test_whatever_happens_the_ledger_balances_and_masks_are_of_their_epoch(
    gated: Segmenter,
) -> None:
    network: Any = gated
    sl = network.lower = Fault(gated.lower)
    sh = network.higher = Fault(gated.higher)

    def machine() -> EngineMachine:
        sl.kind = sh.kind = ""
        return EngineMachine(gated, sl, sh)

    few = settings(max_examples=settings().max_examples // 4, stateful_step_count=25)
    run_state_machine_as_test(machine, settings=few)
