"""What is wrong with how the node is started, said in a sentence before anything starts.

The node and its launch files share it; it imports nothing of ROS.
"""

from __future__ import annotations

import difflib
import itertools
import re
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from lowlat_seg_ros.config import ConfigError

LOG_LEVELS = ("debug", "info", "warn", "error", "fatal")

#: What a name may be (https://design.ros2.org/articles/topic_and_service_names.html), for messages.
NAME_RULE = "letters, digits, _ and /, no part of it empty or beginning with a digit"
_NAME = re.compile(r"(~/|/)?[A-Za-z_]\w*(/[A-Za-z_]\w*)*", re.ASCII)

#: What a file of parameters looks like, for messages.
_LAYOUT = (
    "write '/**/segmentation_node: {ros__parameters: {...}}', as config/segmentation.yaml does"
)

# What rcl could not read of the command line, and how it is written.
_FIXES = {
    "log level": f"choose one of {', '.join(LOG_LEVELS)}",
    "remap rule": f"write -r FROM:=TO; a name consists of {NAME_RULE}",
    "params file": "correct that line",
    "trailing": "write what belongs to it behind it",
    "parameter override": "write -p NAME:=VALUE, the value as in YAML",
    "UnknownROSArgs": "leave it out, or put it after -- if it is not for ROS",
    "ROS_DOMAIN_ID": "set ROS_DOMAIN_ID to a number from 0 to 101, or unset it",
}


def flag(option: str, value: str) -> bool:
    """``true`` or ``false``, in any case; empty is false. ConfigError for anything else."""
    return choice(option, value, ("true", "false", "")) == "true"


def choice(option: str, value: str, choices: Sequence[str]) -> str:
    """``value`` in lower case; ConfigError unless it is one of ``choices``."""
    if value.lower() not in choices:
        known = ", ".join(filter(None, choices))
        raise ConfigError(f"{option} is {value!r}; choose one of {known}")
    return value.lower()


def check_name(option: str, value: str) -> None:
    """ConfigError unless a topic or namespace can be called ``value``."""
    if not _NAME.fullmatch(value):
        raise ConfigError(f"{option} is {value!r}; a name consists of {NAME_RULE}")


def check_arguments(given: Sequence[str], known: Collection[str]) -> None:
    """ConfigError for a launch argument, ``name:=value``, whose name is not ``known``.

    ``ros2 launch`` ignores such arguments.
    """
    for name in (word.partition(":=")[0] for word in given):
        if name not in known and not name.startswith("launch-prefix"):  # those are of ros2 launch
            close = difflib.get_close_matches(name.replace("-", "_"), known, n=1)
            hint = f"did you mean {close[0]}? " if close else ""
            raise ConfigError(
                f"there is no launch argument {name}; {hint}There are {', '.join(sorted(known))}"
            )


def names_file(words: Sequence[str], file: str, package: str) -> bool:
    """Whether the command line ``words`` of ``ros2 launch`` names the launch file ``file``.

    Otherwise another launch file includes it, and may have arguments of its own.
    """
    path = Path(file).resolve()
    return any(
        Path(word).resolve() == path or (before == package and word == path.name)
        for before, word in zip(["", *words], words, strict=False)
    )


def params_files(arguments: Sequence[str]) -> list[str]:
    pairs = itertools.pairwise(arguments)
    return [word for option, word in pairs if option == "--params-file"]


def nodes_in(option: str, path: str) -> list[str]:
    """The nodes that a file of parameters is for: names and patterns such as ``/**/node``.

    ConfigError, with ``option`` as what gave the file, if it cannot be read or has no parameters.
    """
    given = f"{option} is {path}"
    try:
        # No types, for launch writes lists as !!python/tuple.
        content = yaml.load(Path(path).read_bytes(), yaml.BaseLoader)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise ConfigError(
            f"{given}, which cannot be read ({reason}); give a YAML file of parameters"
        ) from error
    except yaml.YAMLError as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", str(error))
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        reason = where + " ".join(str(problem).split())
        raise ConfigError(f"{given}, which is not YAML ({reason}); correct it there") from error
    nodes = [*_sections(content)]
    if not nodes:
        raise ConfigError(f"{given}, which has no parameters of any node; {_LAYOUT}")
    return nodes


def foreign_files(files: Sequence[str], node: str, option: str = "--params-file") -> list[str]:
    """A sentence for each of the ``files`` of parameters that has none for ``node``, its full name.

    rcl ignores such a file, and the node would run on its defaults. Raises as :func:`nodes_in`.
    """
    foreign = []
    for path in files:
        nodes = nodes_in(option, path)
        if not any(_pattern(name).fullmatch(node) for name in nodes):
            foreign.append(
                f"{option} is {path}, which is for {', '.join(nodes)} and has nothing for {node}; "
                f"{_LAYOUT}, or leave the file out"
            )
    return foreign


def cannot_initialise(error: Exception) -> str:
    """A sentence of what rclpy raises when it cannot read the command line or the environment."""
    kind = type(error).__name__
    text = re.sub(r", at /\S+:\d+", "", " ".join(str(error).split()))
    text = text.removeprefix("failed to initialize rcl: ").rstrip(".")
    if kind.startswith("UnknownROSArgs"):
        text = f"there is no ROS argument {text.strip('[]')}"
    fixes = (fix for part, fix in _FIXES.items() if part in f"{kind} {text}")
    return "; ".join(filter(None, [text, next(fixes, "")]))


def _sections(content: Any, name: str = "") -> Iterator[str]:
    """Full names of the nodes whose parameters a file's ``content`` has."""
    for key, value in content.items() if isinstance(content, dict) else ():
        if key == "ros__parameters" and name and (isinstance(value, dict) or not value):
            yield name
        else:
            yield from _sections(value, f"{name}/{str(key).strip('/')}")


def _pattern(name: str) -> re.Pattern[str]:
    parts = {"**": r"(/\w+)*", "*": r"/\w+"}
    return re.compile("".join(parts.get(p, f"/{re.escape(p)}") for p in name.split("/")[1:]))
