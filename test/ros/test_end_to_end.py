"""``lowlat-seg benchmark --only end_to_end``: the live node is timed, and every mask counted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from harness import ROOT


def test_each_rate_is_measured_on_the_live_node(checkpoint: Path, tmp_path: Path) -> None:
    written = tmp_path / "figures.json"
    options = ["--checkpoint", str(checkpoint), "--device", "cpu", "--resolution", "48x64"]
    options += ["--quick", "--only", "end_to_end", "--rate", "10,20", "--json", str(written)]
    # In a process of its own, as it takes a ROS domain to be alone.
    done = subprocess.run(
        [sys.executable, "-m", "lowlat_seg_ros.tools.cli", "benchmark", *options],
        cwd=ROOT, env=os.environ, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    measured = json.loads(written.read_text())["end_to_end"]
    assert [(row["height"], row["width"], row["rate_hz"]) for row in measured] == [
        (48, 64, 10.0),
        (48, 64, 20.0),
    ]
    for row in measured:
        assert 1 <= row["masks"] <= row["frames"] == 6
        for name in ("engine", "published", "received", "total"):
            assert row[name]["count"] == row["masks"]
        # Stamp to received holds all that callback to published does, and the engine.
        assert row["total"]["p50_ms"] > row["engine"]["min_ms"] > 0
        assert row["received"]["max_ms"] > row["published"]["min_ms"] > 0
    assert "64x48, 20 Hz" in done.stdout
