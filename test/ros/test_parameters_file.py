"""config/segmentation.yaml and the settings that it writes down."""

from __future__ import annotations

import dataclasses
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
