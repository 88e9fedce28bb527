"""Levels and texts of /diagnostics."""

from __future__ import annotations

import dataclasses
import math
import re
from typing import Any

import pytest

pytest.importorskip("diagnostic_msgs", reason="needs ROS 2")

from diagnostic_msgs.msg import DiagnosticStatus

from lowlat_seg_ros.config import EngineConfig
from lowlat_seg_ros.engine.schedule import LEVELS
from lowlat_seg_ros.engine.slow_track import SlowTrackState
from lowlat_seg_ros.engine.timing import FrameCost
from lowlat_seg_ros.frames import Counters, Deadline, Ledger, NodeTiming
from lowlat_seg_ros.ros.diagnostics import (
    ERROR,
    OK,
    WARN,
    accuracy_status,
    camera_status,
    camera_statuses,
    connections_status,
    deadline_status,
    diagnostics,
    images_status,
    key_frames_status,
    ledger_status,
    lifecycle_status,
    processing_status,
    slow_track_status,
)
from lowlat_seg_ros.ros.doctor import Finding, Severity
from lowlat_seg_ros.ros.monitor import Pace, Rates, StreamTimes
from lowlat_seg_ros.ros.params import NodeConfig, Settings
from lowlat_seg_ros.ros.plausibility import Content, ContentState, StampState
from lowlat_seg_ros.ros.stream_state import ResetMeter, StreamState, examine_resets

CONFIG = NodeConfig(camera_timeout_ms=500.0, max_consecutive_delay_ms=1000.0)


def stream(**times: Any) -> StreamState:
    known = StreamTimes(**times)
    return StreamState("", "/image", 1, Ledger(), known, Rates(), Counters(), SlowTrackState())


def values_of(status: DiagnosticStatus) -> dict[str, str]:
    return {pair.key: pair.value for pair in status.values}


@pytest.mark.parametrize(
    ("since_ms", "period_ms", "level", "state"),
    [
        (None, 0.0, WARN, "waiting"),
        (500.0, 66.0, OK, "active"),
        (501.0, 66.0, ERROR, "stale"),
        (1500.0, 0.0, OK, "active"),  # it has sent one image, and may be a slow one
        (1501.0, 0.0, ERROR, "stale"),
        (10.0, 600.0, OK, "active"),
        (1799.0, 601.0, WARN, "slow"),
        (1804.0, 601.0, ERROR, "stale"),
    ],
)
def test_camera(since_ms: float | None, period_ms: float, level: bytes, state: str) -> None:
    times = {} if since_ms is None else {"since_image_ms": since_ms, "image_age_ms": since_ms}
    times["period_ms"] = period_ms
    status = camera_status(stream(**times), CONFIG)
    assert status.level == level
    assert state in [pair.value for pair in status.values if pair.key == "state"]


def test_a_slow_camera_is_a_warning_whose_advice_ends_it() -> None:
    """And nothing else is said: one cause is said once."""
    slow = stream(since_image_ms=2100.0, image_age_ms=2100.0, period_ms=2000.0)
    status = camera_status(slow, CONFIG)
    assert "an image comes every 2.0 s, more rarely than advanced.camera_timeout_ms, 500" in (
        status.message
    )
    (value,) = map(float, re.findall(r"set it to (\d+\.\d)$", status.message))
    assert camera_status(slow, NodeConfig(camera_timeout_ms=value)).level == OK
    settings = Settings(CONFIG, EngineConfig())
    levels = {s.name: s.level for s in camera_statuses(slow, settings) if s.level != OK}
    assert levels == {"camera": WARN}
    busy = dataclasses.replace(slow, rates=Rates(busy_share=0.9))
    assert camera_status(busy, CONFIG).level == OK  # the node may be what is slow


def test_camera_is_never_stale_without_a_limit() -> None:
    quiet = stream(since_image_ms=1e6, image_age_ms=1e6)
    assert camera_status(quiet, NodeConfig(camera_timeout_ms=0.0)).level == OK


@pytest.mark.parametrize(("delayed_ms", "level"), [(0.0, OK), (1000.0, WARN), (1001.0, ERROR)])
def test_processing(delayed_ms: float, level: bytes) -> None:
    assert processing_status(stream(delayed_ms=delayed_ms), CONFIG).level == level


