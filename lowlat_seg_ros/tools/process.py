"""The node as a process of its own: started, watched and stopped."""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

from lowlat_seg_ros.ros.environment import RosError

#: How many lines of the log are told when the node ends by itself.
LOG_LINES = 15


class NodeProcess:
    """``segmentation_node`` with ``parameters``, its output in ``log``; a context manager.

    It does not see the terminal's Ctrl-C: whoever made it stops it.
    """

    def __init__(self, parameters: dict[str, Any], log: Path) -> None:
        self._log = log
        self._folder = tempfile.TemporaryDirectory()
        file = Path(self._folder.name) / "parameters.yaml"
        # A file rather than -p, which would take a name such as 1e5 for a number.
        file.write_text(yaml.safe_dump({"/**": {"ros__parameters": parameters}}))
        arguments = ["-m", "lowlat_seg_ros.ros.node", "--ros-args", "--params-file", str(file)]
        with log.open("w") as output:
            self._process = subprocess.Popen(
                [sys.executable, *arguments],
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def __enter__(self) -> NodeProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    def check(self) -> None:
        """Raise :class:`RosError` with the last lines of the log if the process has ended."""
        if self._process.poll() is not None:
            lines = self._log.read_text(errors="replace").splitlines()[-LOG_LINES:]
            raise RosError(
                f"the node ended with status {self._process.returncode}; the end of its log "
                f"{self._log}:\n  " + "\n  ".join(lines or ["(nothing was logged)"])
            )

    def stop(self, timeout_s: float = 10.0) -> int:
        """Ask the node to end as Ctrl-C does, and make it if it does not; its exit status."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
        try:
            status = self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            status = self._process.wait()
        self._folder.cleanup()
        return status
