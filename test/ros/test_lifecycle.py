"""The node's lifecycle over its services: nothing is answered while inactive, nothing grows."""

from __future__ import annotations

import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import rclpy
from harness import NODE, Bench, NodeProcess, Start, message, picture, values_of, wait_until
from harness import write_checkpoint as written
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState, GetState
from lowlat_seg_ros.msg import FrameReport

from lowlat_seg_ros.network.checkpoint import SHA256_SUFFIX, sha256
from lowlat_seg_ros.ros.runtime import ManagedNode

RGB = picture()


class Manager:
    """Asks a node for transitions, as ``ros2 lifecycle set`` does."""

    def __init__(self, bench: Bench) -> None:
        prefix = f"{bench.node.get_namespace()}/{NODE}"
        self._change = bench.node.create_client(ChangeState, f"{prefix}/change_state")
        self._state = bench.node.create_client(GetState, f"{prefix}/get_state")
        for client in (self._change, self._state):
            assert client.wait_for_service(60.0)

    def take(self, name: str) -> bool:
        """Take the transition ``name``; whether that succeeded."""
        number = getattr(Transition, f"TRANSITION_{name.upper()}")
        request = ChangeState.Request(transition=Transition(id=number))
        return bool(answer(self._change, request).success)

    def take_all(self, *names: str) -> None:
        assert [self.take(name) for name in names] == [True] * len(names)

    @property
    def state(self) -> str:
        return str(answer(self._state, GetState.Request()).current_state.label)


def answer(client: Any, request: Any) -> Any:
    future = client.call_async(request)
    wait_until(future.done, lambda: "the node does not answer")
    return future.result()


def resident_mb(node: NodeProcess) -> float:
    """Main memory that the process holds."""
    status = Path(f"/proc/{node.pid}/status").read_text()
    found = re.search(r"^VmRSS:\s+(\d+) kB$", status, re.MULTILINE)
    assert found
    return int(found[1]) / 1e3


def segment(bench: Bench, stamp_s: float) -> FrameReport:
    """The report on an image, which is sent until the node's new subscription gets it."""
    image = message(RGB, "rgb8", stamp_s)

    def reported() -> bool:
        bench.camera.publish(image)
        return any(report.header == image.header for report in bench.reports.all())

    wait_until(reported, lambda: "no mask comes", every_s=0.05)
    return bench.report_on(image)


@pytest.mark.slow
def test_twenty_cycles_without_growth(start: Start) -> None:
    node, bench = start(new_interpreter=True, autostart=False)
    manager, after_mb = Manager(bench), []
    for cycle in range(20):
        manager.take_all("configure", "activate")
        report = segment(bench, 10.0 * cycle)
        assert report.kind == FrameReport.FULL  # of a new engine
        assert report.reset_reason == "first_frame"
        manager.take_all("deactivate")
        bench.camera.publish(message(RGB, "rgb8", 10.0 * cycle + 5.0))
        manager.take_all("cleanup")
        after_mb.append(resident_mb(node))
    stamps = {mask.header.stamp.sec for mask in bench.masks.all()}
    assert stamps == {10 * cycle for cycle in range(20)}  # none on an image sent while inactive
    # Pages are kept or given back as the allocator likes; one network more is 0.3 MB, its engine,
    # threads and topics several.
    assert after_mb[19] <= after_mb[4] + 8, after_mb


def test_pause_keeps_the_ledger_and_the_next_image_starts_afresh(start: Start) -> None:
    _, bench = start()
    manager = Manager(bench)
    bench.send(message(RGB, "rgb8", 1.0))
    before = bench.counted().ledger
    assert manager.state == "active"
    manager.take_all("deactivate")
    assert manager.state == "inactive"
    unanswered = message(RGB, "rgb8", 1.1)
    bench.camera.publish(unanswered)
    manager.take_all("activate")
    after = segment(bench, 1.2)
    assert (after.kind, after.reset_reason) == (FrameReport.FULL, "activated")
    assert bench.counted().ledger.received > before.received
    assert not [mask for mask in bench.masks.all() if mask.header == unanswered.header]


