"""How the live node behaves: parameters, ledger, clock, diagnostics, quality of service."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import numpy as np
import pytest
from harness import (
    RELIABLE,
    TIMEOUT_S,
    Bench,
    Start,
    balances,
    message,
    picture,
    values_of,
    wait_until,
)
from lowlat_seg_ros.msg import FrameReport, Ledger
from rclpy.duration import Duration
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy, qos_profile_sensor_data
from sensor_msgs.msg import Image

from lowlat_seg_ros.config import EngineConfig
from lowlat_seg_ros.ros.params import NAMES, NodeConfig, descriptor

RGB = picture()


def test_every_setting_is_a_described_parameter(live: Bench) -> None:
    fields = [item for kind in (NodeConfig, EngineConfig) for item in dataclasses.fields(kind)]
    names = [NAMES[item.name] for item in fields]
    assert set(names) <= set(live.list_parameters())
    for item, found in zip(fields, live.describe_parameters(names), strict=True):
        wanted = descriptor(item)
        wanted.name, wanted.type = found.name, found.type
        assert found == wanted


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("deviation_threshold", 1.5, "Max: 1.0"),
        ("deviation_threshold", float("nan"), "Max: 1.0"),
        ("overlay_alpha", -0.1, "Min: 0.0"),
        ("max_key_interval", -1, "Min: 0"),
        ("max_latency_ms", -1.0, "Min: 0.0"),
        ("max_latency_ms", float("nan"), "Max: 3600000.0"),
        ("max_latency_ms", "soon", "write a number with a point, such as 0.0"),
        ("inference_height", 240, "inference_height is -1 until the node is cleaned up, not 240"),
        ("checkpoint", "other", "clean it up first (ros2 lifecycle set)"),
        ("overlay_alpha", "half", "write a number with a point, such as 0.5"),
    ],
)
def test_bad_value_is_refused_with_the_rule(
    live: Bench, name: str, value: object, reason: str
) -> None:
    (result,) = live.set_parameters(**{name: value})
    assert not result.successful
    assert reason in result.reason


def test_dynamic_parameters_take_effect_on_the_next_frame(start: Start) -> None:
    _, bench = start(key_frame_policy="deviation", deviation_threshold=1.0)
    bench.send(message(RGB, "rgb8", 1.0))
    before = bench.send(message(RGB, "rgb8", 1.1))
    submitted = bench.counted().counters.submitted
    assert (before.selected, before.threshold, before.is_key) == (True, 1.0, False)
    assert all(r.successful for r in bench.set_parameters(deviation_threshold=0.0))
    after = bench.send(message(RGB, "rgb8", 1.2))
    assert (after.threshold, after.is_key) == (0.0, True)
    assert bench.counted().counters.submitted == submitted + 1


@pytest.mark.parametrize(
    ("parameters", "complaint"),
    [
        ({"checkpoint": "/nowhere/none.safetensors"}, "/nowhere/none.safetensors"),
        ({"device": "abacus"}, "choose auto, cpu"),
        ({"overlay_alpha": 2.0}, "Max: 1.0"),
        ({"late_refinement": "sometimes"}, "choose one of propagate"),
        ({"overlay_alpha": 1}, "advanced.overlay_alpha is 1; write 1.0, with a point"),
    ],
)
def test_node_that_cannot_start_says_why(
    start: Start, parameters: dict[str, object], complaint: str
) -> None:
    with pytest.raises(AssertionError, match="the node ended with 1") as failure:
        start(**parameters)
    assert complaint in str(failure.value)
    assert "Traceback" not in str(failure.value)


def test_unknown_parameter_is_named(start: Start) -> None:
    node, _ = start(deviation_treshold=0.5)
    node.wait_for_log("no parameter deviation_treshold")
    assert "did you mean deviation_threshold?" in node.log


def overload(bench: Bench, image: Image, before: Ledger) -> int:
    """Send copies of ``image`` in bursts until one supersedes another; how many were sent."""
    sent = 0

    def superseded() -> bool:
        nonlocal sent
        for _ in range(20):
            image.header.stamp.nanosec += 1_000_000
            bench.camera.publish(image)
            sent += 1
        return bench.counted().ledger.superseded > before.superseded

    wait_until(superseded, lambda: "the node is faster than the bursts")
    return sent


def test_ledger_balances_under_overload(start: Start) -> None:
    _, bench = start()
    image = message(picture(480, 640), "rgb8", 1.0)
    bench.send(image)
    before = bench.counted().ledger
    sent = overload(bench, image, before)
    bench.camera.publish(message(RGB, "mono9", 3.0))  # an impossible one, which nothing supersedes
    bench.statistics.first(lambda s: s.ledger.rejected == before.rejected + 1)
    after = bench.counted().ledger
    received = after.received - before.received
    assert received + after.superseded - before.superseded == sent + 1
    assert after.published - before.published == received - 1
    assert (after.failed, after.in_flight) == (before.failed, 0)
    assert all(
        balances(Ledger(**{name: int(value) for name, value in values_of(s).items()}))
        for s in bench.diagnostics.all()
        if s.name.startswith(bench.node.get_namespace()[1:]) and s.name.endswith("ledger")
    )


def test_ledger_of_several_publishers_claims_no_more_than_it_knows(start: Start) -> None:
    """Whose number a message bears is unknown, so gaps are counted while there is one camera."""
    _, bench = start()
    image, number = message(picture(480, 640), "rgb8", 1.0), 0

    def after_all() -> Ledger:
        """The ledger once an impossible image, sent last, was rejected."""
        nonlocal number
        number += 1
        bench.camera.publish(message(RGB, "mono9", 3.0))
        bench.statistics.first(lambda s: s.ledger.rejected == number)
        ledger = bench.counted().ledger
        assert ledger.in_flight == 0
        return ledger

    def wait_for_publishers(count: int) -> None:
        seen = len(bench.diagnostics.all())
        bench.status("camera", lambda v: v["publishers"] == str(count), after=seen)

    bench.send(image)
    before = after_all()
    second = bench.node.create_publisher(Image, "image", RELIABLE)
    wait_for_publishers(2)
    for _ in range(20):
        for camera in (bench.camera, second):
            image.header.stamp.nanosec += 1_000_000
            camera.publish(image)
    assert second.wait_for_all_acked(Duration(seconds=TIMEOUT_S))
    both = after_all()
    assert both.received > before.received
    assert both.superseded == before.superseded
    bench.node.destroy_publisher(second)
    wait_for_publishers(1)
    after_all()  # gaps are not counted up to the first message after a change
    one = after_all()
    sent = overload(bench, image, one)
    last = after_all()
    assert last.received + last.superseded - one.received - one.superseded == sent + 1
    assert last.superseded > one.superseded


def test_masks_are_as_many_as_the_ledger_says(live: Bench) -> None:
    live.send(message(RGB, "rgb8", 1.0, "test_count"))
    before = live.counted().ledger
    for number in range(1, 11):
        live.send(message(RGB, "rgb8", 1.0 + number / 10, "test_count"))
    after = live.counted().ledger
    assert after.published == before.published + 10
    assert after.superseded == before.superseded
    masks = [mask for mask in live.masks.all() if mask.header.frame_id == "test_count"]
    assert len(masks) == 11


def test_age_runs_from_the_stamp_to_the_mask(live: Bench) -> None:
    """So it holds the time in the node, which holds the engine's, and is over with the report."""
    stamped = time.time()
    report = live.send(message(RGB, "rgb8", stamped, "test_age"))
    elapsed_ms = (time.time() - stamped) * 1e3
    assert report.timing.latency_ms <= report.processing_ms
    # Two clocks, read one after the other: another thread may run in between.
    assert report.processing_ms <= report.age_ms + 5
    assert report.age_ms <= elapsed_ms + 0.01


