"""Work beside a frame: done once, by whoever comes first, with the same masks."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable

import numpy as np
import pytest
import torch

from lowlat_seg_ros.config import NETWORKS, EngineConfig
from lowlat_seg_ros.engine.beside import Beside
from lowlat_seg_ros.engine.cpu_threads import ForegroundThreads
from lowlat_seg_ros.engine.engine import Engine
from lowlat_seg_ros.frames import Frame
from lowlat_seg_ros.network.segmenter import Segmenter


@pytest.fixture
def beside() -> Beside:
    return Beside()


def test_work_is_done_once_in_the_thread_or_by_who_waits_for_it(beside: Beside) -> None:
    did, begun, gate = list[str](), threading.Event(), threading.Event()

    def work(name: str) -> str:
        did.append(f"{name} in {threading.current_thread().name}")
        return name

    def wait() -> str:
        begun.set()
        gate.wait(60)
        return work("first")

    first = beside.start(wait, urgent=False)
    second = beside.start(lambda: work("second"), urgent=False)
    me = threading.current_thread().name
    assert begun.wait(60)
    assert second() == "second"  # the thread is at the first one, so it is done here
    gate.set()
    assert first() == "first"
    beside.close()
    assert sorted(did) == ["first in beside_0", f"second in {me}"]


def test_what_the_work_raises_is_raised_where_its_result_is_wanted(beside: Beside) -> None:
    def fail() -> None:
        raise ValueError("no flow")

    with pytest.raises(ValueError, match="no flow"):
        beside.start(fail, urgent=True)()
    beside.close()
    beside.close()  # nothing to end


def test_masks_are_the_same_with_work_beside(
    make_frame: Callable[..., Frame], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    network = Segmenter(NETWORKS["tiny_gated"]).eval()
    config = EngineConfig(key_frame_policy="deviation", foreground_threads=1)
    used = list[bool]()
    start = Beside.start

    def counted(self: Beside, *args: object, **options: object) -> object:
        used.append(True)
        return start(self, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Beside, "start", counted)
    masks = {}
    for free in (False, True):
        monkeypatch.setattr(ForegroundThreads, "leave_a_core", free)
        with Engine(network, dataclasses.replace(config), threshold=1.0) as engine:
            masks[free] = [engine.process(make_frame(index)).mask for index in range(5)]
        assert not any(thread.name.startswith("beside") for thread in threading.enumerate())
        assert len(used) == 4 * free  # all but the first frame, which has nothing to carry
    assert np.array_equal(masks[False], masks[True])
