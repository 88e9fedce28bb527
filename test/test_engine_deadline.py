"""The engine under a deadline: load is shed and taken up again, and no mask is lost by it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lowlat_seg_ros.config import ConfigError, EngineConfig
from lowlat_seg_ros.engine.counters import LiveCounters
from lowlat_seg_ros.engine.engine import Engine
from lowlat_seg_ros.engine.key_frame import Refine
from lowlat_seg_ros.engine.postprocess import mask_of
from lowlat_seg_ros.engine.preprocess import plan, resample
from lowlat_seg_ros.engine.runner import Runner
from lowlat_seg_ros.engine.schedule import DOWN_FRAMES, LEVELS, UP_MISSES
from lowlat_seg_ros.engine.virtual_slow_track import Delay, VirtualSlowTrack
from lowlat_seg_ros.frames import Counters, Frame, MaskKind, Segmentation
from lowlat_seg_ros.network.segmenter import Segmenter

MakeFrame = Callable[..., Frame]
ALWAYS, NEVER = 0.0, 1.0
LIMIT_MS = 100.0
SLOW_MS, QUICK_MS = 1000.0, 1.0
TOP = len(LEVELS) - 1

#: Key frames only where the selector wants them: what Sh is given does not depend on its speed.
BY_DEVIATION = {"key_frame_policy": "deviation"}


class Machine:
    """A clock that a frame puts forward by ``frame_ms``, scaled with the pixels Sl sees."""

    def __init__(self, segmenter: Segmenter, size: tuple[int, int] = (48, 64)) -> None:
        self.frame_ms = QUICK_MS
        self.sizes: list[tuple[int, int]] = []  # (height, width) of the network's inputs
        self._pixels, self._now_ns = size[0] * size[1], 0
        segmenter.backbone.conv1.register_forward_pre_hook(self._work)

    def __call__(self) -> int:
        return self._now_ns

    def _work(self, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        height, width = inputs[0].shape[2:]
        self.sizes.append((height, width))
        self._now_ns += round(1e6 * self.frame_ms * height * width / self._pixels)


def engine_of(
    segmenter: Segmenter, machine: Machine, threshold: float, delay: int = 1, **config: Any
) -> Engine:
    chosen = EngineConfig(
        **(
            {"key_frame_policy": "deviation", "foreground_threads": 1, "max_latency_ms": LIMIT_MS}
            | config
        )
    )
    return Engine.deterministic(
        segmenter, chosen, threshold=threshold, delay_frames=delay, clock=machine
    )


def climb(engine: Engine, machine: Machine, make_frame: MakeFrame, level: int) -> int:
    """A quick frame, then slow ones until the next is at ``level``; the index of that one."""
    count = 1 + UP_MISSES * level
    for index in range(count):
        engine.process(make_frame(index))
        machine.frame_ms = SLOW_MS
    height, width = plan((48, 64), 0, LEVELS[level].scale).padded
    machine.frame_ms = 99.0 * 48 * 64 / (height * width)  # in time, but not one level down
    return count


def assert_balanced(c: Counters) -> None:
    ended = c.refined + c.carried + c.superseded + c.dropped_late + c.dropped_stale + c.failed
    assert c.submitted == ended + c.pending, c
    assert min(v for v in vars(c).values() if isinstance(v, int)) >= 0, c


@pytest.mark.parametrize("threshold", [ALWAYS, NEVER])
def test_slow_frames_climb_and_quick_ones_recover(
    tiny: Segmenter, make_frame: MakeFrame, threshold: float
) -> None:
    machine = Machine(tiny)
    engine = engine_of(tiny, machine, threshold)
    plans = [SLOW_MS] * UP_MISSES * (TOP + 1) + [QUICK_MS] * (DOWN_FRAMES * TOP + 1)
    results: list[Segmentation] = []
    for index, machine.frame_ms in enumerate(plans):
        results.append(engine.process(make_frame(index)))
        assert_balanced(results[-1].counters)
    levels = [result.deadline.level for result in results]
    up = [level for level in range(TOP + 1) for _ in range(UP_MISSES)]
    down = [level for level in range(TOP, 0, -1) for _ in range(DOWN_FRAMES)]
    assert levels == [*up, *down, 0]
    at_level = [plan((48, 64), 0, level.scale).padded for level in LEVELS]
    assert machine.sizes == [at_level[level] for level in levels]
    assert at_level[2:] == [(48, 64), (40, 48), (24, 32)]
    # A mask for each frame, at the input's size, and Sh never in the foreground again.
    assert {result.mask.shape for result in results} == {(48, 64)}
    assert {result.provenance.kind for result in results[1:]} == {MaskKind.PROPAGATED}
    assert not any(result.timing.higher_ms for result in results[1:])
    counters = engine.counters
    assert (counters.resets, results[-1].provenance.epoch) == (0, 0)
    assert counters.frames == len(plans)
    assert counters.missed == sum(result.deadline.missed for result in results)
    assert counters.missed == UP_MISSES * (TOP + 1)
    assert counters.shed == sum(level > 0 for level in levels)


@torch.inference_mode()
def test_first_frame_of_a_new_size(tiny: Segmenter, make_frame: MakeFrame) -> None:
    """Its key frame is the old one, resampled; then it is the key frame itself."""
    machine = Machine(tiny)
    engine = engine_of(tiny, machine, NEVER)
    index = climb(engine, machine, make_frame, 3)
    result = engine.process(make_frame(index))
    old, new = plan((48, 64), 0), plan((48, 64), 0, 3 / 4)
    low = tiny.lower(Runner(tiny).image(make_frame(0).image, old)[0])
    now = tiny.lower(Runner(tiny).image(make_frame(index).image, new)[0])
    predictor = tiny.predictor
    remembered = predictor.remember(predictor.reduce(low))
    weights = predictor(resample(remembered, old, new), predictor.reduce(now))
    high = tiny.propagate(resample(tiny.higher(low), old, new), weights)
    assert (result.mask == mask_of(tiny.classify_fused(high, now), new)).all()
    source = result.provenance
    assert (source.exact, source.key_age_frames, source.key_stamp_ns) == (False, index, 0)
    assert result.selection is not None
    assert result.selection.is_key

    after = engine.process(make_frame(index + 1))
    assert after.provenance.key_stamp_ns == make_frame(index).stamp_ns
    assert after.provenance.exact  # Sh takes a frame here
    assert after.selection is None


def test_frame_that_fails_at_a_new_size(tiny: Segmenter, make_frame: MakeFrame) -> None:
    """The next one finds a resampled key frame too, and takes its place."""
    machine = Machine(tiny)
    engine = engine_of(tiny, machine, NEVER)
    index = climb(engine, machine, make_frame, 3)

    def refuse(*_: object) -> None:
        raise MemoryError("no memory left")

    hook = tiny.backbone.layer2[0].register_forward_pre_hook(refuse)
    with pytest.raises(MemoryError):
        engine.process(make_frame(index))
    hook.remove()
    selection = engine.process(make_frame(index)).selection
    assert selection is not None
    assert selection.is_key
    assert engine.counters.frames == index + 1


@pytest.mark.parametrize(("interval", "expected"), [(0, [3, 6, 9]), (4, [3, 4, 7, 8])])
def test_selector_runs_on_every_third_frame(
    tiny: Segmenter, make_frame: MakeFrame, interval: int, expected: list[int]
) -> None:
    """And on those that become the key frame for their age, which shedding does not put off."""
    machine = Machine(tiny)
    engine = engine_of(tiny, machine, ALWAYS, delay=100)
    base = climb(engine, machine, make_frame, 1)  # the last of which is the key frame
    setting = {"foreground_threads": 1, "max_latency_ms": LIMIT_MS, "deviation_threshold": NEVER}
    engine.reconfigure(EngineConfig(**BY_DEVIATION, max_key_interval=interval, **setting))  # type: ignore[arg-type]
    ran = [
        age
        for age in range(1, 11)
        if engine.process(make_frame(base - 1 + age)).selection is not None
    ]
    assert ran == expected


@pytest.mark.parametrize("policy", ["propagate", "as_is", "drop"])
def test_result_of_an_older_size_is_fitted_or_dropped(
    tiny: Segmenter, make_frame: MakeFrame, policy: str
) -> None:
    """Jobs begin on level 2 and end on 3, when frames of the smaller size are the key frame."""
    machine = Machine(tiny)
    engine = engine_of(tiny, machine, ALWAYS, delay=8, late_refinement=policy)
    index = climb(engine, machine, make_frame, 3)
    before = engine.counters
    assert before.pending == 1 + (before.submitted > 1)
    while engine.counters.carried + engine.counters.dropped_late == (
        before.carried + before.dropped_late
    ):
        result = engine.process(make_frame(index))
        index += 1
    assert result.deadline.level == 3
    assert result.mask.shape == (48, 64)
    after = engine.counters
    assert (after.dropped_late > before.dropped_late) is (policy == "drop")
    assert (after.carried > before.carried) is (policy != "drop")
    assert after.refined == before.refined
    assert not result.provenance.exact
    assert_balanced(after)


def test_waiting_counts(tiny: Segmenter, make_frame: MakeFrame) -> None:
    machine = Machine(tiny)
    engine = engine_of(tiny, machine, NEVER)
    for index, (waited_ms, missed) in enumerate([(98.9, False), (99.1, True)]):
        step = engine.segment(make_frame(index), waited_ms=waited_ms)
        assert engine.counters.missed == int(missed)
        result = engine.finish(step)
        assert result.deadline.missed is missed
        assert result.deadline.latency_ms == pytest.approx(waited_ms + QUICK_MS)
        assert result.timing.latency_ms == pytest.approx(QUICK_MS)
        assert step.deadline == result.deadline


def test_a_deadline_taken_back_ends_shedding_at_once(
    tiny: Segmenter, make_frame: MakeFrame
) -> None:
    machine = Machine(tiny)
    engine = engine_of(tiny, machine, NEVER)
    index = climb(engine, machine, make_frame, TOP)
    assert engine.process(make_frame(index)).deadline.level == TOP
    missed = engine.counters.missed
    engine.reconfigure(EngineConfig(**BY_DEVIATION, foreground_threads=1))
    machine.frame_ms = SLOW_MS
    result = engine.process(make_frame(index + 1))
    assert (result.deadline.level, result.deadline.missed) == (0, False)
    assert machine.sizes[-1] == (48, 64)
    assert result.provenance.kind is MaskKind.PROPAGATED
    assert engine.counters.missed == missed


def test_slow_track_has_the_smaller_of_both_shares(tiny: Segmenter, make_frame: MakeFrame) -> None:
    shares: list[float] = []

    class Noting(VirtualSlowTrack):
        def __init__(self, refine: Refine, ledger: LiveCounters, config: EngineConfig) -> None:
            super().__init__(refine, ledger, config, Delay(frames=1))

        def set_min_share(self, share: float) -> None:
            shares.append(share)

    machine = Machine(tiny)
    config = EngineConfig(
        **BY_DEVIATION,
        foreground_threads=1,
        max_latency_ms=LIMIT_MS,
        slow_track_min_share=0.3,
    )
    engine = Engine(tiny, config, threshold=NEVER, clock=machine, slow_track=Noting)
    climb(engine, machine, make_frame, 3)
    assert shares == [0.3] * (1 + 2 * UP_MISSES) + [LEVELS[2].slow_share] * UP_MISSES
    assert LEVELS[2].slow_share < 0.3


def test_deterministic_masks_need_a_clock_under_a_deadline(tiny: Segmenter) -> None:
    with pytest.raises(ConfigError, match="max_latency_ms is 50"):
        Engine.deterministic(
            tiny,
            EngineConfig(**BY_DEVIATION, max_latency_ms=50.0),
            threshold=NEVER,
            delay_frames=1,
        )


def test_sh_failing_on_the_first_frame_at_any_size(tiny: Segmenter, make_frame: MakeFrame) -> None:
    """Without F_h there is nothing of it to resample, and degraded masks go on."""

    def refuse(*_: object) -> None:
        raise MemoryError("no memory left")

    hook = tiny.backbone.layer4[0].register_forward_pre_hook(refuse)
    machine = Machine(tiny)
    engine = engine_of(tiny, machine, NEVER, delay=2)
    index = climb(engine, machine, make_frame, TOP)
    assert engine.process(make_frame(index)).provenance.kind is MaskKind.DEGRADED
    assert engine.counters.degraded == index + 1
    hook.remove()
    machine.frame_ms = QUICK_MS
    results = [engine.process(make_frame(index + i)) for i in range(1, 6)]
    assert results[-1].provenance.kind is MaskKind.PROPAGATED
    assert_balanced(engine.counters)


#: Stretches of frames of one cost, and resets.
STEPS = st.lists(
    st.one_of(
        st.just("reset"),
        st.tuples(st.sampled_from([1.0, 110.0, 170.0, 300.0, 1000.0]), st.integers(1, 35)),
    ),
    min_size=2, max_size=8,
)  # fmt: skip


@pytest.mark.slow
@given(
    steps=STEPS,
    policy=st.sampled_from(["propagate", "as_is", "drop"]),
    delay=st.sampled_from([0, 1, 4, 11]),
    threshold=st.sampled_from([ALWAYS, 0.45, NEVER]),
)
@settings(max_examples=settings().max_examples // 4)
def test_whatever_the_load_every_frame_has_its_mask(
    tiny: Segmenter, make_frame: MakeFrame, steps: list[Any], policy: str, delay: int,
    threshold: float,
) -> None:  # fmt: skip
    machine = Machine(tiny, (18, 26))
    engine = engine_of(tiny, machine, threshold, delay, late_refinement=policy)
    play(engine, machine, make_frame, steps)
    assert_balanced(engine.counters)


@pytest.mark.slow
@given(steps=STEPS, policy=st.sampled_from(["propagate", "as_is", "drop"]))
@settings(max_examples=settings().max_examples // 8)
def test_sizes_change_under_a_running_sh(
    tiny: Segmenter, make_frame: MakeFrame, steps: list[Any], policy: str
) -> None:
    """The same with a real thread: tensors of two sizes would make a frame or a job fail."""
    machine = Machine(tiny, (18, 26))
    config = EngineConfig(
        foreground_threads=1, max_latency_ms=LIMIT_MS, late_refinement=policy,
        slow_track_min_share=1.0,
    )  # fmt: skip
    with Engine(tiny, config, threshold=0.45, clock=machine) as engine:
        play(engine, machine, make_frame, steps)
        assert engine.close(30.0)
    assert engine.counters.pending == 0
    assert engine.counters.failed == 0
    assert_balanced(engine.counters)


def play(engine: Engine, machine: Machine, make_frame: MakeFrame, steps: list[Any]) -> None:
    """Do ``steps``; each frame has a mask, and only a reset one of kind FULL."""
    index, full, missed, shed = 0, True, 0, 0
    for step in steps:
        if step == "reset":
            engine.reset()
            full = True
            continue
        machine.frame_ms, count = step
        for _ in range(count):
            result = engine.process(make_frame(index, size=(18, 26)))
            assert result.mask.shape == (18, 26)
            assert (result.provenance.kind is MaskKind.FULL) is full
            missed, shed = missed + result.deadline.missed, shed + (result.deadline.level > 0)
            index, full = index + 1, False
            assert_balanced(result.counters)
    counters = engine.counters
    assert (counters.frames, counters.missed, counters.shed) == (index, missed, shed)