def test_failures_are_counted_and_logged_once_a_kind(start: Start) -> None:
    node, bench = start(inference_height=48, log_throttle_s=3600.0)
    bench.send(message(RGB, "rgb8", 1.0))
    before = bench.counted().ledger
    # Valid, but at 48 rows this would have 48 * 960 000 pixels, which the engine refuses.
    thread = message(np.zeros((1, 20_000), np.uint8), "mono8", 1.1)
    for number in range(1, 4):
        bench.camera.publish(message(RGB, "rgb9", 1.2))
        bench.status("ledger", lambda v, n=number: int(v["rejected"]) == before.rejected + n)
        bench.camera.publish(thread)
        bench.status("ledger", lambda v, n=number: int(v["failed"]) == before.failed + n)
    bench.send(message(RGB, "rgb8", 1.3))
    after = bench.counted().ledger
    assert after.received == before.received + 7
    assert after.published == before.published + 1
    assert node.log.count("Image rejected: encoding is 'rgb9'") == 1
    assert node.log.count("No mask for an image: ") == 1
    assert "set a smaller inference_height" in node.log
    assert "Traceback" not in node.log


def test_clock_set_back_begins_afresh(start: Start) -> None:
    # The camera's stamps go on: only the node's clock tells.
    _, bench = start(use_sim_time=True)
    bench.set_clock(100.0)
    bench.send(message(RGB, "rgb8", 100.0))
    carried = bench.send(message(RGB, "rgb8", 100.1))
    assert carried.kind == FrameReport.PROPAGATED
    bench.set_clock(50.0)
    stamp_s = 100.2
    while not (report := bench.send(message(RGB, "rgb8", stamp_s))).reset_reason:
        stamp_s += 0.1  # the clock message may arrive after the image
        assert stamp_s < 105
    assert (report.kind, report.reset_reason) == (FrameReport.FULL, "time_jumped_back")
    assert report.epoch == carried.epoch + 1
    assert report.age_ms < 0.0  # the stamp is ahead of the clock
    seen = len(bench.diagnostics.all())
    status = bench.status("camera", lambda values: "image_age_ms" in values, after=seen)
    assert -51e3 < float(values_of(status)["image_age_ms"]) < -50e3


