"""Run the live node for long while everything around it fails: ``make soak MINUTES=30``.

The camera sends 15 images a second, a core beside the node is busy, and every few seconds one fault
of docs/reliability.md happens: first each of them once, as a warm-up, then any of them. Once a
second the node's memory, threads and file descriptors are read. At the end it is killed and started
again. What came of it is in soak.json and soak.png; the status is 1 if a bound was broken.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from diagnostic_msgs.msg import DiagnosticArray
from domain_coordinator import domain_id
from faulty_node import FAULTS
from rclpy.node import Node
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import Image

from lowlat_seg_ros.lab.benchmark.kernel import busy_core
from lowlat_seg_ros.lab.data.synthetic import RenderedDrive
from lowlat_seg_ros.ros.outputs import MESSAGES
from lowlat_seg_ros.ros.start import DISCOVERY_RANGE, PROFILE_VARIABLES
from lowlat_seg_ros.tools.live import NodeProcess, Recorder, spun_node, wait_until_connected

#: The tests' profile of Fast DDS.
UDP = Path(__file__).parents[1] / "test" / "ros" / "udp.xml"

RATE_HZ, SIZE = 15.0, (240, 320)

#: How long a fault lasts, and the least and most time between two of them.
FAULT_S, PAUSE_S = 2.0, (2.0, 6.0)

#: So long images of another size come in the warm-up: the first of them wait until the network is
#: compiled for their size, and what frames of both kinds need must be there before it is counted.
NEW_SIZE_S = 8.0

#: From the first to the last third of the time after the warm-up memory may grow by this share, and
#: the median latency by this factor: in a run of so many images; and in a shorter one, whose thirds
#: lie seconds apart, in which an allocator still takes blocks for sizes that it sees for the first
#: time, and the machine itself may be slow for some of them.
GROWTH, SLOWER, ENOUGH_IMAGES = 0.01, 2.0, 25_000
SHORT_GROWTH, SHORT_SLOWER = 0.1, 4.0

#: Until masks come again once a fault is over; or features of Sh, which runs at idle priority and
#: may have to wait for a busy machine.
RECOVERY_S, SH_RECOVERY_S = 30.0, 60.0

#: How often the node is killed and started again at the end; and until its first mask, the median
#: of these, which is asserted in a long run only, as nobody else should use the machine then.
RESTARTS, FIRST_MASK_S = 5, 4.0


@dataclass(frozen=True)
class Sample:
    """The node's process at one moment; latencies are of the masks since the last sample."""

    at_s: float
    rss_mb: float
    threads: int
    descriptors: int
    masks: int
    p50_ms: float
    p99_ms: float


class Camera:
    """Publishes frames of a rendered drive; what it does wrong is set from outside."""

    def __init__(self, frames: list[np.ndarray]) -> None:
        self._frames, self._stack = frames, ExitStack()
        self.sent, self.rate_hz, self.shift_s = 0, RATE_HZ, 0.0
        self.spoil: Callable[[Image], Image | None] = lambda image: image
        self.restart()

    def restart(self) -> None:
        """Leave DDS, as a driver's process that ends, and come back."""
        self._stack.close()
        self._node: Node = self._stack.enter_context(spun_node("camera"))
        self._publisher = self._node.create_publisher(Image, "image", qos_profile_sensor_data)

    @property
    def listeners(self) -> int:
        return int(self._publisher.get_subscription_count())

    def publish(self, pixels: np.ndarray | None = None) -> None:
        if pixels is None:  # there and back, so that the scene never jumps
            place = self.sent % (2 * len(self._frames) - 2)
            pixels = self._frames[min(place, 2 * len(self._frames) - 2 - place)]
        image = MESSAGES.image(MESSAGES.header(self.stamp_ns(), "camera"), pixels, "rgb8")
        self.sent += 1
        spoilt = self.spoil(image)
        if spoilt is not None:
            self._publisher.publish(spoilt)

    def stamp_ns(self) -> int:
        return int(self._node.get_clock().now().nanoseconds + self.shift_s * 1e9)

    def __enter__(self) -> Camera:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()


