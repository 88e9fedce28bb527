"""The frame loop when something fails: masks go on, and the state stays whole."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from lowlat_seg_ros.config import EngineConfig
from lowlat_seg_ros.engine.engine import Engine
from lowlat_seg_ros.engine.postprocess import mask_of
from lowlat_seg_ros.engine.preprocess import plan
from lowlat_seg_ros.engine.runner import Runner
from lowlat_seg_ros.frames import Frame, FrameError, MaskKind
from lowlat_seg_ros.network.segmenter import Segmenter

MakeFrame = Callable[..., Frame]
ALWAYS, NEVER = 0.0, 1.0  # thresholds of the deviation: every frame a key frame, or none


def engine_of(segmenter: Segmenter, threshold: float, delay: int = 1, size: int = 0) -> Engine:
    config = EngineConfig(key_frame_policy="deviation", foreground_threads=1, inference_height=size)
    return Engine.deterministic(segmenter, config, threshold=threshold, delay_frames=delay)


def test_a_step_that_is_not_finished_leaves_the_state_whole(
    tiny: Segmenter, make_frame: MakeFrame
) -> None:
    """Its frame is not the key frame, and the masks are those of an engine that chose none."""
    engine, other = engine_of(tiny, ALWAYS), engine_of(tiny, NEVER)
    for running in (engine, other):
        running.process(make_frame(0))
    for index in range(1, 4):
        step = engine.segment(make_frame(index))
        assert (step.mask == other.process(make_frame(index)).mask).all()
    assert engine.counters == other.counters
    last = engine.finish(step).selection
    assert last is not None
    assert last.is_key


def test_each_step_is_finished_once(tiny: Segmenter, make_frame: MakeFrame) -> None:
    engine = engine_of(tiny, NEVER)
    old, new = (engine.segment(make_frame(index)) for index in range(2))
    with pytest.raises(RuntimeError, match="finish each step once"):
        engine.finish(old)
    assert engine.finish(new).mask is new.mask
    with pytest.raises(RuntimeError, match="finish each step once"):
        engine.finish(new)
    assert engine.process(make_frame(2)).counters.frames == 3


class Saboteur(nn.Module):
    """Stands before a real part of the network and does ``action`` to what passes."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part
        self.action: Callable[[Tensor], Tensor] = lambda x: x

    def forward(self, x: Tensor) -> Tensor:
        return self.part(self.action(x))


def in_sh(segmenter: Segmenter) -> Saboteur:
    stage = segmenter.backbone.layer4
    stage[0] = Saboteur(stage[0])
    return stage[0]


def out_of_memory(_: Tensor) -> Tensor:
    raise torch.OutOfMemoryError("out of memory, 3 GiB wanted")


def test_error_in_sl_leaves_the_state_usable(tiny: Segmenter, make_frame: MakeFrame) -> None:
    part = tiny.backbone.conv1 = Saboteur(tiny.backbone.conv1)
    engine, other = engine_of(tiny, ALWAYS), engine_of(tiny, ALWAYS)
    for index in range(4):
        part.action = out_of_memory
        with pytest.raises(torch.OutOfMemoryError):
            engine.process(make_frame(index))
        part.action = lambda x: x
        result, expected = engine.process(make_frame(index)), other.process(make_frame(index))
        assert (result.mask == expected.mask).all()
        assert result.provenance == expected.provenance


def broken(_: Tensor) -> Tensor:
    raise RuntimeError("could not create a primitive")


FAILURES = [
    (
        out_of_memory,
        "OutOfMemoryError: out of memory, 3 GiB wanted; set a smaller inference_height",
    ),
    (lambda x: x * float("nan"), "not finite; set precision to fp32"),
    (lambda x: x + float("inf"), "not finite; set precision to fp32"),
    (broken, "could not create a primitive; where it fails again, report it"),
]