def test_a_frame_that_does_not_end_is_said_and_the_camera_is_not_accused() -> None:
    silent = stream(since_image_ms=2000.0, image_age_ms=2000.0, period_ms=66.0)
    for working_ms, level in ((1000.0, OK), (1001.0, ERROR)):
        status = processing_status(dataclasses.replace(silent, working_ms=working_ms), CONFIG)
        assert status.level == level
    assert "a frame has been worked on for 1001 ms, and all others wait" in status.message
    for working_ms, level in ((1499.0, ERROR), (1500.0, OK)):  # the rest is the camera's silence
        status = camera_status(dataclasses.replace(silent, working_ms=working_ms), CONFIG)
        assert status.level == level


def test_processing_warns_when_frames_do_not_keep_up_with_the_camera() -> None:
    slow = dataclasses.replace(stream(), pace=Pace(60.0, 33.0, 720), load=60 / 33)
    status = processing_status(slow, CONFIG)
    assert status.level == WARN
    assert "set inference_height, now 720, to 504 or less" in status.message
    values = values_of(status)
    assert (values["frame_takes_ms"], values["camera_period_ms"]) == ("60.000", "33.000")


def test_a_latency_that_cannot_be_true_is_not_given() -> None:
    absurd = stream(timing=NodeTiming(age_ms=math.nan), stamps=StampState(1.8e12))
    assert values_of(processing_status(absurd, CONFIG))["output_latency_ms"] == "nan"
    assert values_of(images_status(absurd))["stamp_skew_ms"] == "1800000000000.000"


def test_what_images_always_show_in_one_colour_is_told() -> None:
    for own, told in ((0.1, False), (0.25, True)):
        status = images_status(dataclasses.replace(stream(), contents=ContentState(own=own)))
        assert status.level == OK
        assert ("25% of their rows or columns have had one colour" in status.message) is told
        assert values_of(status)["uniform_share"] == f"{own:.3f}"


def test_images_say_all_that_is_wrong_with_them() -> None:
    assert images_status(stream()).level == OK
    counters = Counters(frames=8, resets=4, resets_gap=4)
    resets = ResetMeter(0.0).update(counters, 4.0)
    found = (*examine_resets(resets, ()), Finding(Severity.WARN, "the images are black"))
    bad = dataclasses.replace(
        stream(), image_findings=found, resets=resets, contents=ContentState(Content.BLACK, 3, 2.5)
    )
    status = images_status(bad)
    assert status.level == ERROR
    assert "4 of 8 frames within 4 s were resets" in status.message
    assert status.message.endswith("; the images are black")
    values = values_of(status)
    assert (values["reset_share"], values["recent_resets_gap"]) == ("0.500", "4")
    assert (values["unchanged_images"], values["brightness"]) == ("3", "2.500")


@pytest.mark.parametrize(
    ("expected", "level"),
    [(0.95, OK), (0.8, OK), (0.79, WARN), (0.6, WARN), (0.59, ERROR), (math.nan, OK)],
)
def test_accuracy_that_is_expected(expected: float, level: bytes) -> None:
    status = accuracy_status(expected, CONFIG)
    assert status.level == level
    assert values_of(status)["expected_accuracy"] == f"{expected:.3f}"
    assert ("not known" in status.message) == math.isnan(expected)
    lenient = NodeConfig(warn_expected_accuracy=0.0, error_expected_accuracy=0.0)
    assert accuracy_status(expected, lenient).level == OK


@pytest.mark.parametrize("shed", range(len(LEVELS)))
def test_deadline(shed: int) -> None:
    newest = Deadline(shed, 120.0, True)
    status = deadline_status(newest, Counters(missed=3, shed=2), 100.0)
    assert status.level == (ERROR if shed == len(LEVELS) - 1 else WARN if shed else OK)
    assert LEVELS[shed].doc in status.message
    values = {pair.key: pair.value for pair in status.values}
    assert (values["shed_level"], values["missed"], values["shed"]) == (str(shed), "3", "2")
    assert (values["deadline_missed"], values["max_latency_ms"]) == ("True", "100.000")
    in_time = deadline_status(Deadline(shed, 80.0, False), Counters(), 100.0)
    assert in_time.level == (WARN if shed else OK)
    off = deadline_status(newest, Counters(), 0.0)
    assert (off.level, off.message) == (OK, "no deadline is set")


@pytest.mark.parametrize(
    ("state", "level"),
    [
        (SlowTrackState(), OK),
        (SlowTrackState(last_error="Sh failed on frame 3"), WARN),
        (SlowTrackState(running=True, running_ms=700.0), OK),
        (SlowTrackState(running=True, running_ms=701.0), WARN),
        (SlowTrackState(alive=False), ERROR),
    ],
)
def test_slow_track(state: SlowTrackState, level: bytes) -> None:
    status = slow_track_status(state, Counters(), NodeConfig(max_refinement_ms=700.0))
    assert status.level == level
    assert state.last_error in status.message
    assert ("tried again" in status.message) is bool(state.last_error)


