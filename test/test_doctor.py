"""The QoS doctor: what it finds, and the fix that it names."""

from __future__ import annotations

import dataclasses

import pytest

pytest.importorskip("sensor_msgs", reason="needs ROS 2")

from lowlat_seg_ros.messages import COMPRESSED
from lowlat_seg_ros.messages import IMAGE as RAW
from lowlat_seg_ros.ros.doctor import (
    CAMERA_INFO,
    End,
    Input,
    Output,
    Severity,
    Subscription,
    Topic,
    examine_input,
    examine_output,
)

CAMERA = End("/camera", RAW)
LISTENS = Subscription("image", "/image")
LARGE = 1280 * 720 * 3
WELL = Input(
    "/image", LISTENS, (CAMERA,), begun=True, timeout_ms=1000.0, received=30, image_bytes=LARGE,
    profile=False,
)  # fmt: skip


def findings(max_lost_share: float = 0.1, **changes: object) -> list[tuple[Severity, str]]:
    state = dataclasses.replace(WELL, **changes)  # type: ignore[arg-type]
    return [(found.severity, found.text) for found in examine_input(state, max_lost_share)]


def test_nothing_is_wrong_with_a_camera_whose_images_come() -> None:
    assert findings() == []
    assert findings(silent_ms=5000.0, timeout_ms=0.0) == []  # 0: as long as it likes


@pytest.mark.parametrize(
    ("changes", "texts"),
    [
        ({"ends": ()}, ["nobody publishes /image; no other topic has images; start the camera"]),
        ({"ends": (), "there": (Topic("/a", RAW),)}, ["remap image to /a, as sensor_msgs"]),
        ({"ends": (), "clock_waits": True}, ["nobody publishes /image, and no time comes on"]),
        ({"ends": (), "there": (Topic("/camera_info", CAMERA_INFO),)}, ["switched off in its"]),
        (
            {"ends": (End("/cam", RAW, "reliability"),)},
            ["/cam offers less reliability", "/image.subscription.reliability:=best_effort"],
        ),
        (
            {"ends": (End("/cam", RAW, "durability"),)},
            ["qos_overrides./image.subscription.durability:=volatile"],
        ),
        ({"ends": (End("/cam", RAW, "deadline"),)}, ["give both ends the same deadline"]),
        ({"ends": (End("/cam", COMPRESSED),)}, ["sends sensor_msgs/msg/Comp", "to compressed"]),
        (
            {"ends": (End("/lidar", "sensor_msgs/msg/PointCloud2"),), "there": (Topic("/a", RAW),)},
            ["/lidar sends sensor_msgs/msg/PointCloud2 on /image", "remap image to /a"],
        ),
        ({"begun": False}, ["a publisher of /image fit", "has come yet", "ros2 topic hz /image"]),
        ({}, ["no image came for 1001 ms", "ros2 topic hz /image", "fastdds_large_images.xml"]),
        ({"clock_waits": True}, ["no time on /clock", "--clock"]),
    ],
)  # fmt: skip
def test_silent_camera_is_an_error_with_its_fix(
    changes: dict[str, object], texts: list[str]
) -> None:
    ((severity, found),) = findings(silent_ms=1001.0, **changes)
    assert severity is Severity.ERROR
    assert all(text in found for text in texts), found


def test_camera_that_has_not_begun_is_a_warning_until_it_is_overdue() -> None:
    assert [severity for severity, _ in findings(begun=False)] == [Severity.WARN]
    assert [severity for severity, _ in findings(begun=False, ends=())] == [Severity.WARN]
    never = End("/cam", RAW, "reliability")
    assert [severity for severity, _ in findings(begun=False, ends=(never,))] == [Severity.ERROR]


def test_misfit_beside_a_camera_that_fits_is_a_warning() -> None:
    ((severity, found),) = findings(ends=(CAMERA, End("/old", RAW, "reliability")))
    assert severity is Severity.WARN
    assert "/old offers less reliability" in found


def test_small_images_are_not_lost_for_want_of_room() -> None:
    small = {"image_bytes": 160 * 120 * 3}
    for changes in ({"silent_ms": 2000.0}, {"lost": 3}, {"missing": 7, "received": 23}):
        ((_, found),) = findings(**small, **changes)
        assert "fastdds_large_images" not in found
        assert "buffers" not in found
        assert "depth:=5" in found or "ros2 topic hz" in found


def test_profile_that_the_discovery_range_replaces_is_told() -> None:
    ((_, found),) = findings(profile=True, profile_replaced=True, lost=7)
    assert "unset ROS_LOCALHOST_ONLY, set ROS_AUTOMATIC_DISCOVERY_RANGE to SYSTEM_DEFAULT" in found


def test_several_publishers_of_one_topic_are_named() -> None:
    ((severity, found),) = findings(ends=(CAMERA, End("/bag", RAW), End("/bag", RAW)))
    assert severity is Severity.WARN
    assert "3 publishers send images on /image, /bag (2), /camera" in found
    assert "parameter cameras" in found
    assert findings(ends=(CAMERA, End("/depth", "a/msg/Depth"))) != []  # the type is accused alone
    assert "publishers send" not in findings(ends=(CAMERA, End("/depth", "a/msg/Depth")))[0][1]


@pytest.mark.parametrize(
    ("profile", "fix"),
    [
        (False, "DEFAULT_PROFILES_FILE to /share/fastdds_large_images.xml for this node and"),
        (True, "start the camera with /share/fastdds_large_images.xml"),
        (None, "larger receive buffers"),
    ],
)
@pytest.mark.parametrize("changes", [{"lost": 7}, {"missing": 7, "received": 23}])
def test_lost_images_are_a_warning_with_its_fix(
    changes: dict[str, object], profile: bool | None, fix: str
) -> None:
    file = "/share/fastdds_large_images.xml"
    ((severity, found),) = findings(profile=profile, profile_file=file, **changes)
    assert severity is Severity.WARN
    assert "7" in found
    assert fix in found


def test_images_superseded_by_a_busy_node_are_as_meant() -> None:
    assert findings(missing=20, received=10, busy_share=0.9) == []
    assert findings(missing=1, received=30) == []  # a share below the limit
    assert findings(missing=20, received=10, max_lost_share=1.0) == []


def test_worst_comes_first() -> None:
    found = findings(silent_ms=2000.0, lost=1, ends=(CAMERA, End("/old", RAW, "durability")))
    assert [severity for severity, _ in found] == [Severity.ERROR, Severity.WARN, Severity.WARN]


def test_subscriber_that_asks_for_more_is_named_with_the_fix() -> None:
    ends = (End("/rviz", RAW), End("/recorder", RAW, "durability"))
    (found,) = examine_output(Output("/node/mask", RAW, ends))
    assert found.severity is Severity.WARN
    assert found.text.startswith("/recorder asks for more durability on /node/mask")
    assert "qos_overrides./node/mask.publisher.durability:=transient_local" in found.text


@pytest.mark.parametrize(
    ("policy", "fix"),
    [
        ("deadline", "let the subscriber ask for no deadline"),
        ("liveliness", "automatic liveliness without a lease duration"),
    ],
)
def test_what_is_no_parameter_is_for_the_subscriber_to_change(policy: str, fix: str) -> None:
    (found,) = examine_output(Output("/node/mask", RAW, (End("/recorder", RAW, policy),)))
    assert fix in found.text