def faults(camera: Camera, file: Path) -> dict[str, Callable[[bool], object]]:
    """What can go wrong, each begun with True and ended with False."""

    def of_sh(name: str) -> Callable[[bool], object]:
        return lambda begins: file.write_text(name if begins else "")

    def spoiling(change: Callable[[Image], Image | None]) -> Callable[[bool], None]:
        return lambda begins: setattr(camera, "spoil", change if begins else lambda image: image)

    def tiny(image: Image) -> Image:
        return MESSAGES.image(image.header, np.zeros((1, 1, 3), np.uint8), "rgb8")

    def large(image: Image) -> Image:
        return MESSAGES.image(image.header, np.full((480, 640, 3), 99, np.uint8), "rgb8")

    def cut_short(image: Image) -> Image:
        image.data = image.data[:-7]
        return image

    def flood(begins: bool) -> None:
        camera.rate_hz = 200.0 if begins else RATE_HZ

    def clock(seconds: float) -> Callable[[bool], None]:
        return lambda begins: setattr(camera, "shift_s", seconds if begins else 0.0)

    return {f"Sh: {name}": of_sh(name) for name in FAULTS} | {
        "camera stops": spoiling(lambda image: None),
        "camera floods at 200 Hz": flood,
        "images of 1x1": spoiling(tiny),
        "images of 640x480": spoiling(large),
        "images cut short": spoiling(cut_short),
        "clock jumps ahead": clock(30.0),
        "clock jumps back": clock(-30.0),
        "camera's process restarts": lambda begins: camera.restart() if begins else None,
    }


class Soak:
    """One run: the camera's loop, in which faults begin and end and samples are taken."""

    def __init__(
        self, node: Node, process: NodeProcess, camera: Camera, recorder: Recorder
    ) -> None:
        self.process, self.camera, self.recorder = process, camera, recorder
        self.samples: list[Sample] = []
        self.happened: list[tuple[float, str]] = []
        self.recovery_s: dict[str, list[float]] = {}
        self.levels: dict[str, int] = {}
        self._began = time.monotonic()
        self._counted = 0
        node.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, 10)

    def run(self, seconds: float, seed: int, file: Path) -> float:
        """For so long; returns when the warm-up, a round of all faults, was over."""
        dice, choices = random.Random(seed), faults(self.camera, file)
        warm_up = list(choices)
        warm_s = 0.0
        while warm_up or self._now() < seconds - 5.0:
            name = warm_up.pop() if warm_up else dice.choice(list(choices))
            self.happened.append((self._now(), name))
            choices[name](True)
            is_new = not warm_s and name.startswith("images of")
            self._play(NEW_SIZE_S if is_new else FAULT_S)
            choices[name](False)
            self.recovery_s.setdefault(name, []).append(self._recover(name))
            self._play(PAUSE_S[0] if warm_up else dice.uniform(*PAUSE_S))
            if not warm_up and not warm_s:
                warm_s = self._now()
        self._play(max(seconds - self._now(), 2.0))
        return warm_s

    def _recover(self, name: str) -> float:
        """Seconds until a mask comes, or features of Sh; infinite if none do in time."""
        began, of_sh = self._now(), name.startswith("Sh")
        limit_s, seen = SH_RECOVERY_S if of_sh else RECOVERY_S, self._progress(of_sh=of_sh)
        while self._progress(of_sh=of_sh) == seen:
            if self._now() > began + limit_s:
                return math.inf
            self._play(0.1)
        return self._now() - began

    def _progress(self, *, of_sh: bool) -> int:
        reports, counters = self.recorder.reports, self.recorder.counts[0]
        exact = sum(report.exact for report in reports)  # Sh may have run on a first frame as well
        return counters.refined + counters.carried + exact if of_sh else len(reports)

    def _play(self, seconds: float) -> None:
        end, due = time.monotonic() + seconds, time.monotonic()
        while (now := time.monotonic()) < end:
            if now >= due:
                self.camera.publish()
                due = max(due + 1 / self.camera.rate_hz, now - 0.1)
            if not self.samples or self._now() - self.samples[-1].at_s >= 1.0:
                self.process.check()
                self._sample()
            time.sleep(max(0.0, min(due, end) - time.monotonic()))

    def _sample(self) -> None:
        folder = Path(f"/proc/{self.process.pid}")
        reports = self.recorder.reports
        new = [report.processing_ms for report in reports[self._counted :]] or [float("nan")]
        self._counted = len(reports)
        pages = int((folder / "statm").read_text().split()[1])
        self.samples.append(
            Sample(
                self._now(),
                pages * os.sysconf("SC_PAGE_SIZE") / 1e6,
                len(os.listdir(folder / "task")),
                len(os.listdir(folder / "fd")),
                len(reports),
                float(np.percentile(new, 50)),
                float(np.percentile(new, 99)),
            )
        )

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        for status in message.status:
            self.levels[status.name.partition(": ")[2]] = status.level[0]

    def _now(self) -> float:
        return time.monotonic() - self._began


