"""The engine's counters, each change of which keeps their identity (see frames.Counters)."""

from __future__ import annotations

import dataclasses
import threading
from enum import Enum

from lowlat_seg_ros.frames import Counters


class Outcome(Enum):
    """Where a job of the slow track ended; each value is the counter it is booked under."""

    REFINED = "refined"
    CARRIED = "carried"
    SUPERSEDED = "superseded"
    LATE = "dropped_late"
    STALE = "dropped_stale"
    FAILED = "failed"


class Ledger:
    """Owner of the counters; any thread may book, every snapshot is consistent."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counters = Counters()

    @property
    def counters(self) -> Counters:
        """A snapshot."""
        with self._lock:
            return self._counters

    def count(self, **increments: int) -> None:
        """Add to counters of frames, such as ``count(frames=1, degraded=1)``."""
        with self._lock:
            self._add(**increments)

    def submit(self) -> None:
        """A job was handed to the slow track."""
        with self._lock:
            self._add(submitted=1, pending=1)

    def settle(self, outcome: Outcome) -> None:
        """A submitted job ended."""
        with self._lock:
            self._add(**{outcome.value: 1, "pending": -1})

    def failure(self, message: str) -> None:
        """Remember the message of the newest failure."""
        with self._lock:
            self._counters = dataclasses.replace(self._counters, last_failure=message)

    def _add(self, **increments: int) -> None:
        values = {name: getattr(self._counters, name) + by for name, by in increments.items()}
        self._counters = dataclasses.replace(self._counters, **values)
