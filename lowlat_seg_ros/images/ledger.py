"""The ledger of what became of a camera's messages."""

from __future__ import annotations

import dataclasses
import threading
from dataclasses import dataclass


@dataclass(frozen=True)
class Ledger:
    """Counts since the start: ``received = published + rejected + failed + in_flight``."""

    received: int = 0
    published: int = 0
    rejected: int = 0
    failed: int = 0
    in_flight: int = 0
    superseded: int = 0

    def __post_init__(self) -> None:
        ends = self.published + self.rejected + self.failed + self.in_flight
        if self.received != ends or min(vars(self).values()) < 0:
            raise ValueError(f"{self} does not balance; book each message in once and out once")


class Bookkeeper:
    """Owner of the ledger; any thread may read, and what it reads balances."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ledger = Ledger()

    @property
    def ledger(self) -> Ledger:
        """A snapshot."""
        with self._lock:
            return self._ledger

    def receive(self, superseded: int) -> None:
        """A message has come in, ``superseded`` others before it never did."""
        self._add(received=1, in_flight=1, superseded=superseded)

    def publish(self) -> None:
        """The message in flight was answered with a mask."""
        self._add(published=1, in_flight=-1)

    def reject(self) -> None:
        """The message in flight is an impossible image."""
        self._add(rejected=1, in_flight=-1)

    def fail(self) -> None:
        """No mask could be made for the message in flight."""
        self._add(failed=1, in_flight=-1)

    def _add(self, **increments: int) -> None:
        with self._lock:
            values = {name: getattr(self._ledger, name) + by for name, by in increments.items()}
            self._ledger = dataclasses.replace(self._ledger, **values)