@pytest.mark.parametrize(("action", "message"), FAILURES)
@torch.inference_mode()
def test_sh_failing_on_a_first_frame(
    tiny: Segmenter, make_frame: MakeFrame, action: Callable[[Tensor], Tensor], message: str
) -> None:
    """Degraded masks until the background delivers, never a pause."""
    sh = in_sh(tiny)
    engine = engine_of(tiny, NEVER, delay=2)
    sh.action = action
    results = [engine.process(make_frame(i)) for i in range(4)]
    geometry = plan((48, 64), 0)
    for index, result in enumerate(results):
        assert result.provenance.kind is MaskKind.DEGRADED
        assert (result.provenance.exact, result.provenance.key_age_frames) == (False, 0)
        assert result.provenance.key_stamp_ns == result.stamp_ns
        image = Runner(tiny).image(make_frame(index).image, geometry)[0]
        expected = mask_of(tiny.classify_low(tiny.lower(image)), geometry)
        assert (result.mask == expected).all()
    # Frame 1 tried again in the background and failed at frame 3, which tries in its turn.
    assert (engine.counters.degraded, engine.counters.submitted) == (4, 2)
    assert (engine.counters.failed, engine.counters.pending) == (1, 1)
    assert message in engine.counters.last_failure
    assert message in engine.slow_track().last_error
    sh.action = lambda x: x
    kinds = [engine.process(make_frame(i)).provenance for i in (4, 5, 6)]
    assert [p.kind for p in kinds] == [MaskKind.DEGRADED] + 2 * [MaskKind.PROPAGATED]
    assert kinds[1].exact
    assert kinds[1].key_stamp_ns == make_frame(3).stamp_ns
    assert engine.counters.resets == 0


@pytest.mark.parametrize(("action", "message"), FAILURES)
def test_sh_failing_in_the_background(
    tiny: Segmenter, make_frame: MakeFrame, action: Callable[[Tensor], Tensor], message: str
) -> None:
    sh = in_sh(tiny)
    engine = engine_of(tiny, ALWAYS, delay=1)
    engine.process(make_frame(0))
    sh.action = action
    results = [engine.process(make_frame(i)) for i in range(1, 5)]
    assert all(r.provenance.kind is MaskKind.PROPAGATED for r in results)
    assert not any(r.provenance.exact for r in results[1:])
    assert (engine.counters.failed, engine.counters.refined) == (3, 0)
    assert message in engine.slow_track().last_error
    sh.action = lambda x: x
    assert engine.process(make_frame(5)).provenance.exact  # the next key frame tried again
    assert engine.slow_track().last_error == ""
    assert message in engine.counters.last_failure


def test_a_failure_on_a_first_frame_is_known_at_once_and_over_with_the_next_success(
    tiny: Segmenter, make_frame: MakeFrame
) -> None:
    sh = in_sh(tiny)
    engine = engine_of(tiny, NEVER, delay=100)
    sh.action = out_of_memory
    engine.process(make_frame(0))
    assert "in the foreground: OutOfMemoryError" in engine.slow_track().last_error
    sh.action = lambda x: x
    engine.process(make_frame(1))  # hands over to the background
    engine.reset()
    assert "OutOfMemoryError" in engine.slow_track().last_error  # what was cancelled says nothing
    assert engine.process(make_frame(2)).provenance.kind is MaskKind.FULL
    assert engine.slow_track().last_error == ""


def test_a_static_scene_retries_after_a_failure(tiny: Segmenter, make_frame: MakeFrame) -> None:
    sh = in_sh(tiny)
    config = EngineConfig(foreground_threads=1, max_gap_ms=0.0)
    engine = Engine.deterministic(tiny, config, threshold=NEVER, delay_frames=1)
    engine.process(make_frame(0))
    sh.action = out_of_memory
    tries = [engine.process(make_frame(index)).counters.submitted for index in range(1, 70)]
    assert tries[0] == 1
    assert tries[-1] == 3  # each 30th frame, though none deviates
    sh.action = lambda x: x
    for index in range(70, 100):
        engine.process(make_frame(index))
    assert engine.slow_track().last_error == ""
    assert engine.counters.refined > 0


def test_frame_of_absurd_size_is_refused_and_forgotten(
    tiny: Segmenter, make_frame: MakeFrame
) -> None:
    engine = engine_of(tiny, NEVER, size=32)
    engine.process(make_frame(0))
    with pytest.raises(FrameError, match="set a smaller inference_height"):
        engine.process(make_frame(1, size=(1, 1_000_000)))
    assert engine.process(make_frame(2)).provenance.kind is MaskKind.PROPAGATED
    assert engine.counters.resets == 0


def test_one_caller_at_a_time(tiny: Segmenter, make_frame: MakeFrame) -> None:
    engine = engine_of(tiny, NEVER)
    errors: list[str] = []

    def intrude() -> None:
        try:
            engine.process(make_frame(1))
        except RuntimeError as error:
            errors.append(str(error))

    def in_another_thread(body: Callable[[], object]) -> None:
        thread = threading.Thread(target=body)
        thread.start()
        thread.join()

    step = engine.segment(make_frame(0))
    in_another_thread(intrude)
    assert errors == ["another thread's frame is not finished; process frames in one thread"]
    engine.finish(step)
    in_another_thread(lambda: engine.segment(make_frame(1)))  # it ends without finishing
    assert engine.process(make_frame(2)).counters.frames == 3
