"""Several cameras on one live node: each has its own masks, ledger and epochs, none starves."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticStatus
from harness import (
    RELIABLE,
    TIMEOUT_S,
    Bench,
    Start,
    counted,
    mask_of,
    message,
    picture,
    values_of,
    wait_until,
)
from lowlat_seg_ros.msg import FrameReport, Ledger, Statistics
from rclpy.duration import Duration
from sensor_msgs.msg import Image

from lowlat_seg_ros.config import EngineConfig
from lowlat_seg_ros.engine.engine import Engine
from lowlat_seg_ros.frames import Frame
from lowlat_seg_ros.messages import stamp_ns
from lowlat_seg_ros.ros.monitor import ENOUGH

NAMES = ["front", "left", "rear"]
SIZES = {"front": (48, 64), "left": (96, 80), "rear": (48, 64)}
TOPICS = {"front": "front/image", "left": "port_side", "rear": "rear/image"}  # left is remapped
STATES = ["camera", "processing", "deadline", "slow track", "ledger"]


class End:
    """One camera of the node: it publishes images here, and its masks and reports come in."""

    def __init__(self, bench: Bench, name: str) -> None:
        self.name, self._seconds = name, itertools.count(1)
        self._camera = bench.node.create_publisher(Image, TOPICS[name], RELIABLE)
        self.masks = bench.listen(Image, f"{name}/mask")
        self.reports = bench.listen(FrameReport, f"{name}/frame_report")
        self.statistics = bench.listen(Statistics, f"{name}/statistics")

    def publish(self, image: Image) -> None:
        self._camera.publish(image)

    def image(self, seed: int, size: tuple[int, int] | None = None) -> Image:
        """The camera's next image, half a second after the last."""
        pixels = picture(*(size or SIZES[self.name]), seed=seed)
        return message(pixels, "rgb8", next(self._seconds) / 2, f"{self.name}_lens")

    def wait_until_delivered(self) -> None:
        """Until the node's middleware has all that was published."""
        assert self._camera.wait_for_all_acked(Duration(seconds=TIMEOUT_S))

    def report_on(self, image: Image) -> FrameReport:
        return self.reports.first(lambda report: report.header == image.header)

    def send(self, image: Image) -> FrameReport:
        self.publish(image)
        return self.report_on(image)

    def counted(self) -> Statistics:
        """What the node counts for this camera from now on."""
        return counted(self.statistics)

    def connect(self) -> FrameReport:
        """The report on an image, when all before it have come in or were superseded."""
        probe = self.image(0)

        def answered() -> bool:
            self.publish(probe)
            return bool(self.masks.all() and self.reports.all())

        wait_until(answered, lambda: f"{self.name} is not answered", every_s=0.1)
        return self.send(self.image(0))


def connected(bench: Bench) -> dict[str, End]:
    ends = {name: End(bench, name) for name in NAMES}
    for end in ends.values():
        end.connect()
    return ends


@pytest.fixture(scope="module")
def rig(start_once: Start) -> tuple[Bench, dict[str, End]]:
    """A node with three cameras, every frame of which is a key frame."""
    remap = ("-r", f"left/image:={TOPICS['left']}")
    _, bench = start_once(arguments=remap, listen=False, cameras=NAMES, deviation_threshold=0.0)
    return bench, connected(bench)


def test_every_mask_is_of_its_own_camera(
    rig: tuple[Bench, dict[str, End]], checkpoint: Path
) -> None:
    _, ends = rig
    before = {name: end.send(end.image(1)) for name, end in ends.items()}
    published = {name: end.counted().ledger.published for name, end in ends.items()}
    for seed in range(2, 8):
        images = {name: end.image(seed) for name, end in ends.items()}
        for name, image in images.items():  # all three at once
            ends[name].publish(image)
        reports = {name: ends[name].report_on(image) for name, image in images.items()}
    for name, end in ends.items():
        assert {m.header.frame_id for m in end.masks.all()} == {f"{name}_lens"}
        assert {(m.height, m.width) for m in end.masks.all()} == {SIZES[name]}
        assert end.counted().ledger.published == published[name] + 6
        assert reports[name].epoch == before[name].epoch
    with Engine.from_checkpoint(checkpoint, EngineConfig(foreground_threads=1), "cpu") as engine:
        for end in ends.values():
            probe = end.masks.all()[0]
            wanted = engine.process(Frame(picture(probe.height, probe.width), 0)).mask
            np.testing.assert_array_equal(mask_of(probe), wanted)
            engine.reset()


