"""What became of every image message; no message is lost uncounted."""

from __future__ import annotations

import dataclasses
import threading
from dataclasses import dataclass

#: What the middleware gives as sequence number if it has none (rmw/types.h).
NO_SEQUENCE_NUMBER = 2**64 - 1


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
        if self.received != ends or min(dataclasses.astuple(self)) < 0:
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


class SequenceGaps:
    """Counts messages that a publisher sent and that never arrived, from its sequence numbers.

    rclpy does not say which publisher sent a message, so gaps are counted only while there is one;
    a number that does not rise is a publisher that began anew. So it is a lower bound.
    """

    def __init__(self) -> None:
        self._last: int | None = None
        self._left_over = False

    def restart(self) -> None:
        """The publishers changed: the next message may be left over from one that is gone."""
        self._last, self._left_over = None, True

    def missing(self, number: int | None, publishers: int) -> int:
        """How many messages are missing before the one with this ``number``."""
        if number is None or number == NO_SEQUENCE_NUMBER or publishers != 1:
            self.restart()
            return 0
        if self._left_over:
            self._left_over = False
            return 0
        last, self._last = self._last, number
        return number - last - 1 if last is not None and number > last else 0