def test_simulated_time_may_run_at_any_rate_and_stand_still(start: Start) -> None:
    _, bench = start(use_sim_time=True, camera_timeout_ms=300.0)
    seconds = 100.0

    def frame(step_s: float) -> FrameReport:
        nonlocal seconds
        seconds += step_s
        bench.set_clock(seconds)
        return bench.send(message(RGB, "rgb8", seconds, "test_rate"))

    def rest() -> None:
        """For longer than the camera may be silent, by diagnostics, which do not stand still."""
        seen = len(bench.diagnostics.all())
        for _ in range(5):
            bench.status("camera", lambda _: True, after=seen)
            seen = len(bench.diagnostics.all())

    first = frame(0.0)
    reports = [frame(0.1) for _ in range(5)]  # as fast as they are answered
    rest()  # the clock stands still
    for _ in range(3):  # a camera that goes on gets the same stamp again and again
        seen = len(bench.reports.all())
        bench.camera.publish(message(RGB, "rgb8", seconds, "test_rate"))
        reports.append(bench.reports.first(lambda _: True, after=seen))
    for _ in range(2):
        rest()
        reports.append(frame(0.01))  # far slower than time passes
    assert [r.kind for r in reports] == [FrameReport.PROPAGATED] * 10
    assert reports[-1].epoch == first.epoch
    camera = [s for s in bench.diagnostics.all() if s.name.endswith("segmentation_node: camera")]
    mine = [s for s in camera if s.name.startswith(bench.node.get_namespace()[1:])]
    assert {values_of(s)["state"] for s in mine} <= {"waiting", "active"}  # never stale


def test_diagnostics_tell_how_the_node_fares(start: Start) -> None:
    _, bench = start(camera_timeout_ms=400.0, max_processing_time_ms=0.001)
    for _ in range(5):
        bench.send(message(RGB, "rgb8", time.time()))
    camera = bench.status("camera", lambda values: values["state"] == "active")
    assert {"image_age_ms", "time_since_last_image_ms", "publishers"} <= set(values_of(camera))
    processing = bench.status("processing", lambda v: float(v["output_latency_p50_ms"]) > 0)
    assert processing.level == b"\1"  # slower than a microsecond: WARN
    values = values_of(processing)
    for name in ("processing_time", "output_latency"):
        p50, p95, p99, top = (float(values[f"{name}_{p}_ms"]) for p in ("p50", "p95", "p99", "max"))
        assert 0 < p50 <= p95 <= p99 <= top
    assert float(values["consecutive_processing_delay_ms"]) > 0
    assert {
        "preprocess_time_ms", "inference_time_ms", "postprocess_time_ms",
        "time_since_last_publish_ms", "input_rate_hz",
    } <= set(values)  # fmt: skip
    slow = values_of(bench.status("slow track", lambda values: int(values["frames"]) >= 5))
    assert slow["slow_track_alive"] == "True"
    assert {"submitted", "refined", "slow_track_running"} <= set(slow)
    keys = bench.status("key frames", lambda values: float(values["key_frame_share"]) > 0)
    assert values_of(keys)["threshold"] == "0.500"  # the checkpoint's
    stale = bench.status("camera", lambda values: values["state"] == "stale")
    assert stale.level == b"\2"
    assert processing.hardware_id == "cpu"


