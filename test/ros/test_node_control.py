"""Key frames by force and by budget, what became of each, and masks at the network's size."""

from __future__ import annotations

import contextlib
import time
from typing import Any

import numpy as np
import pytest
from harness import NODE, RELIABLE, Bench, Start, mask_of, message, picture, values_of, wait_until
from lowlat_seg_ros.msg import FrameReport, KeyFrameRefinement
from sensor_msgs.msg import CameraInfo, Image
from std_srvs.srv import Trigger

RGB = picture()


def send(bench: Bench, stamp_s: float) -> FrameReport:
    return bench.send(message(RGB, "rgb8", stamp_s))


def force(bench: Bench) -> Any:
    """The answer to ~/force_key_frame."""
    name = f"{bench.node.get_namespace()}/{NODE}/force_key_frame"
    client = bench.node.create_client(Trigger, name)
    assert client.wait_for_service(60.0)
    for _ in range(8):
        future = client.call_async(Trigger.Request())
        # Asked again, as an answer is lost where the node does not yet know who listens to it.
        with contextlib.suppress(AssertionError):
            wait_until(future.done, lambda: "no answer", within_s=10.0)
            return future.result()
    raise AssertionError("the node does not answer")


def test_forced_key_frame_is_refined_and_told(start: Start) -> None:
    _, bench = start(
        key_frame_policy="deviation", deviation_threshold=1.0, slow_track_min_share=1.0
    )
    refinements = bench.listen(KeyFrameRefinement, "key_frame_refinement")
    topic = f"{bench.node.get_namespace()}/{NODE}/key_frame_refinement"
    wait_until(lambda: bool(bench.node.count_publishers(topic)), lambda: "no such topic")
    began = time.monotonic()
    send(bench, 1.0)
    before = send(bench, 1.1)
    assert not before.is_key
    told: list[KeyFrameRefinement] = []
    stamp_s = 1.2
    while not told:  # the node may know of this subscription only later
        answer = force(bench)
        assert (answer.success, answer.message) == (True, "the next frame becomes the key frame")
        forced = send(bench, stamp_s)
        count = bench.counted().counters.forced
        assert (forced.kind, forced.is_key) == (FrameReport.PROPAGATED, True)
        stamp_s += 0.1
        ended = bench.status(
            "slow track",
            lambda v, n=count: v["pending"] == "0" and int(v["forced"]) >= n,
        )
        assert ended.level == b"\0"
        told = [r for r in refinements.all() if r.header == forced.header]
        assert stamp_s < 10
    (refinement,) = told
    assert (refinement.outcome, refinement.applied) == (KeyFrameRefinement.REFINED, True)
    elapsed_ms = (time.monotonic() - began) * 1e3
    assert 0 < refinement.compute_ms <= refinement.wait_ms + refinement.compute_ms < elapsed_ms
    assert (refinement.epoch, refinement.error) == (forced.epoch, "")
    after = send(bench, stamp_s)
    assert (after.is_key, after.exact, after.key_stamp) == (False, True, forced.header.stamp)


def test_no_key_frame_is_promised_while_the_node_is_inactive(start: Start) -> None:
    node, bench = start(autostart=False)
    from test_lifecycle import Manager

    Manager(bench).take_all("configure")
    answer = force(bench)
    assert not answer.success
    assert "activate it first" in answer.message
    assert node.status is None


