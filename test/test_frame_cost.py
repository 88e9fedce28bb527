"""What a frame costs is measured at the camera's pace."""

from __future__ import annotations

from lowlat_seg_ros.config import EngineConfig
from lowlat_seg_ros.engine.timing import FRAMES, measure
from lowlat_seg_ros.network.segmenter import Segmenter


def test_frames_are_as_far_apart_as_the_camera_s(tiny: Segmenter) -> None:
    pauses: list[float] = []
    one = EngineConfig(foreground_threads=1)
    # A frame takes less than 10 s, whatever else the machine does.
    cost = measure(tiny, one, (48, 64), rate_hz=0.1, sleep=pauses.append)
    assert (cost.width, cost.height) == (64, 48)
    assert len(pauses) == FRAMES > 4
    assert all(0 < pause < 10 for pause in pauses)
    pauses.clear()
    measure(tiny, one, (48, 64), sleep=pauses.append)
    assert set(pauses) == {0.0}  # back to back