def test_reset_of_one_camera_leaves_the_others_alone(rig: tuple[Bench, dict[str, End]]) -> None:
    _, ends = rig
    before = {name: end.send(end.image(10)) for name, end in ends.items()}
    resets = {name: end.counted().counters.resets for name, end in ends.items()}
    left = ends["left"].send(ends["left"].image(11, size=(48, 80)))
    assert (left.kind, left.reset_reason) == (FrameReport.FULL, "size_changed")
    for name in ("front", "rear"):
        after = ends[name].send(ends[name].image(11))
        assert (after.kind, after.epoch) == (FrameReport.PROPAGATED, before[name].epoch)
    found = {name: end.counted().counters.resets for name, end in ends.items()}
    assert found == {**resets, "left": resets["left"] + 1}
    ends["left"].send(ends["left"].image(12))  # back at its size


def test_each_camera_has_its_share_of_the_slow_track_and_its_states(
    rig: tuple[Bench, dict[str, End]],
) -> None:
    bench, ends = rig

    def refined(name: str) -> bool:
        ends[name].send(ends[name].image(20))
        counters = ends[name].counted().counters
        return bool(counters.refined + counters.carried >= 2)

    for name in NAMES:
        wait_until(lambda name=name: refined(name), lambda: "Sh never comes to a camera")
    for name, state in itertools.product(NAMES, STATES):
        status = bench.status(f"{name}: {state}", lambda _: True)
        if state == "camera":
            wanted = bench.node.resolve_topic_name(TOPICS[name])
            assert values_of(status)["topic"] == wanted


def test_the_newest_image_of_each_camera_is_served_however_long_it_waited(
    start: Start, tmp_path: Path
) -> None:
    """While Sh hangs on a first frame of one camera all send on; then each has one mask."""
    fault = tmp_path / "fault"
    fault.write_text("")
    remap = ("-r", f"left/image:={TOPICS['left']}")
    _, bench = start(
        arguments=remap, listen=False, cameras=NAMES, faults=fault, max_consecutive_delay_ms=500.0
    )
    ends = connected(bench)
    before = {name: end.counted().ledger for name, end in ends.items()}
    fault.write_text("hang")
    held = ends["front"].image(1, size=(96, 64))  # a change of size: Sh runs first
    ends["front"].publish(held)
    bench.diagnostics.first(lambda status: "a frame has been worked on for" in status.message)
    newest = {}
    for number, name in itertools.product(range(2, 9), NAMES):
        newest[name] = ends[name].image(number, size=(96, 64) if name == "front" else None)
        ends[name].publish(newest[name])
    for end in ends.values():
        end.wait_until_delivered()
    fault.write_text("")
    ends["front"].report_on(held)
    for name, image in newest.items():
        ends[name].report_on(image)
        served = [report.header for report in ends[name].reports.all()]
        last = held.header if name == "front" else served[-2]
        assert served[-2:] == [last, image.header]
        after = ends[name].counted().ledger
        assert after.superseded - before[name].superseded == 6
        assert after.received - before[name].received == (2 if name == "front" else 1)


def test_no_camera_starves_under_overload(start: Start) -> None:
    """All send more than can be segmented, in bursts, so that images wait whoever is served."""
    remap = ("-r", f"left/image:={TOPICS['left']}")
    _, bench = start(arguments=remap, listen=False, cameras=NAMES)
    ends = connected(bench)
    large = {name: picture(240, 320, seed) for seed, name in enumerate(NAMES)}

    def image(name: str, number: int) -> Image:
        return message(large[name], "rgb8", 100 + number / 100, f"{name}_lens")

    for name, end in ends.items():
        end.send(image(name, 0))
    before = {name: end.counted().ledger for name, end in ends.items()}
    sent = dict.fromkeys(NAMES, 0)
    overload = itertools.count(1)

    def share(counted: Callable[[Ledger], Any]) -> dict[str, Any]:
        newest = {name: end.statistics.all()[-1].ledger for name, end in ends.items()}
        return {name: counted(newest[name]) - counted(before[name]) for name in NAMES}

    def enough() -> bool:
        number = next(overload)
        for name in NAMES * 3:
            ends[name].publish(image(name, number))
            sent[name] += 1
        published = share(lambda ledger: ledger.published)
        superseded = share(lambda ledger: ledger.superseded)
        return min(published.values()) >= ENOUGH and min(superseded.values()) >= 1

    wait_until(enough, lambda: f"a camera starves: {sent}", every_s=0.001)
    for name in NAMES:  # and it is said
        bench.status(
            f"{name}: processing",
            lambda values: float(values["load"]) > 1 and float(values["camera_period_ms"]) > 0,
        )
    published = share(lambda ledger: ledger.published)
    assert max(published.values()) <= 2 * min(published.values()), published
    for name, end in ends.items():
        end.send(image(name, next(overload)))  # the newest, so never superseded
        after = end.counted().ledger
        received = after.received - before[name].received
        superseded = after.superseded - before[name].superseded
        assert received + superseded == sent[name] + 1


