"""The command line: instant help, errors in one line, options from the settings records."""

from __future__ import annotations

import argparse
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import lowlat_seg_ros
from lowlat_seg_ros.config import ConfigError, EngineConfig
from lowlat_seg_ros.lab.arguments import add_settings, changed, settings_from
from lowlat_seg_ros.lab.evaluation.evaluate import configure
from lowlat_seg_ros.tools.cli import COMMANDS, main


def python(code: str) -> subprocess.CompletedProcess[str]:
    root = Path(lowlat_seg_ros.__file__).parents[1]
    return subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=120
    )


def exit_of(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str]:
    """Exit status and the one line that is shown; nothing but that line may be."""
    status = main(list(argv))
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return status, error


@pytest.mark.parametrize(
    "argv",
    [
        ["--help"],
        ["segment", "--help"],
        ["demo", "--help"],
        ["render", "--help"],
        ["bag", "run", "--help"],
    ],
)
def test_help_comes_without_loading_what_is_slow(argv: list[str]):
    done = python(
        "import sys; from lowlat_seg_ros.tools.cli import main\n"
        f"try: main({argv})\n"
        "except SystemExit as end: assert end.code == 0\n"
        "assert not {'torch', 'rclpy', 'cv2', 'matplotlib'} & set(sys.modules)"
    )
    assert done.returncode == 0, done.stderr
    assert "examples:" in done.stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_keeps_the_contract_and_teaches(name: str, capsys: pytest.CaptureFixture[str]):
    module = importlib.import_module(COMMANDS[name].module)
    assert callable(module.configure)
    assert callable(module.run)
    with pytest.raises(SystemExit, match="0"):
        main([name, "--help"])
    assert f"lowlat-seg {name}" in capsys.readouterr().out.split("example", 1)[1]


def test_version(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out.strip() == lowlat_seg_ros.__version__


def test_no_command_and_unknown_command_are_usage_errors(capsys: pytest.CaptureFixture[str]):
    for argv in ([], ["fly"]):
        with pytest.raises(SystemExit, match="2"):
            main(argv)
        assert "usage:" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("demo --dataset camvid", "--dataset camvid needs --root"),
        ("demo --rate 0", "--rate is 0.0"),
        ("demo --rate nan", "--rate is nan"),
        ("demo --frames 1", "--frames is 1"),
        ("demo --deviation-threshold 2", "--deviation-threshold is 2.0; it must lie in"),
        ("evaluate --dataset camvid", "--dataset camvid needs --root"),
        ("evaluate --dataset folder --root . --size 48x64", "--size does not resize"),
        ("evaluate --baselines nowhere", "--baselines is nowhere"),
        ("evaluate --speed 0", "--speed is 0"),
        ("evaluate --frames -1", "--frames is -1"),
        ("evaluate --size 8x80", "--size is 8x80"),
        ("evaluate --delay-frames -1", "--delay-frames is -1"),
        ("evaluate --max-latency-ms 50", "--max-latency-ms is 50"),
        ("evaluate --confidence-threshold 0.5", "--confidence-threshold is 0.5"),
        ("evaluate --rate nan", "--rate is nan"),
        ("evaluate --methods none", "fits no method"),
        ("render --frames 1", "--frames is 1"),
        ("render --seed -1", "--seed is -1"),
        ("render --rate inf", "--rate is inf"),
        ("render --size 8x80", "--size is 8x80"),
        ("render --video", "--video needs --out"),
        ("segment x.png --out out --every 0", "--every is 0"),
        ("segment x.png --out out --max-frames -1", "--max-frames is -1"),
        ("segment x.png --out out --alpha 2", "--alpha is 2.0"),
        ("segment x.png --out out --rate nan", "--rate is nan"),
        ("segment x.png --out out --inference-height -2", "--inference-height is -2"),
        ("bag make --out bag --dataset camvid", "--dataset camvid needs --root"),
        ("bag make --out bag --frames -1", "--frames is -1"),
        ("bag make --out bag --rate nan", "--rate is nan"),
        ("bag make --out bag --size 8x80", "--size is 8x80"),
        ("bag make --out bag --seed -1", "--seed is -1"),
        ("bag run in --out bag --delay-frames -1", "--delay-frames is -1"),
        ("bag run in --out bag --latency-ms nan", "--latency-ms is nan"),
        ("bag run in --out bag --max-latency-ms 50", "--max-latency-ms is 50.0"),
        ("bag run in --out bag --time real --latency-ms 50", "--latency-ms is 50.0"),
    ],
)
def test_wrong_options_end_in_one_line(
    line: str, expected: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
):  # fmt: skip
    monkeypatch.chdir(tmp_path)
    status, error = exit_of(capsys, *line.split())
    assert status == 2
    assert expected in error
    assert not list(tmp_path.iterdir())


def test_missing_file_ends_in_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    start = str(tmp_path / "none.safetensors")
    out = str(tmp_path / "out")
    status, error = exit_of(capsys, "train", "propagation", "--start-from", start, "--out", out)
    assert status == 2
    assert start in error


def test_without_ros_the_demo_says_how_to_get_it():
    done = python(
        "import sys; sys.modules['rclpy'] = None  # as where it is not installed\n"
        "from lowlat_seg_ros.tools.cli import main; sys.exit(main(['demo']))"
    )
    assert done.returncode == 2
    assert "make demo" in done.stderr
    assert done.stderr.count("\n") == 1


def test_faults_of_the_program_are_not_dressed_up(monkeypatch: pytest.MonkeyPatch):
    def broken(args: object) -> int:
        raise ZeroDivisionError

    monkeypatch.setattr("lowlat_seg_ros.tools.demo.run", broken)
    with pytest.raises(ZeroDivisionError):
        main(["demo"])


def test_interrupted_while_importing_it_ends_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(name: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(importlib, "import_module", interrupted)
    assert main(["bag", "make", "--out", "x"]) == 130
    assert capsys.readouterr().err == "lowlat-seg: interrupted\n"


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


def test_a_command_line_is_known_by_its_changes_and_without_folders() -> None:
    parser = argparse.ArgumentParser()
    configure(parser)
    words = ["--methods", "full*", "--size", "48x64", "--baselines", "/home/me/runs", "--streaming"]
    expected = "--size 48x64 --methods 'full*' --baselines runs --streaming"
    assert " ".join(changed(parser.parse_args(words), configure)) == expected
    assert changed(parser.parse_args([]), configure) == []