def judge(soak: Soak, warm_s: float) -> tuple[dict[str, Any], list[str]]:
    """Figures of the run after its warm-up, and a sentence for each bound that was broken."""
    warm = [sample for sample in soak.samples if sample.at_s >= warm_s]
    third = max(len(warm) // 3, 1)
    first, last = warm[:third], warm[-third:]

    def middle(samples: list[Sample], name: str) -> float:
        values = [getattr(sample, name) for sample in samples]
        return statistics.median(value for value in values if value == value)

    counters, ledger = soak.recorder.counts
    grown_mb = middle(last, "rss_mb") - middle(first, "rss_mb")
    figures: dict[str, Any] = {
        "seconds": soak.samples[-1].at_s,
        "warm_up_s": warm_s,
        "images": soak.camera.sent,
        "faults": len(soak.happened),
        "rss_mb": [middle(first, "rss_mb"), middle(last, "rss_mb")],
        "grown_share": grown_mb / middle(first, "rss_mb"),
        "threads": [middle(first, "threads"), middle(last, "threads")],
        "descriptors": [middle(first, "descriptors"), middle(last, "descriptors")],
        "processing_p50_ms": [middle(first, "p50_ms"), middle(last, "p50_ms")],
        "processing_p99_ms": [middle(first, "p99_ms"), middle(last, "p99_ms")],
        "slowest_recovery_s": {name: max(times) for name, times in soak.recovery_s.items()},
        "ledger": asdict(ledger),
        "counters": asdict(counters),
        "levels": soak.levels,
    }
    ended = ledger.published + ledger.rejected + ledger.failed + ledger.in_flight
    jobs = counters.refined + counters.carried + counters.superseded + counters.dropped_late
    jobs += counters.dropped_stale + counters.failed + counters.pending
    long = soak.camera.sent >= ENOUGH_IMAGES
    share, slower = (GROWTH, SLOWER) if long else (SHORT_GROWTH, SHORT_SLOWER)
    limit_mb = share * middle(first, "rss_mb")
    bounds = {
        f"memory grew by {grown_mb:.1f} MB, over {limit_mb:.1f}": grown_mb > limit_mb,
        f"threads grew: {figures['threads']}": middle(last, "threads") > middle(first, "threads"),
        f"descriptors grew: {figures['descriptors']}": (
            middle(last, "descriptors") > middle(first, "descriptors") + 2
        ),
        f"frames became slower: {figures['processing_p50_ms']} ms": (
            middle(last, "p50_ms") > slower * middle(first, "p50_ms")
        ),
        f"the ledger does not balance: {ledger}": ledger.received != ended,
        f"jobs of the slow track are missing: {counters}": counters.submitted != jobs,
        f"frames failed: {ledger.failed}": ledger.failed > 0,
        f"a fault was not recovered from: {figures['slowest_recovery_s']}": (
            math.inf in figures["slowest_recovery_s"].values()
        ),
        f"something is wrong at the end: {soak.levels}": soak.levels.get("slow track")
        not in (0, 1),
    }
    return figures, [sentence for sentence, broken in bounds.items() if broken]


def chart(soak: Soak, warm_s: float, path: Path) -> None:
    """Memory, threads, descriptors and latencies over the time, and when the faults were."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    minutes = [sample.at_s / 60 for sample in soak.samples]
    figure, axes = plt.subplots(3, sharex=True, figsize=(9, 7), layout="constrained")
    axes[0].plot(minutes, [sample.rss_mb for sample in soak.samples])
    axes[0].set(ylabel="resident memory / MB")
    for name in ("threads", "descriptors"):
        axes[1].plot(minutes, [getattr(sample, name) for sample in soak.samples], label=name)
    axes[1].set(ylabel="number")
    axes[1].legend()
    for name, label in (("p50_ms", "p50 of a second"), ("p99_ms", "p99 of a second")):
        values = [getattr(sample, name) for sample in soak.samples]
        axes[2].plot(minutes, values, label=label, linewidth=0.7)
    axes[2].set(ylabel="image in to mask out / ms", yscale="log", xlabel="minutes")
    axes[2].legend()
    for axis in axes[:2]:
        axis.set_ylim(0, 1.1 * axis.dataLim.ymax)
    for axis in axes:
        axis.axvspan(0, warm_s / 60, alpha=0.15, color="grey")
        for at_s, _ in soak.happened:
            axis.axvline(at_s / 60, color="red", linewidth=0.3, alpha=0.4)
    title = f"{soak.camera.sent} images; {len(soak.happened)} faults (red), warm-up grey"
    figure.suptitle(title)
    figure.savefig(path, dpi=100)


def first_mask_s(node: Node, camera: Camera, parameters: dict[str, Any], log: Path) -> float:
    """Seconds from the start of a node's process to its first mask, the camera being there."""
    recorder = Recorder(node, store_masks=False)
    began = time.monotonic()
    with NodeProcess(parameters, log) as process:
        while not recorder.reports:
            process.check()
            camera.publish()
            time.sleep(1 / RATE_HZ)
        took_s = time.monotonic() - began
        process.kill()
        return took_s


@contextmanager
def own_domain() -> Iterator[None]:
    """As the tests do: test/conftest.py and test/ros/conftest.py say why."""
    with domain_id() as domain:
        os.environ |= {
            "ROS_DOMAIN_ID": str(domain),
            DISCOVERY_RANGE: "SYSTEM_DEFAULT",
            **dict.fromkeys(PROFILE_VARIABLES, str(UDP)),
        }
        yield


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--out", type=Path, default=Path("soak_output"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--checkpoint", default="", help="other weights than the package's")
    parser.add_argument("--idle", action="store_true", help="no busy core beside the node")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    with own_domain():
        return soak_and_judge(args)


