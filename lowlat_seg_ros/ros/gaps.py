"""Images that a publisher sent and that never arrived."""

from __future__ import annotations

#: What the middleware gives as sequence number if it has none (rmw/types.h).
NO_SEQUENCE_NUMBER = 2**64 - 1


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