def test_ledger_warns_while_images_give_no_mask() -> None:
    ledger = Ledger(received=8, published=5, rejected=2, failed=1)
    rates = Rates(refused=3, received=8)
    why = "encoding is 'x'; have it publish rgb8"
    status = ledger_status(ledger, rates, CONFIG, why)
    assert status.level == WARN
    assert status.message == f"3 images since the last message gave no mask: {why}"
    assert ledger_status(ledger, rates, NodeConfig(max_refused_share=0.3)).level == ERROR
    assert ledger_status(ledger, Rates(received=8), CONFIG).level == OK


def test_key_frames_tell_the_threshold_in_force() -> None:
    config = EngineConfig(key_frame_budget=0.2)
    status = key_frames_status(Counters(frames=10, key_frames=3), 0.125, config)
    values = {pair.key: pair.value for pair in status.values}
    assert (values["key_frame_share"], values["threshold"]) == ("0.300", "0.125")
    assert (values["key_frame_budget"], status.level) == ("0.200", OK)
    assert "steered" in status.message
    by_deviation = EngineConfig(key_frame_policy="deviation")
    assert "fixed" in key_frames_status(Counters(), 0.125, by_deviation).message
    assert "idle" in key_frames_status(Counters(), 0.125, EngineConfig()).message


def test_what_the_doctor_finds_is_told() -> None:
    assert connections_status([]).level == OK
    found = (Finding(Severity.WARN, "some are lost"), Finding(Severity.ERROR, "start the camera"))
    status = connections_status(found)
    assert (status.level, status.message) == (ERROR, "some are lost; start the camera")


def test_one_cause_is_one_error() -> None:
    """While no image comes the camera's status says why, and connections what else there is."""
    found = (Finding(Severity.ERROR, "start the camera"), Finding(Severity.WARN, "two publish"))
    settings = Settings(CONFIG, EngineConfig())
    for times in ({}, {"since_image_ms": 501.0, "image_age_ms": 501.0, "period_ms": 66.0}):
        silent = dataclasses.replace(stream(**times), findings=found)
        levels = {status.name: status.level for status in camera_statuses(silent, settings)}
        assert [name for name, level in levels.items() if level != OK] == ["camera"]
        assert camera_status(silent, CONFIG).message.endswith(": start the camera; two publish")
        connections = camera_statuses(silent, settings)[-1]
        assert connections.message == "no image comes, see the status camera"
    well = dataclasses.replace(
        stream(since_image_ms=1.0, image_age_ms=1.0),
        findings=found[1:],
        output_findings=(Finding(Severity.WARN, "rviz asks for more"),),
    )
    levels = {status.name: status for status in camera_statuses(well, settings)}
    assert levels["camera"].level == OK
    connections = levels["connections"]
    assert (connections.level, connections.message) == (WARN, "two publish; rviz asks for more")


def test_lifecycle_tells_what_frames_cost_and_why_a_transition_failed() -> None:
    status = lifecycle_status("inactive", "", FrameCost(640, 480, 12.5, 80.0, 90.0), cameras=4)
    values = {pair.key: pair.value for pair in status.values}
    assert (status.level, values["state"]) == (OK, "inactive")
    assert values["budget_fast_track_ms"] == "12.500"
    assert (values["budget_slow_track_ms"], values["budget_full_frame_ms"]) == ("80.000", "90.000")
    assert (values["budget_rate_hz"], values["cameras"]) == ("20.000", "4")  # they take turns
    failed = lifecycle_status("unconfigured", "Cannot configure: no such file")
    assert (failed.level, failed.message) == (ERROR, "Cannot configure: no such file")


def test_message_names_node_and_device() -> None:
    settings = Settings(CONFIG, EngineConfig())
    statuses = [lifecycle_status("active", ""), *camera_statuses(stream(), settings)]
    message = diagnostics("car/node", "cpu", 1_500_000_000, statuses)
    names = ["lifecycle", "camera", "images", "processing", "deadline", "accuracy", "slow track"]
    names += ["key frames", "ledger", "connections"]
    assert [status.name for status in message.status] == [f"car/node: {name}" for name in names]
    assert {status.hardware_id for status in message.status} == {"cpu"}
    assert (message.header.stamp.sec, message.header.stamp.nanosec) == (1, 500_000_000)
    keys = [pair.key for status in message.status for pair in status.values]
    assert {"received", "published", "rejected", "failed", "in_flight", "superseded"} <= set(keys)
