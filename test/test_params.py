"""ROS parameters from settings records; the live part is in test/ros."""

from __future__ import annotations

import dataclasses

import pytest

pytest.importorskip("rclpy", reason="needs ROS 2")

from lowlat_seg_ros.config import ConfigError, EngineConfig
from lowlat_seg_ros.ros.params import NodeConfig, descriptor

FIELDS = [item for kind in (NodeConfig, EngineConfig) for item in dataclasses.fields(kind)]
BY_NAME = {item.name: item for item in FIELDS}


def test_no_two_settings_share_a_name() -> None:
    assert len(BY_NAME) == len(FIELDS)


@pytest.mark.parametrize("item", FIELDS, ids=list(BY_NAME))
def test_descriptor_tells_what_a_user_needs(item: dataclasses.Field) -> None:
    rule, found = item.metadata, descriptor(item)
    assert rule["doc"] in found.description
    assert rule["unit"] in found.description
    fixed = "changes only while the node is unconfigured" in found.additional_constraints
    assert fixed is not rule["dynamic"]
    assert not found.read_only  # a node that is cleaned up can be configured otherwise
    ranges = [*found.floating_point_range, *found.integer_range]
    if rule["low"] is None:
        assert not ranges
    else:
        assert [(r.from_value, r.to_value) for r in ranges] == [(rule["low"], rule["high"])]
        assert bool(found.integer_range) is isinstance(item.default, int)


def test_choices_are_named() -> None:
    found = descriptor(BY_NAME["late_refinement"])
    assert found.additional_constraints.startswith("one of propagate, as_is, drop; ")


def test_transports_are_named() -> None:
    found = descriptor(BY_NAME["image_transport"])
    assert found.additional_constraints.startswith("one of raw, compressed; ")
    with pytest.raises(ConfigError, match="'theora'; choose one of raw, compressed"):
        NodeConfig(image_transport="theora")


@pytest.mark.parametrize("names", [("front", "front"), ("a/b",), ("2nd",), ("",)])
def test_cameras_need_names_of_their_own_that_topics_may_have(names: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match="give each camera a name of its own"):
        NodeConfig(cameras=names)


def test_wrong_settings_of_the_node_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"overlay_alpha is 1.5; it must lie in \[0.0, 1.0\]"):
        NodeConfig(overlay_alpha=1.5)
