"""Command-line options from the settings records."""

from __future__ import annotations

import argparse

import pytest

from lowlat_seg_ros.arguments import add_settings, settings_from
from lowlat_seg_ros.config import ConfigError, EngineConfig


@pytest.fixture
def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    add_settings(parser, EngineConfig, inference_height=360)
    return parser


def test_settings_have_their_defaults_or_what_is_given(parser: argparse.ArgumentParser) -> None:
    args = parser.parse_args(["--max-gap-ms", "50"])
    assert settings_from(args, EngineConfig) == EngineConfig(max_gap_ms=50.0, inference_height=360)


def test_value_out_of_range_is_named_as_the_option(parser: argparse.ArgumentParser) -> None:
    args = parser.parse_args(["--max-gap-ms", "-5"])
    with pytest.raises(ConfigError, match=r"^--max-gap-ms is -5.0; it must lie in \[0.0, "):
        settings_from(args, EngineConfig)


def test_help_names_no_class(parser: argparse.ArgumentParser) -> None:
    text = parser.format_help()
    assert "engine settings:" in text
    assert "EngineConfig" not in text
