"""The deterministic engine: the same masks on every run, and the same as the real one's."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from lowlat_seg_ros.config import EngineConfig
from lowlat_seg_ros.engine.engine import Engine
from lowlat_seg_ros.frames import Frame, Segmentation
from lowlat_seg_ros.network.segmenter import Segmenter

MakeFrame = Callable[..., Frame]
ALWAYS = 0.0  # threshold of the deviation: every frame a key frame

#: Key frames only where the selector wants them: what Sh is given does not depend on its speed.
BY_DEVIATION = {"key_frame_policy": "deviation"}


def drain(engine: Engine) -> None:
    deadline = time.monotonic() + 30.0
    while engine.counters.pending:
        assert time.monotonic() < deadline, "the slow track is stuck"
        time.sleep(0.001)


def test_drained_threads_and_virtual_clock_agree(tiny: Segmenter, make_frame: MakeFrame) -> None:
    """Same order of deliveries, same masks: the deterministic engine measures the real one."""
    config = EngineConfig(**BY_DEVIATION, foreground_threads=1, slow_track_threads=1)
    virtual = Engine.deterministic(tiny, config, threshold=ALWAYS, delay_frames=1)
    with Engine(tiny, config, threshold=ALWAYS) as real:
        for index in range(8):
            expected, result = virtual.process(make_frame(index)), real.process(make_frame(index))
            drain(real)
            assert (result.mask == expected.mask).all()
            assert result.provenance == expected.provenance
            assert result.selection == expected.selection


@pytest.mark.parametrize("delay", [{"delay_frames": 3}, {"delay_ms": 250.0}])
def test_deterministic_runs_are_equal(
    tiny: Segmenter, make_frame: MakeFrame, delay: dict[str, float]
) -> None:
    def run() -> list[Segmentation]:
        config = EngineConfig(**BY_DEVIATION, foreground_threads=1, max_key_interval=2)
        engine = Engine.deterministic(tiny, config, threshold=0.48, **delay)  # type: ignore[arg-type]
        stamps = [0, 100, 200, 300, 400, 500, 450, 550, 650, 3000, 3100, 3200, 3300, 3400]
        return [engine.process(make_frame(i, stamp_ms=ms)) for i, ms in enumerate(stamps)]

    first, second = run(), run()
    for a, b in zip(first, second, strict=True):
        assert (a.mask == b.mask).all()
        assert (a.provenance, a.selection, a.counters) == (b.provenance, b.selection, b.counters)
    assert first[-1].counters.resets == 2
    assert first[-1].counters.refined + first[-1].counters.carried > 0
