"""What the status ``images`` of a live node says of stamps, resets and pictures."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import pytest
from harness import NODE, RELIABLE, Bench, Start, message, picture, values_of
from sensor_msgs.msg import Image

from lowlat_seg_ros.ros.plausibility import ENTER, FROZEN, STAMPS

RGB = picture()
WARN, ERROR = b"\1", b"\2"


@pytest.fixture(scope="module")
def bench(start_once: Start) -> Bench:
    return start_once()[1]


def stream(
    bench: Bench,
    stamp_s: Callable[[int], float],
    image: Callable[[int], np.ndarray] = lambda number: picture(seed=number),
    count: int = STAMPS,
) -> int:
    """Send ``count`` images, each when the one before is answered; statuses seen before the last"""
    for number in range(count):
        seen = len(bench.diagnostics.all())
        bench.send(message(image(number), "rgb8", stamp_s(number)))
    return seen


def said(bench: Bench, level: bytes, *texts: str, after: int = 0) -> dict[str, str]:
    """The values of the first status after these, of the level or worse, that says ``texts``."""
    name = f"{bench.node.get_namespace()[1:]}/{NODE}: images"
    status = bench.diagnostics.first(
        lambda s: s.name == name and s.level >= level and all(t in s.message for t in texts), after
    )
    return values_of(status)


def test_stamps_that_cannot_be_true_are_said_and_in_no_latency(bench: Bench) -> None:
    began = time.time()
    seen = stream(bench, lambda number: began - 3600 + number / 10)
    values = said(bench, WARN, "60 min after their stamps", "chrony or PTP", after=seen)
    assert 3.5e6 < float(values["stamp_skew_ms"]) < 3.8e6
    seen = stream(bench, lambda number: began + 3600 + number / 10)
    values = said(bench, WARN, "ahead of the node's clock", after=seen)
    assert -3.8e6 < float(values["stamp_skew_ms"]) < -3.5e6
    latency = bench.status("processing", lambda v: v["output_latency_ms"] == "nan", after=seen)
    assert float(values_of(latency)["output_latency_max_ms"]) == 0.0  # there was none
    camera = bench.status("camera", lambda v: "image_age_ms" in v, after=seen)
    assert float(values_of(camera)["image_age_ms"]) < 0


def test_a_slow_camera_is_no_error(start: Start) -> None:
    """An image every 2 s by the node's clock: warnings that name two parameters, and no more."""
    _, bench = start(use_sim_time=True, listen=False)
    node = f"{bench.node.get_namespace()[1:]}/{NODE}: "
    for number in range(10):
        clock_s = 100.0 + 2 * number
        seen = len(bench.diagnostics.all())
        bench.set_clock(clock_s)
        if number:  # the clock is there before the image
            bench.status("camera", lambda v: float(v["image_age_ms"]) == 2000.0, after=seen)
        bench.send(message(picture(seed=number), "rgb8", clock_s))
    found = [status for status in bench.diagnostics.all() if status.name.startswith(node)]
    assert [status.message for status in found if status.level == ERROR] == []
    late = {status.name.removeprefix(node): status.message for status in found[-30:]
            if status.level == WARN}  # fmt: skip
    assert set(late) == {"camera", "images"}
    assert "set it to 6000" in late["camera"]
    assert "set it to 4000" in late["images"]
    seen = len(bench.diagnostics.all())
    results = bench.set_parameters(camera_timeout_ms=6000.0, max_gap_ms=4000.0)
    assert all(result.successful for result in results)
    bench.status("camera", lambda v: v["state"] == "active", after=seen)


def test_two_cameras_on_one_topic_are_named(bench: Bench) -> None:
    second = bench.node.create_publisher(Image, "image", RELIABLE)
    for number in range(20):
        seen = len(bench.diagnostics.all())
        name = ("left", "right")[number % 2]
        bench.send(message(picture(seed=number), "rgb8", time.time(), name))
    values = said(bench, ERROR, "frame_id_changed", "several publishers", "bench (2)", after=seen)
    assert float(values["reset_share"]) > 0.25
    assert int(values["recent_resets_frame_id_changed"]) >= 19
    name = f"{bench.node.get_namespace()[1:]}/{NODE}: connections"
    bench.diagnostics.first(lambda s: s.name == name and "2 publishers send images" in s.message)
    bench.node.destroy_publisher(second)
    pace = bench.status("processing", lambda v: float(v["frame_takes_ms"]) > 0, after=seen)
    values = values_of(pace)
    load, takes, period = (
        float(values[name]) for name in ("load", "frame_takes_ms", "camera_period_ms")
    )
    assert load == pytest.approx(takes / period, rel=0.01)


def test_a_camera_that_shows_nothing_is_said(bench: Bench) -> None:
    def now(_: int) -> float:
        return time.time()

    seen = stream(bench, now, lambda _: np.zeros_like(RGB), ENTER)
    values = said(bench, WARN, "images are black; look at lens cap", after=seen)
    assert float(values["brightness"]) == 0.0
    seen = stream(bench, now, lambda _: RGB, 2 * FROZEN)
    values = said(bench, WARN, "the same pixels for", "under new stamps", after=seen)
    assert int(values["unchanged_images"]) >= FROZEN - 1
