"""Command-line options from the settings records, so that defaults and meanings stand once."""

from __future__ import annotations

import argparse
import dataclasses
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from lowlat_seg_ros.config import ConfigError, SettingError

Record = TypeVar("Record")

#: Help of ``--high-scale``.
HIGH_SCALE = (
    "scale of the image that Sh reads, relative to the network's input, instead of the "
    "checkpoint's: a larger scale costs more and shows smaller things"
)


def add_settings(parser: argparse.ArgumentParser, kind: type[Any], **defaults: Any) -> None:
    """Add one option for each setting of the dataclass ``kind``; ``defaults`` override its own."""
    words = re.findall("[A-Z][a-z]*", kind.__name__.removesuffix("Config"))
    group = parser.add_argument_group(f"{' '.join(words).lower()} settings")
    for item in dataclasses.fields(kind):
        rule, default = item.metadata["rule"], defaults.get(item.name, item.default)
        unit = f"{rule.unit}; " if rule.unit else ""
        group.add_argument(
            _option(item.name),
            type=type(default),
            default=default,
            choices=rule.choices or None,
            metavar=None if rule.choices else type(default).__name__.upper(),
            help=f"{item.metadata['doc']} ({unit}default %(default)s)",
        )


def settings_from(args: argparse.Namespace, kind: type[Record]) -> Record:
    """The record ``kind`` with the values parsed; raises ConfigError where one is out of range."""
    names = [item.name for item in dataclasses.fields(kind)]  # type: ignore[arg-type]
    try:
        return kind(**{name: getattr(args, name) for name in names})
    except SettingError as error:
        raise ConfigError(f"{_option(error.setting)} {error.problem}") from error


def add_network(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--checkpoint", type=Path, metavar="FILE", help="weights (default: those of the package)"
    )
    parser.add_argument(
        "--device", default="auto", help="auto, cpu, cuda or cuda:N (default %(default)s)"
    )


def check_camera(args: argparse.Namespace) -> None:
    """Raise ConfigError for a ``rate``, ``size`` or ``seed`` that no camera or drive can have."""
    if args.rate is not None and not 0.0 < args.rate <= 1000.0:
        raise ConfigError(f"--rate is {args.rate}; it must lie in (0, 1000] Hz")
    if args.size is not None and min(args.size) < 16:
        height, width = args.size
        raise ConfigError(f"--size is {height}x{width}; it must be 16 pixels or more each way")
    if args.seed < 0:
        raise ConfigError(f"--seed is {args.seed}; it must be 0 or more")


def changed(
    args: argparse.Namespace, configure: Callable[[argparse.ArgumentParser], None]
) -> list[str]:
    """The options that differ from their defaults, as words for a shell; paths without folders.

    ``configure`` adds the options; none is positional or required, and ``args`` has them all.
    """
    parser = argparse.ArgumentParser()
    configure(parser)
    words = []
    for name, default in vars(parser.parse_args([])).items():
        value = getattr(args, name)
        if value == default:
            continue
        words.append(_option(name))
        if value is not True:
            words.append(shlex.quote(_text(value)))
    return words


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


def _text(value: Any) -> str:
    if isinstance(value, Path):
        return value.name
    return "x".join(map(str, value)) if isinstance(value, tuple) else str(value)


def size(text: str) -> tuple[int, int]:
    """Parse ``HxW``, such as ``360x480``, into (height, width) in pixels."""
    height, _, width = text.lower().partition("x")
    try:
        pair = (int(height), int(width))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not HxW, such as 360x480") from error
    if min(pair) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not positive; write HxW, such as 360x480")
    return pair