def test_budget_is_kept_and_reported(start: Start) -> None:
    _, bench = start(key_frame_policy="deviation", deviation_threshold=1.0)
    fixed = bench.status("key frames", lambda v: v["key_frame_budget"] == "0.000")
    assert "fixed" in fixed.message
    send(bench, 1.0)
    assert send(bench, 1.1).threshold == 1.0
    assert all(r.successful for r in bench.set_parameters(key_frame_budget=0.5))
    reports = [send(bench, 1.2 + number / 10) for number in range(40)]
    assert reports[0].threshold == 1.0
    assert reports[4].threshold < 0.9  # no key frame so far
    assert any(report.is_key for report in reports)
    status = bench.status("key frames", lambda v: v["threshold"] == f"{reports[-1].threshold:.3f}")
    assert (values_of(status)["key_frame_budget"], status.level) == ("0.500", b"\0")
    assert "steered" in status.message
    assert all(r.successful for r in bench.set_parameters(key_frame_budget=0.0))
    assert send(bench, 6.0).threshold in (0.0, 1.0)  # 0 for a frame without a verdict
    (refused,) = bench.set_parameters(key_frame_budget=1.5)
    assert "Max: 1.0" in refused.reason


def test_masks_at_the_networks_size_come_with_their_camera_info(start: Start) -> None:
    _, bench = start(output_size="network", inference_height=24)
    infos = bench.listen(CameraInfo, "camera_info")
    overlays = bench.listen(Image, "overlay")
    camera = bench.node.create_publisher(CameraInfo, "camera_info", RELIABLE)
    info = CameraInfo(height=48, width=64, k=[50.0, 0.0, 31.5, 0.0, 50.0, 23.5, 0.0, 0.0, 1.0])
    image = message(RGB, "rgb8", 1.0)

    def answered() -> bool:
        image.header.stamp.nanosec += 1_000_000
        camera.publish(info)
        bench.send(image)
        return any(found.header == image.header for found in infos.all()) and bool(overlays.all())

    wait_until(answered, lambda: "no CameraInfo comes with a mask")
    found = infos.first(lambda item: item.header == image.header)
    mask = bench.mask_on(image)
    assert mask_of(mask).shape == (24, 32)
    assert (found.height, found.width) == (24, 32)
    np.testing.assert_allclose(found.k, [25.0, 0.0, 15.5, 0.0, 25.0, 11.5, 0.0, 0.0, 1.0])
    overlay = overlays.all()[0]
    assert (overlay.height, overlay.width) == (24, 32)


@pytest.mark.parametrize(
    ("reason", "change"),
    [
        ("encoding_changed", {"encoding": "bgr8"}),
        ("frame_id_changed", {"frame_id": "other"}),
        ("gap", {"stamp_s": 3.0}),
        ("time_jumped_back", {"stamp_s": 0.9}),
        ("size_changed", {"pixels": RGB[:40]}),
    ],
)
def test_change_begins_afresh_with_its_reason_counted(
    live: Bench, reason: str, change: dict[str, Any]
) -> None:
    image = {"pixels": RGB, "encoding": "rgb8", "stamp_s": 1.0, "frame_id": f"test_{reason}"}
    live.send(message(**image))
    before = live.send(message(**(image | {"stamp_s": 1.05})))  # no gap is seen after a full frame
    counted = live.counted().counters
    after = live.send(message(**(image | {"stamp_s": 1.1} | change)))
    assert (after.kind, after.reset_reason) == (FrameReport.FULL, reason)
    assert after.epoch == before.epoch + 1
    name, now_counted = f"resets_{reason}", live.counted().counters
    assert getattr(now_counted, name) == getattr(counted, name) + 1
    assert now_counted.resets == counted.resets + 1


def test_repeated_stamp_makes_a_key_frame(live: Bench) -> None:
    """Of the low-latency kind, and the first of a row alone: the clock stands still."""
    frame = message(RGB, "rgb8", 1.0, "test_repeated")
    live.send(frame)
    before = live.counted().counters
    for _ in range(3):
        seen = len(live.reports.all())
        live.camera.publish(frame)
        live.reports.first(lambda r: r.header == frame.header, after=seen)
    repeats = [r for r in live.reports.all() if r.header == frame.header][1:]
    assert [r.kind for r in repeats] == [FrameReport.PROPAGATED] * 3
    assert repeats[0].is_key
    assert live.counted().counters.duplicates == before.duplicates + 1
