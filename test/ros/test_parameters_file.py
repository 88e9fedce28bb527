"""The files of parameters in config and the settings that they write down."""

from __future__ import annotations

import dataclasses
from dataclasses import fields
from pathlib import Path

import pytest
import yaml

pytest.importorskip("rclpy", reason="needs ROS 2")

from lowlat_seg_ros.config import EngineConfig
from lowlat_seg_ros.ros.params import NodeConfig

FILE = Path(__file__).parents[2] / "config" / "segmentation.yaml"


def test_file_says_every_default() -> None:
    written = yaml.safe_load(FILE.read_text())["/**/segmentation_node"]["ros__parameters"]
    cameras = {"cameras": [""]}  # ROS cannot tell the type of an empty list
    defaults = dataclasses.asdict(NodeConfig()) | dataclasses.asdict(EngineConfig())
    assert written == defaults | cameras


def test_file_for_several_cameras_changes_known_settings() -> None:
    file = FILE.with_name("multi_camera.yaml")
    written = yaml.safe_load(file.read_text())["/**/segmentation_node"]["ros__parameters"]
    kinds = {item.name: kind for kind in (NodeConfig, EngineConfig) for item in fields(kind)}
    for name, value in written.items():
        kinds[name](**{name: value})  # raises for a value out of range
