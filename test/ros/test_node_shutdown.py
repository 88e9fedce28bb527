"""The live node is asked to end at an awkward moment; each is a Python process started for it."""

from __future__ import annotations

import re
import signal
from pathlib import Path

import pytest
from harness import (
    NODE,
    NOT_ALLOWED,
    Bench,
    NodeProcess,
    Start,
    message,
    picture,
    wait_until,
    write_checkpoint,
)

from lowlat_seg_ros.network import quantization
from lowlat_seg_ros.network.checkpoint import DEFAULT_CHECKPOINT


@pytest.fixture(scope="module")
def heavy(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A network whose Sh takes long on the image below, on any CPU."""
    path = tmp_path_factory.mktemp("heavy") / "resnet18.safetensors"
    return str(write_checkpoint(Path(path), "resnet18"))


IMAGE = picture(480, 640)
BIG_IMAGE = picture(720, 960)  # whose first frame outlasts the node's patience on most machines


def test_ends_cleanly_while_sh_runs(start: Start, heavy: str) -> None:
    # Threshold 0 makes every frame a key frame, and so a job for Sh.
    node, bench = start(
        new_interpreter=True, checkpoint=heavy, deviation_threshold=0.0, diagnostics_period_s=0.05
    )
    bench.send(message(IMAGE, "rgb8", 1.0))
    submitted = bench.counted().counters.submitted
    bench.send(message(IMAGE, "rgb8", 1.1))
    bench.status(
        "slow track",
        lambda v: v["slow_track_running"] == "True" and int(v["submitted"]) > submitted,
    )
    assert node.stop(signal.SIGINT) == 0
    assert "Traceback" not in node.log


def test_ends_cleanly_while_a_frame_is_in_the_foreground(start: Start, heavy: str) -> None:
    node, bench = start(new_interpreter=True, checkpoint=heavy, diagnostics_period_s=0.05)
    bench.camera.publish(message(BIG_IMAGE, "rgb8", 1.0))
    bench.status("ledger", lambda values: values["in_flight"] == "1")
    assert node.stop(signal.SIGINT) == 0
    assert "Traceback" not in node.log


def test_ends_cleanly_without_any_image(start: Start) -> None:
    node, _ = start(new_interpreter=True, listen=False)
    assert node.stop(signal.SIGTERM) == 0
    assert "Traceback" not in node.log


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def test_ends_at_once_while_it_warms_up(tmp_path: Path, heavy: str, number: signal.Signals) -> None:
    big = {"checkpoint": heavy, "expected_width": 1920, "expected_height": 1080}
    node = NodeProcess(tmp_path, big, "warming_up", new_interpreter=True)
    with Bench("warming_up") as observer:
        # The node is seen before the warm-up, its topics after it.
        wait_until(
            lambda: (NODE, "/warming_up") in observer.node.get_node_names_and_namespaces(),
            lambda: node.log,
        )
        assert not observer.node.count_publishers(f"/warming_up/{NODE}/mask")
        assert node.stop(number) == 0
    assert "Traceback" not in node.log


@pytest.mark.parametrize("runtime", ["pytorch", "openvino"])
def test_needs_no_network_but_loopback(runtime: str, tmp_path: Path, checkpoint: Path) -> None:
    """It loads, runs every stage and listens where there is no interface to anywhere."""
    parameters = {"checkpoint": str(checkpoint), "device": "cpu", "expected_rate_hz": 1000.0}
    parameters |= {"expected_width": 64, "expected_height": 48}
    if runtime == "openvino":
        pytest.importorskip("openvino", reason="needs the library openvino")
        if not quantization.works():
            pytest.skip("this processor or PyTorch has no right convolutions in 8 bits")
        parameters |= {
            "runtime": runtime,
            "precision": "int8",
            "checkpoint": str(DEFAULT_CHECKPOINT),
        }
    node = NodeProcess(tmp_path, parameters, "alone", no_network=True)
    wait_until(lambda: "Started in" in node.log or node.status is not None, lambda: node.log)
    if node.status == NOT_ALLOWED:
        pytest.skip("this system lets no process leave the network (unshare, CLONE_NEWNET)")
    interfaces = Path(f"/proc/{node.pid}/net/dev").read_text().splitlines()[2:]
    assert [line.partition(":")[0].strip() for line in interfaces] == ["lo"]
    assert node.stop() == 0
    assert "Waiting for images" in node.log
    assert re.search(r"Started in [\d.]+ s: imports [\d.]+, loading the weights [\d.]+, ", node.log)
