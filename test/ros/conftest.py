"""Live nodes for the tests beside this file."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("rclpy", reason="needs ROS 2")

from harness import ROOT, Bench, NodeProcess, Start, write_checkpoint

_numbers = itertools.count()


@pytest.fixture(scope="session", autouse=True)
def environment(ros_domain: None) -> Iterator[None]:
    """What this process (before Fast DDS starts) and the nodes inherit.

    That is UDP between processes, and this checkout first among Python's paths. Through shared
    memory, Fast DDS 2.14 now and then loses the connection of two processes for ever when many come
    and go on a busy machine; :mod:`test_dds_profile` tests the shipped profile of shared memory.
    """
    paths = [str(ROOT), str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))
        for variable in ("FASTRTPS_DEFAULT_PROFILES_FILE", "FASTDDS_DEFAULT_PROFILES_FILE"):
            patch.setenv(variable, str(Path(__file__).with_name("udp.xml")))
        # LOCALHOST would replace the profile's transports, by shared memory among others.
        patch.setenv("ROS_AUTOMATIC_DISCOVERY_RANGE", "SYSTEM_DEFAULT")
        yield


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny network of random weights."""
    return write_checkpoint(tmp_path_factory.mktemp("weights") / "tiny.safetensors")


def _starter(stack: ExitStack, folder: Path, checkpoint: Path) -> Start:
    def start(
        *,
        arguments: tuple[str, ...] = (),
        listen: bool = True,
        reliable: bool = True,
        new_interpreter: bool = False,
        faults: Path | None = None,
        **parameters: Any,
    ) -> tuple[NodeProcess, Bench]:
        """``listen``: wait until images are answered; ``reliable``: the transport loses none."""
        namespace = f"test_{next(_numbers)}"
        defaults = {
            "checkpoint": str(checkpoint),
            "device": "cpu",
            "expected_width": 64,
            "expected_height": 48,
            "expected_rate_hz": 1000.0,
            "foreground_threads": 1,
            "slow_track_priority": "normal",  # on a busy machine an idle one waits for ever
            "diagnostics_period_s": 0.1,
        }
        if reliable:
            quality = {"subscription": {"reliability": "reliable"}}
            defaults["qos_overrides"] = {f"/{namespace}/image": quality}
        bench = stack.enter_context(Bench(namespace))
        node = NodeProcess(
            folder, defaults | parameters, namespace, arguments,
            new_interpreter=new_interpreter, faults=faults,
        )  # fmt: skip
        stack.callback(node.stop)
        if parameters.get("autostart", True):
            node.wait_for_log("Waiting for images")
        bench.wait_until_heard(node)
        if listen and parameters.get("autostart", True):
            bench.wait_for_node()
        return node, bench

    return start


@pytest.fixture
def start(tmp_path: Path, checkpoint: Path) -> Iterator[Start]:
    """Starts nodes of the test's own, with what parameters it likes."""
    with ExitStack() as stack:
        yield _starter(stack, tmp_path, checkpoint)


@pytest.fixture(scope="module")
def start_once(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path) -> Iterator[Start]:
    """Starts nodes that the tests of a file share."""
    with ExitStack() as stack:
        yield _starter(stack, tmp_path_factory.mktemp("shared"), checkpoint)


@pytest.fixture(scope="session")
def live(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path) -> Iterator[Bench]:
    """One node for all tests that leave it as they found it; give each its own ``frame_id``."""
    with ExitStack() as stack:
        _, bench = _starter(stack, tmp_path_factory.mktemp("live"), checkpoint)()
        yield bench
