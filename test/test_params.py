"""ROS parameters from settings records; the live part is in test/ros."""

from __future__ import annotations

import dataclasses
import importlib.util
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

pytest.importorskip("rclpy", reason="needs ROS 2")

import rclpy
from rclpy.context import Context
from rclpy.lifecycle import TransitionCallbackReturn
from rclpy.parameter import Parameter

from lowlat_seg_ros.config import ConfigError, EngineConfig
from lowlat_seg_ros.network import inference, quantization
from lowlat_seg_ros.ros.connections import message_of
from lowlat_seg_ros.ros.node import SegmentationNode, load_model
from lowlat_seg_ros.ros.params import (
    NAMES,
    NodeConfig,
    Settings,
    as_parameters,
    descriptor,
)

FIELDS = [item for kind in (NodeConfig, EngineConfig) for item in dataclasses.fields(kind)]
BY_NAME = {item.name: item for item in FIELDS}
CONFIG = Path(__file__).parents[1] / "config"


def test_no_two_settings_share_a_name() -> None:
    assert len(BY_NAME) == len(FIELDS)


@pytest.mark.parametrize("item", FIELDS, ids=list(BY_NAME))
def test_descriptor_tells_what_a_user_needs(item: dataclasses.Field) -> None:
    rule, found = item.metadata["rule"], descriptor(item)
    assert item.metadata["doc"] in found.description
    assert rule.unit in found.description
    fixed = "changes only while the node is unconfigured" in found.additional_constraints
    assert fixed is not rule.dynamic
    assert not found.read_only  # a node that is cleaned up can be configured otherwise
    ranges = [*found.floating_point_range, *found.integer_range]
    if rule.low is None:
        assert not ranges
    else:
        assert [(r.from_value, r.to_value) for r in ranges] == [(rule.low, rule.high)]
        assert bool(found.integer_range) is isinstance(item.default, int)


def test_choices_are_named() -> None:
    found = descriptor(BY_NAME["late_refinement"])
    assert found.additional_constraints.startswith("one of propagate, as_is, drop; ")


def test_transports_are_named() -> None:
    found = descriptor(BY_NAME["image_transport"])
    assert found.additional_constraints.startswith("one of raw, compressed, foxglove, ffmpeg; ")
    with pytest.raises(ConfigError, match="'theora'; choose one of raw, compressed, foxglove"):
        NodeConfig(image_transport="theora")


@pytest.mark.parametrize("names", [("front", "front"), ("a/b",), ("2nd",), ("",)])
def test_cameras_need_names_of_their_own_that_topics_may_have(names: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match="give each camera a name of its own"):
        NodeConfig(cameras=names)


def test_wrong_settings_of_the_node_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"overlay_alpha is 1.5; it must lie in \[0.0, 1.0\]"):
        NodeConfig(overlay_alpha=1.5)


def test_a_user_meets_few_parameters_and_the_rest_is_advanced() -> None:
    top = {name for name in NAMES.values() if "." not in name}
    assert top == {
        "autostart", "cameras", "checkpoint", "device", "image_transport", "output_size",
        "confidence_threshold", "deviation_threshold", "inference_height", "key_frame_policy",
        "max_latency_ms", "precision",
    }  # fmt: skip
    assert {name.partition(".")[0] for name in NAMES.values()} - top == {"advanced"}


def written(name: str) -> dict[str, Any]:
    """The parameters in a file of ``config``, by their full names."""
    content = yaml.safe_load((CONFIG / name).read_text())
    top = content["/**/segmentation_node"]["ros__parameters"]
    advanced = {f"advanced.{key}": value for key, value in top.pop("advanced").items()}
    return top | advanced


def test_file_says_every_default() -> None:
    empty = {"cameras": [""], "class_remap": [""]}  # ROS cannot tell the type of an empty list
    defaults = dataclasses.asdict(NodeConfig()) | dataclasses.asdict(EngineConfig())
    assert written("segmentation.yaml") == as_parameters(defaults | empty)


def test_file_for_several_cameras_changes_known_settings() -> None:
    settings = {parameter: name for name, parameter in NAMES.items()}
    kinds = {i.name: k for k in (NodeConfig, EngineConfig) for i in dataclasses.fields(k)}
    for parameter, value in written("multi_camera.yaml").items():
        name = settings[parameter]
        kinds[name](**{name: value})  # raises for a value out of range


@pytest.fixture
def context() -> Iterator[Context]:
    context = Context()
    rclpy.init(context=context)
    yield context
    context.try_shutdown()


def node_with(context: Context, **parameters: Any) -> SegmentationNode:
    overrides = [Parameter(name, value=value) for name, value in parameters.items()]
    return SegmentationNode(parameter_overrides=overrides, context=context)


@pytest.mark.parametrize("name", [n for n, parameter in NAMES.items() if n != parameter])
def test_old_name_is_answered_with_the_new_one(context: Context, name: str) -> None:
    value = BY_NAME[name].default
    with pytest.raises(ConfigError, match=f"^{name} is now advanced.{name}$"):
        node_with(context, **{name: value})


def test_old_name_that_is_set_is_answered_with_the_new_one(context: Context) -> None:
    node = node_with(context, **{"advanced.max_gap_ms": 50.0})
    # As the services of the node do it.
    result = node.set_parameters_atomically([Parameter("max_gap_ms", value=70.0)])
    assert (result.successful, result.reason) == (False, "max_gap_ms is now advanced.max_gap_ms")
    assert node.get_parameter("advanced.max_gap_ms").value == 50.0
    assert node.set_parameters_atomically([Parameter("advanced.max_gap_ms", value=70.0)]).successful
    assert node.get_parameter("advanced.max_gap_ms").value == 70.0


