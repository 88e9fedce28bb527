"""A live node whose Sh fails, and whose camera does: masks go on, and what is wrong is said.

The rows of docs/reliability.md that need a node and have no test elsewhere.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import Bench, Start, message, picture, values_of
from lowlat_seg_ros.msg import FrameReport

OK, WARN, ERROR = b"\0", b"\1", b"\2"
RGB = picture()


class Faulty:
    """A node whose Sh does what ``say`` asks for, and a camera that is answered image by image."""

    def __init__(self, bench: Bench, file: Path) -> None:
        self.bench, self._file, self._tenths = bench, file, itertools.count(1)
        self._name = f"{bench.node.get_namespace()[1:]}/segmentation_node"

    def say(self, fault: str) -> None:
        self._file.write_text(fault)

    def frame(self) -> FrameReport:
        return self.bench.send(message(RGB, "rgb8", 1.0 + next(self._tenths) / 10))

    def status(self, name: str, level: bytes, text: str = "") -> None:
        """Send images until the newest status says so; each of them gets a mask."""
        while True:
            assert self.frame().kind in (FrameReport.FULL, FrameReport.PROPAGATED)
            newest = [s for s in self.bench.diagnostics.all() if s.name == f"{self._name}: {name}"]
            if newest and newest[-1].level == level and text in newest[-1].message:
                return

    def heal(self) -> None:
        """Until exact features come again, and nothing is wrong."""
        self.say("")
        while not self.frame().exact:
            pass
        self.status("slow track", OK)


@pytest.fixture(scope="module")
def faulty(start_once: Start, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Faulty]:
    file = tmp_path_factory.mktemp("faults") / "fault"
    file.write_text("")
    _, bench = start_once(
        faults=file,
        key_frame_policy="deviation",
        deviation_threshold=0.0,
        max_refinement_ms=200.0,
        max_consecutive_delay_ms=500.0,
        camera_timeout_ms=300.0,
        max_gap_ms=0.0,
    )
    yield Faulty(bench, file)
    file.write_text("")


@pytest.mark.parametrize(
    ("fault", "text"),
    [
        ("raise", "RuntimeError: injected: the accelerator is gone"),
        ("nan", "not finite; set precision to fp32"),
        ("memory", "set a smaller inference_height, or end what else uses the device's memory"),
        ("end_thread", "and ended its thread: SystemExit: injected"),
        ("hang", "Sh has been at work on one key frame for"),
    ],
)
def test_masks_go_on_while_sh_fails_and_it_is_said_until_it_works(
    faulty: Faulty, fault: str, text: str
) -> None:
    faulty.heal()
    before = faulty.bench.counted().counters
    faulty.say(fault)
    faulty.status("slow track", WARN, text)
    during = faulty.bench.counted().counters
    faulty.heal()
    after = faulty.bench.counted().counters
    assert (during.failed > before.failed) is (fault != "hang")
    assert after.refined > during.refined
    assert after.resets == before.resets
    ended = after.refined + after.carried + after.superseded + after.dropped_late
    assert after.submitted == ended + after.dropped_stale + after.failed + after.pending


def test_a_first_frame_on_which_sh_hangs_is_said_and_no_camera_is_accused(faulty: Faulty) -> None:
    faulty.heal()
    bench, seen = faulty.bench, len(faulty.bench.diagnostics.all())
    faulty.say("hang")
    image = message(picture(64, 48), "rgb8", time.time())  # of another size: Sh runs first
    bench.camera.publish(image)
    name = f"{bench.node.get_namespace()[1:]}/segmentation_node"
    status = bench.diagnostics.first(
        lambda s: s.name == f"{name}: processing" and s.level == ERROR, seen
    )
    assert "a frame has been worked on for" in status.message
    seen_hanging = len(bench.diagnostics.all())
    camera = bench.status("camera", lambda _: True, after=seen_hanging)
    assert values_of(camera)["state"] == "active"
    faulty.say("")
    assert bench.report_on(image).kind == FrameReport.FULL
    faulty.heal()


def test_a_first_frame_on_which_sh_fails_has_a_degraded_mask(faulty: Faulty) -> None:
    faulty.heal()
    faulty.say("raise")
    reports = [
        faulty.bench.send(message(picture(64, 48), "rgb8", time.time() + n / 10)) for n in range(3)
    ]
    assert {r.kind for r in reports} == {FrameReport.DEGRADED}
    assert [r.epoch for r in reports] == [reports[0].epoch] * 3
    faulty.heal()


def test_a_camera_that_stops_and_returns(faulty: Faulty) -> None:
    faulty.heal()
    bench = faulty.bench
    seen = len(bench.diagnostics.all())
    stale = bench.status("camera", lambda v: v["state"] == "stale", after=seen)
    assert stale.level == ERROR
    assert "see whether the camera sends" in stale.message
    before, seen = faulty.bench.counted().ledger, len(bench.diagnostics.all())
    assert faulty.frame().kind == FrameReport.PROPAGATED
    assert bench.status("camera", lambda v: v["state"] == "active", after=seen).level == OK
    assert faulty.bench.counted().ledger.published == before.published + 1


def test_the_smallest_image_and_the_camera_s_own_again(faulty: Faulty) -> None:
    """An image of 1x1 has a mask of 1x1; one of 8K has its test without DDS."""
    faulty.heal()
    tiny = message(picture(1, 1), "rgb8", time.time())
    assert faulty.bench.send(tiny).reset_reason == "size_changed"
    mask = faulty.bench.mask_on(tiny)
    assert (mask.height, mask.width) == (1, 1)
    assert faulty.frame().kind == FrameReport.FULL
