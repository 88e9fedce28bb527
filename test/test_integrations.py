"""The files for others' systems name topics, states and classes that there are."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from lowlat_seg_ros.labels import CAMVID

ROOT = Path(__file__).parents[1]
FILES = ROOT / "config" / "integrations"
NODE = "/segmentation_node"

#: What the node publishes, as the SROS2 policy has it, which is compared with the live node.
PUBLISHED = {
    topic.text.replace("~", NODE)
    for topics in ElementTree.parse(ROOT / "config" / "sros2_policy.xml").iter("topics")
    if topics.get("publish")
    for topic in topics
    if topic.text
}


def test_costs_of_nav2_are_of_topics_and_classes_that_there_are() -> None:
    costmap = yaml.safe_load((FILES / "nav2_semantic_layer.yaml").read_text())["local_costmap"]
    parameters = costmap["local_costmap"]["ros__parameters"]
    layer = parameters["semantic_segmentation_layer"]
    assert "semantic_segmentation_layer" in parameters["plugins"]
    source = layer[layer["observation_sources"]]
    assert {
        source[f"{name}_topic"] for name in ("segmentation", "confidence", "labels")
    } <= PUBLISHED
    kinds = [source[name] for name in source["class_types"]]
    named = [name for kind in kinds for name in kind["classes"]]
    assert sorted([*named, "Sky"]) == sorted(CAMVID.names)
    costs = [cost for kind in kinds for cost in (kind["base_cost"], kind["max_cost"])]
    assert costs == sorted(costs)
    assert costs[0] >= 0
    assert costs[-1] == 254  # nav2's lethal obstacle


def states() -> set[str]:
    """Names of the states that the node publishes, as its code has them."""
    code = (ROOT / "lowlat_seg_ros" / "ros" / "diagnostics.py").read_text()
    return set(re.findall(r'_(?:status|found)\(\s*"([a-z ]+)"', code))


@pytest.mark.parametrize("where", ["segmentation_node: ", "car/segmentation_node: front: "])
def test_each_state_has_one_place_in_the_aggregator(where: str) -> None:
    content = yaml.safe_load((FILES / "diagnostic_aggregator.yaml").read_text())
    analyzers = content["analyzers"]["ros__parameters"]
    parts = [part for a in analyzers.values() if isinstance(a, dict) for part in a["contains"]]
    assert {"camera", "connections", "images", "ledger", "lifecycle"} <= states()
    for state in states():
        name = where.replace("front: ", "") + state if state == "lifecycle" else where + state
        assert [part for part in parts if part in name] != [], name
        assert len([part for part in parts if part in name]) == 1, name


@pytest.mark.parametrize("name", ["nav2_semantic_layer.yaml", "diagnostic_aggregator.yaml"])
def test_rcl_reads_the_parameters(name: str) -> None:
    rclpy = pytest.importorskip("rclpy", reason="asks rcl itself")
    context = rclpy.context.Context()
    rclpy.init(args=["--ros-args", "--params-file", str(FILES / name)], context=context)
    context.shutdown()


def panels(layout: Any) -> Iterator[str]:
    """The panels of a Foxglove layout: a tree whose leaves are their names."""
    if isinstance(layout, str):
        yield layout
    else:
        assert layout["direction"] in ("row", "column")
        yield from panels(layout["first"])
        yield from panels(layout["second"])


def test_foxglove_layout_shows_what_the_node_publishes() -> None:
    content = json.loads((FILES / "foxglove_layout.json").read_text())
    configs = content["configById"]
    assert sorted(panels(content["layout"])) == sorted(configs)
    shown = {
        config["imageMode"]["imageTopic"] for config in configs.values() if "imageMode" in config
    }
    assert {f"{NODE}/color_mask", f"{NODE}/mask", f"{NODE}/overlay"} <= shown
    assert shown - PUBLISHED == {"/camera/image_raw"}
    mask = configs["Image!mask"]["imageMode"]
    assert (mask["minValue"], mask["maxValue"]) == (0, len(CAMVID) - 1)
    report = (ROOT / "msg" / "FrameReport.msg").read_text()
    timing = (ROOT / "msg" / "StageTiming.msg").read_text()
    for path in (path["value"] for path in configs["Plot!latency"]["paths"]):
        topic, *fields = path.split(".")
        assert topic in PUBLISHED
        assert re.search(rf"\b{fields[0]}\b", report)
        assert len(fields) == 1 or re.search(rf"\b{fields[1]}\b", timing)