def test_three_cameras_at_30_hz_are_more_than_the_node_can_do(start: Start) -> None:
    """Small images and a large network: every frame takes longer than the time that there is.

    An image waits for the frame at hand and for one of each other camera, and again for one of each
    where all came at the same moment: its age is bounded by frames, however long these take.
    """
    remap = ("-r", f"left/image:={TOPICS['left']}")
    _, bench = start(
        arguments=remap, listen=False, cameras=NAMES, inference_height=960,
        max_processing_time_ms=0.0, camera_timeout_ms=0.0, key_frame_policy="deviation",
    )  # fmt: skip
    ends = connected(bench)
    before = {name: end.counted().ledger for name, end in ends.items()}
    begun = {name: len(end.reports.all()) for name, end in ends.items()}
    sent: dict[str, list[Image]] = {name: [] for name in NAMES}

    def send_all() -> None:
        for name, end in ends.items():
            pixels = picture(*SIZES[name], seed=len(sent[name]) % 8)
            sent[name].append(message(pixels, "rgb8", time.time(), f"{name}_lens"))
            end.publish(sent[name][-1])

    def answered() -> dict[str, list[FrameReport]]:
        return {name: end.reports.all()[begun[name] :] for name, end in ends.items()}

    def enough() -> bool:
        send_all()
        return min(map(len, answered().values())) >= 2 * ENOUGH

    def overloaded(name: str) -> list[Any]:
        found = [s for s in bench.diagnostics.all() if s.name.endswith(f": {name}: processing")]
        # Before the camera's pace is known nothing is said.
        known = [s for s in found if float(values_of(s)["camera_period_ms"]) > 0]
        return [s for s in known if float(values_of(s)["load"]) > 1]

    def said() -> bool:
        send_all()
        return all(overloaded(name) for name in NAMES)

    wait_until(enough, lambda: f"a camera starves: {answered()}", every_s=1 / 30)
    wait_until(said, lambda: "nothing says that there are too many images", every_s=1 / 30)
    for name in NAMES:  # it is said, with what to do
        status = overloaded(name)[-1]
        assert status.level == DiagnosticStatus.WARN
        assert "so that some are left out; set inference_height, now 960, to" in status.message
    for name, end in ends.items():
        assert end.report_on(sent[name][-1])  # nothing supersedes the last one
        after = end.counted().ledger
        received = after.received - before[name].received
        superseded = after.superseded - before[name].superseded
        assert (received + superseded, after.failed, after.rejected) == (len(sent[name]), 0, 0)
        assert superseded > 0
        assert len(answered()[name]) == received
    frames = sorted((begin_ms(report), name) for name in NAMES for report in answered()[name])
    for name, reports in answered().items():
        stamps = [stamp_ns(report.header.stamp) for report in reports]
        assert stamps == sorted(set(stamps))  # never an older one after a newer one
        for report in reports:
            begin = begin_ms(report)
            before_it = [at for at, _ in frames if begin - report.wait_ms <= at < begin]
            assert len(before_it) <= 2 * len(NAMES), (name, before_it)
    counts = [len(reports) for reports in answered().values()]
    assert max(counts) <= 2 * min(counts)


def begin_ms(report: FrameReport) -> float:
    """When the handling of an image began, on the clock of its stamp."""
    return stamp_ns(report.header.stamp) / 1e6 + report.age_ms - report.processing_ms