def test_cleanup_gives_the_networks_memory_back(start: Start, tmp_path: Path) -> None:
    large = written(tmp_path / "resnet18.safetensors", "resnet18")  # 49 MB of float32
    node, bench = start(new_interpreter=True, autostart=False, checkpoint=str(large))
    manager = Manager(bench)
    manager.take_all("configure", "cleanup")  # libraries are loaded once and stay
    manager.take_all("configure")
    with_network_mb = resident_mb(node)
    manager.take_all("cleanup")
    assert resident_mb(node) <= with_network_mb - 40


def test_configure_refuses_other_weights_and_can_be_tried_again(
    start: Start, checkpoint: Path, tmp_path: Path
) -> None:
    wrong = "0" * 64
    node, bench = start(autostart=False, checkpoint_sha256=wrong, diagnostics_period_s=0.05)
    manager = Manager(bench)
    assert not manager.take("configure")
    assert manager.state == "unconfigured"
    complaint = f"{checkpoint} has SHA-256 {sha256(checkpoint)}, but checkpoint_sha256 says {wrong}"
    assert complaint in node.log
    assert "Traceback" not in node.log
    status = bench.status("lifecycle", lambda values: values["state"] == "unconfigured")
    status = bench.diagnostics.first(lambda s: s.name == status.name and s.level == b"\2")
    assert complaint in status.message

    other = tmp_path / "other.safetensors"
    other.write_bytes(checkpoint.read_bytes()[:-1])
    Path(f"{other}{SHA256_SUFFIX}").write_text(f"{sha256(checkpoint)}  {other.name}\n")
    assert all(r.successful for r in bench.set_parameters(checkpoint=str(other)))
    assert all(r.successful for r in bench.set_parameters(checkpoint_sha256=""))
    assert not manager.take("configure")
    assert f"but {other}{SHA256_SUFFIX} says {sha256(checkpoint)}" in node.log

    assert all(r.successful for r in bench.set_parameters(checkpoint=str(checkpoint)))
    manager.take_all("configure", "activate")
    assert segment(bench, 1.0).kind == FrameReport.FULL
    status = bench.status("lifecycle", lambda values: values["state"] == "active")
    values = values_of(status)
    assert status.level == b"\0"
    assert (values["budget_width"], values["budget_height"]) == ("64", "48")
    tracks = ("fast_track", "slow_track", "full_frame")
    assert all(float(values[f"budget_{track}_ms"]) > 0 for track in tracks)


def test_impossible_transition_is_refused_and_the_node_goes_on(start: Start) -> None:
    node, bench = start()
    manager = Manager(bench)
    assert not manager.take("configure")
    node.wait_for_log("transition 1 from")  # rclpy says it itself from Kilted on
    assert manager.state == "active"
    assert segment(bench, 1.0).kind == FrameReport.FULL


def test_shutdown_ends_the_work_but_not_the_process(start: Start) -> None:
    node, bench = start()
    manager = Manager(bench)
    manager.take_all("active_shutdown")
    assert manager.state == "finalized"
    assert node.status is None
    assert node.stop(signal.SIGINT) == 0
    assert "Traceback" not in node.log


class Faulty(ManagedNode):
    """Fails to configure; ``ends`` says whether it can be released all the same."""

    ends = True

    def configure(self) -> None:
        raise ZeroDivisionError("on purpose")

    activate = deactivate = cleanup = configure

    def release(self) -> bool:
        return self.ends


@pytest.fixture
def make() -> Iterator[Callable[[], Faulty]]:
    rclpy.init()
    yield lambda: Faulty("faulty")
    rclpy.shutdown()


@pytest.mark.parametrize(("ends", "state"), [(True, "unconfigured"), (False, "finalized")])
def test_fault_in_a_transition_is_told_and_all_is_released(
    make: Callable[[], Faulty], ends: bool, state: str
) -> None:
    node = make()
    node.ends = ends
    node.trigger_configure()
    assert node.state == state
    assert node.problem.startswith("Cannot configure: ZeroDivisionError: on purpose")
    assert ("end the process" in node.problem) is not ends