def test_wrong_values_are_named_as_parameters(context: Context) -> None:
    with pytest.raises(ConfigError, match=r"^advanced.late_refinement is 'never'; choose one of"):
        node_with(context, **{"advanced.late_refinement": "never"})
    with pytest.raises(ConfigError, match=r"^cameras is a/b; give each camera a name of its own"):
        node_with(context, cameras=["a/b"])


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("max_latency_ms", 100, "max_latency_ms is 100; write 100.0, with a point"),
        ("autostart", "true", "autostart is 'true'; write true or false, without quotes"),
        ("inference_height", 360.0, "inference_height is 360.0; write a whole number, such as -1"),
        ("inference_height", "10_000", "inference_height is '10_000'; write a whole number"),
        ("device", 1, "device is 1; write text, in quotes"),
        ("cameras", "front", "cameras is 'front'; write a list of texts in brackets, such as"),
        ("advanced.class_remap.Road", 1, "advanced.class_remap has 'Road' with a value of its own"),
    ],
)
def test_a_value_of_another_type_is_answered_with_how_to_write_it(
    context: Context, name: str, value: Any, says: str
) -> None:
    """Given at the start and, where that can be, while the node runs."""
    with pytest.raises(ConfigError, match=f"^{re.escape(says)}"):
        node_with(context, **{name: value})
    if name in NAMES.values():
        result = node_with(context).set_parameters_atomically([Parameter(name, value=value)])
        assert not result.successful
        assert result.reason.startswith(says)


@pytest.mark.parametrize(
    ("policy", "value", "says"),
    [
        ("reliability", "besteffort", "is 'besteffort'; choose one of system_default, reliable"),
        ("durability", "persistent", "is 'persistent'; choose one of system_default, transient"),
        ("history", "all", "is 'all'; choose one of system_default, keep_last, keep_all"),
        ("depth", -1, "is -1; it must be a whole number from 0 on"),
        ("depth", -3, "is -3; it must be"),
        ("depth", "5", "is '5'; it must be"),
    ],
)
def test_wrong_quality_of_service_is_answered_with_the_right_ones(
    context: Context, policy: str, value: Any, says: str
) -> None:
    """rclpy would end in a traceback, and take a depth of 0 for the middleware's own."""
    name = f"qos_overrides./image.subscription.{policy}"
    with pytest.raises(ConfigError, match=f"^{re.escape(name)} {says}"):
        node_with(context, **{name: value})
    right = {"reliability": "reliable", "durability": "volatile", "history": "keep_all", "depth": 2}
    node_with(context, **{name: right[policy]})


@pytest.mark.parametrize("transport", ["foxglove", "ffmpeg"])
def test_missing_message_package_is_named(context: Context, weights: Path, transport: str) -> None:
    package = {"foxglove": "foxglove_msgs", "ffmpeg": "ffmpeg_image_transport_msgs"}[transport]
    if importlib.util.find_spec(package):
        pytest.skip(f"{package} is installed")
    with pytest.raises(ConfigError, match=f"package {package}, which is not installed") as caught:
        message_of(transport)
    assert f"apt install ros-$ROS_DISTRO-{package.replace('_', '-')})" in str(caught.value)
    node = node_with(context, checkpoint=str(weights), device="cpu", image_transport=transport)
    assert node.trigger_configure() != TransitionCallbackReturn.SUCCESS
    assert package in node.problem  # and in the log; the node lives on


def test_classes_that_the_weights_do_not_have_are_refused_by_the_parameters_name(
    weights: Path,
) -> None:
    node = NodeConfig(checkpoint=str(weights), device="cpu", class_remap=("Raod:1",))
    with pytest.raises(ConfigError, match=r"^advanced.class_remap has 'Raod:1'; write name:id"):
        load_model(Settings(node, EngineConfig(foreground_threads=1)))


def test_configuring_says_what_makes_frames_slow(
    context: Context, weights: Path, monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setitem(sys.modules, "numba", None)  # as if it were not installed
    advanced = {"expected_width": 64, "expected_height": 48, "expected_rate_hz": 1e3}
    settings = {"checkpoint": str(weights), "device": "cpu", "max_latency_ms": 1e-3} | advanced
    node = node_with(context, **as_parameters(settings))
    assert node.trigger_configure() == TransitionCallbackReturn.SUCCESS
    log = capfd.readouterr().err
    assert "WARN" in log
    assert "pip install numba" in log
    assert "which is over max_latency_ms 0.001, so load will be shed; set a smaller" in log
    assert "At 64x48, segmented at 64x48:" in log
    node.release()


@pytest.mark.slow
def test_configuring_says_what_openvino_would_save(
    context: Context, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    if not quantization.works():
        pytest.skip("this processor or PyTorch has no right convolutions in 8 bits")
    monkeypatch.setitem(sys.modules, "openvino", None)  # as if it were not installed
    # Without it bf16 may be as fast, and nobody would see what is missing.
    monkeypatch.setattr(inference, "pays", lambda *_: False)
    advanced = {"expected_width": 64, "expected_height": 48, "expected_rate_hz": 1e3}
    node = node_with(context, **as_parameters({"device": "cpu"} | advanced))
    assert node.trigger_configure() == TransitionCallbackReturn.SUCCESS
    log = capfd.readouterr().err
    assert "WARN" in log
    assert "pip install openvino" in log
    node.release()


def test_checkpoint_may_be_in_the_home_folder(
    weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(weights.parent))
    node = NodeConfig(
        checkpoint=f"~/{weights.name}", device="cpu", expected_width=64, expected_height=48
    )
    model = load_model(Settings(node, EngineConfig(foreground_threads=1)))
    assert model.path == weights