def test_deadline_is_set_missed_and_reported(start: Start) -> None:
    """No machine makes a mask within a microsecond, so each step is taken."""
    _, bench = start()
    overlays = bench.listen(Image, "overlay")

    def send(tenth: int) -> FrameReport:
        return bench.send(message(RGB, "rgb8", 1.0 + tenth / 10))

    def overlaid(report: FrameReport) -> bool:
        return any(image.header == report.header for image in overlays.all())

    wait_until(lambda: overlaid(send(0)), lambda: "there is no overlay")
    before = send(1)
    assert (before.deadline.level, before.deadline.missed) == (0, False)
    own_ms = before.wait_ms + before.convert_ms + before.timing.latency_ms
    assert before.deadline.latency_ms == pytest.approx(own_ms, rel=1e-3)
    values = values_of(bench.status("deadline", lambda v: v["max_latency_ms"] == "0.000"))
    assert (values["shed_level"], values["missed"]) == ("0", "0")

    assert all(r.successful for r in bench.set_parameters(max_latency_ms=0.001))
    late = [send(tenth) for tenth in range(2, 17)]
    assert [r.deadline.level for r in late] == [number // 3 for number in range(15)]
    assert all(r.deadline.missed for r in late)
    counters = bench.counted().counters
    assert (counters.missed, counters.shed) == (15, 12)
    for report in late:
        mask = bench.mask_on(message(RGB, "rgb8", stamp_s(report)))
        assert (mask.height, mask.width) == (48, 64)
        assert report.kind == FrameReport.PROPAGATED
    status = bench.status("deadline", lambda v: v["missed"] == "15")
    assert (status.level, values_of(status)["shed_level"]) == (b"\2", "4")
    assert "level 4 of 4" in status.message
    assert "set a smaller inference_height or a larger max_latency_ms" in status.message

    assert all(r.successful for r in bench.set_parameters(max_latency_ms=0.0))
    after = send(17)
    counters = bench.counted().counters
    assert (after.deadline.level, counters.missed, counters.shed) == (0, 15, 12)
    wait_until(lambda: overlaid(after), lambda: "the overlay does not come back")
    assert [overlaid(report) for report in late] == [True] * 6 + [False] * 9


def stamp_s(report: FrameReport) -> float:
    return report.header.stamp.sec + report.header.stamp.nanosec / 1e9


def test_incompatible_quality_of_service_is_logged_with_the_fix(start: Start) -> None:
    node, bench = start()
    wants = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
    bench.listen(Image, "mask", wants)
    topic = f"/{node.namespace}/segmentation_node/mask"
    node.wait_for_log(f"qos_overrides.{topic}.publisher.durability:=transient_local")


def test_quality_of_service_of_the_camera_can_be_overridden(start: Start) -> None:
    reliable = {"/reliable_camera": {"subscription": {"reliability": "reliable"}}}
    node, bench = start(
        arguments=("-r", "image:=/reliable_camera"), listen=False, qos_overrides=reliable
    )
    found: list[Any] = []

    def seen() -> bool:
        found[:] = bench.node.get_subscriptions_info_by_topic("/reliable_camera")
        return bool(found)

    wait_until(seen, lambda: node.log)
    assert found[0].qos_profile.reliability == ReliabilityPolicy.RELIABLE
    bench.node.create_publisher(Image, "/reliable_camera", qos_profile_sensor_data)
    node.wait_for_log("qos_overrides./reliable_camera.subscription.reliability:=best_effort")
