"""Log lines that do not flood: one of a kind every few seconds, saying how many were left out."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable


class Throttle:
    """Passes on the first text of a kind, and then at most one every ``period_s`` seconds.

    Kinds must be few (enum members, exception types): each is remembered.
    """

    def __init__(self, write: Callable[[str], None], clock: Callable[[], float] = time.monotonic):
        self._write = write
        self._clock = clock
        self._last: dict[Hashable, float] = {}
        self._left_out: dict[Hashable, int] = {}

    def __call__(self, kind: Hashable, text: str, period_s: float) -> None:
        """Write ``text``, unless one of its ``kind`` was written less than ``period_s`` ago."""
        now = self._clock()
        if kind in self._last and now - self._last[kind] < period_s:
            self._left_out[kind] = self._left_out.get(kind, 0) + 1
            return
        left_out = self._left_out.pop(kind, 0)
        self._last[kind] = now
        self._write(text + (f" ({left_out} more like this since)" if left_out else ""))
