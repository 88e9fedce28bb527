"""Three cameras at 30 Hz on one live node, which two cores cannot do: ``make load``.

It prints what became of each camera's images, how old its masks were, and what the node said of it,
and writes that to load.json. The status is 1 if an image is missing from the ledger, a camera got
less than half of what another got, or the diagnostics did not say that it is too much.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from diagnostic_msgs.msg import DiagnosticArray
from soak import own_domain

from lowlat_seg_ros.lab.data.synthetic import RenderedDrive
from lowlat_seg_ros.tools.live import (
    NODE,
    NodeProcess,
    Player,
    Recorder,
    spun_node,
    wait_until_connected,
)

CAMERAS, RATE_HZ, SIZE = ("front", "left", "rear"), 30.0, (360, 480)

#: The masks of so long at the begin do not count.
WARM_UP_S = 3.0


class Said:
    """The newest state ``processing`` of each camera: its level and its message."""

    def __init__(self) -> None:
        self.newest: dict[str, tuple[int, str]] = {}

    def take(self, message: DiagnosticArray) -> None:
        for status in message.status:
            camera, _, name = status.name.partition(": ")[2].partition(": ")
            if name == "processing":
                self.newest[camera] = status.level[0], status.message


def run(seconds: float, checkpoint: str, log: Path) -> dict[str, dict[str, Any]]:
    """Figures of each camera; ages, waits and gaps in ms."""
    drive = RenderedDrive(seed=7, frames=30, rate_hz=RATE_HZ, size=SIZE)
    frames = [drive[index].image for index in range(30)]
    there_and_back = [*frames, *frames[-2:0:-1]]  # so that the scene never jumps
    count = round((seconds + WARM_UP_S) * RATE_HZ)
    images = [there_and_back[index % len(there_and_back)] for index in range(count)]
    expected = {"expected_height": SIZE[0], "expected_width": SIZE[1], "expected_rate_hz": 3 * 30.0}
    parameters = {"checkpoint": checkpoint, "cameras": [*CAMERAS], "advanced": expected}
    said = Said()
    with spun_node("load") as node:
        node.create_subscription(DiagnosticArray, "/diagnostics", said.take, 10)
        players = [Player(node, f"{name}/image", name) for name in CAMERAS]
        recorders = [Recorder(node, f"{NODE}/{name}", store_masks=False) for name in CAMERAS]
        with NodeProcess(parameters, log) as process:
            wait_until_connected(
                node,
                process,
                lambda: all(p.listeners for p in players) and all(r.matched for r in recorders),
            )
            for player, recorder in zip(players, recorders, strict=True):
                # The node counts what it misses from the first image on that it has taken.
                while not recorder.reports:
                    list(player.play(images[:1], RATE_HZ))
                    recorder.wait_for_last(1, process)
            for _ in zip(*(player.play(images, RATE_HZ) for player in players), strict=True):
                process.check()
            levels = dict(said.newest)  # before the node rests
            for recorder in recorders:
                recorder.wait_for_last(count + 1, process)
    found = {}
    for name, recorder in zip(CAMERAS, recorders, strict=True):
        account = recorder.account(count + 1)
        reports = recorder.reports
        warm = reports[round(len(reports) * WARM_UP_S / (seconds + WARM_UP_S)) :]
        ages = np.array([report.age_ms for report in warm])
        waits = np.array([report.wait_ms for report in warm])
        stamps = np.array([r.header.stamp.sec + r.header.stamp.nanosec / 1e9 for r in warm])
        gaps = np.diff(1e3 * stamps + ages)  # from mask to mask
        found[name] = {
            **asdict(account),
            "unaccounted": account.unaccounted,
            "masks_hz": len(warm) / (stamps[-1] - stamps[0]),
            **{f"age_{key}": value for key, value in summary(ages).items()},
            **{f"wait_{key}": value for key, value in summary(waits).items()},
            **{f"gap_{key}": value for key, value in summary(gaps).items()},
            "said": levels.get(name, (0, "nothing")),
        }
    return found


def summary(values: np.ndarray) -> dict[str, float]:
    p50, p99 = np.percentile(values, (50, 99))
    return {"p50": float(p50), "p99": float(p99), "max": float(values.max())}


def broken(found: dict[str, dict[str, Any]]) -> list[str]:
    """A sentence for each bound that does not hold."""
    masks = {name: figures["masks"] for name, figures in found.items()}
    sentences = [
        f"{name}: {figures['unaccounted']} images are not accounted for"
        for name, figures in found.items()
        if figures["unaccounted"]
    ]
    sentences += [
        f"{name}: it was not said that this is too much, but {figures['said']}"
        for name, figures in found.items()
        if figures["superseded"] and figures["said"][0] == 0
    ]
    if max(masks.values()) > 2 * min(masks.values()):
        sentences.append(f"a camera starves: {masks}")
    return sentences


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=0.5)
    parser.add_argument("--out", type=Path, default=Path("load_output"))
    parser.add_argument("--checkpoint", default="", help="other weights than the package's")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    with own_domain():
        found = run(60 * args.minutes, args.checkpoint, args.out / "node.log")
    (args.out / "load.json").write_text(json.dumps(found, indent=1) + "\n")
    columns = ("played", "masks", "superseded", "masks_hz", "age_p50", "age_p99", "age_max")
    columns += ("wait_max", "gap_p99")
    print(f"{'':8}" + "".join(f"{column:>11}" for column in columns))
    for name, figures in found.items():
        print(f"{name:8}" + "".join(f"{figures[column]:11.0f}" for column in columns))
        print(f"{'':8} {figures['said'][1]}")
    sentences = broken(found)
    for sentence in sentences:
        print(f"BROKEN: {sentence}", file=sys.stderr)
    return 1 if sentences else 0


if __name__ == "__main__":
    sys.exit(main())