def soak_and_judge(args: argparse.Namespace) -> int:
    """The run, its figures and its chart; the status."""
    file = args.out / "fault"
    advanced = {"diagnostics_period_s": 0.2, "expected_width": SIZE[1], "expected_height": SIZE[0]}
    parameters = {"checkpoint": args.checkpoint, "advanced": advanced}
    file.write_text("")
    program = [str(Path(__file__).with_name("faulty_node.py")), str(file)]
    drive = RenderedDrive(seed=7, frames=30, rate_hz=RATE_HZ, size=SIZE)
    frames = [drive[index].image for index in range(30)]
    beside = nullcontext() if args.idle else busy_core()
    with Camera(frames) as camera, spun_node("soak") as node, beside:
        recorder = Recorder(node, store_masks=False)
        with NodeProcess(parameters, args.out / "node.log", program) as process:
            wait_until_connected(node, process, lambda: camera.listeners > 0 and recorder.matched)
            soak = Soak(node, process, camera, recorder)
            warm_s = soak.run(60 * args.minutes, args.seed, file)
            time.sleep(2.0)  # the newest statistics
            process.kill()
        figures, broken = judge(soak, warm_s)
        logs = [args.out / f"restarted_{number}.log" for number in range(1, RESTARTS + 1)]
        restarted_s = [first_mask_s(node, camera, parameters, log) for log in logs]
        figures["first_mask_after_kill_s"] = restarted_s
        median_s = statistics.median(restarted_s)
        if camera.sent >= ENOUGH_IMAGES and median_s > FIRST_MASK_S:
            broken.append(f"first masks came {median_s:.1f} s after a start, over {FIRST_MASK_S}")
    (args.out / "soak.json").write_text(json.dumps(figures, indent=1) + "\n")
    chart(soak, warm_s, args.out / "soak.png")
    print(json.dumps(figures, indent=1))
    for sentence in broken:
        print(f"BROKEN: {sentence}", file=sys.stderr)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
