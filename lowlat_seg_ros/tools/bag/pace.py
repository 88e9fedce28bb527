"""The time in which a bag is played to the engine; in the bag's own nanoseconds."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from typing import Protocol

from lowlat_seg_ros.config import ConfigError
from lowlat_seg_ros.tools.bag.storage import Raw


class Pace(Protocol):
    """When images come and masks are out."""

    def wait_until(self, ns: int) -> int:
        """Let time pass until ``ns``, or none if it is past; returns the time it is then."""
        ...

    def mask_out(self) -> int:
        """The mask of the image at hand is made; returns the time it is now."""
        ...


class VirtualTime:
    """Every mask takes ``latency_ms``, whatever it takes on this machine.

    With 0 a mask is out when its image comes, and no image is ever superseded.
    """

    def __init__(self, latency_ms: float) -> None:
        if not 0 <= latency_ms < math.inf:
            raise ConfigError(f"--latency-ms is {latency_ms}; it must be 0 or more milliseconds")
        self._latency_ns, self._now_ns = round(latency_ms * 1e6), 0

    def wait_until(self, ns: int) -> int:
        self._now_ns = max(self._now_ns, ns)
        return self._now_ns

    def mask_out(self) -> int:
        self._now_ns += self._latency_ns
        return self._now_ns


class RealTime:
    """This machine's own time, from the first image on."""

    def __init__(self) -> None:
        self._offset_ns: int | None = None

    def wait_until(self, ns: int) -> int:
        if self._offset_ns is None:
            self._offset_ns = ns - time.monotonic_ns()
        time.sleep(max(0, ns - self.mask_out()) / 1e9)
        return self.mask_out()

    def mask_out(self) -> int:
        assert self._offset_ns is not None  # an image has been waited for
        return time.monotonic_ns() + self._offset_ns


class Waiting:
    """Images in the order in which they were recorded, of which only the newest waits.

    As the node's subscription of depth 1 has it: those that come while it is busy are superseded.
    """

    def __init__(self, images: Iterator[Raw], pace: Pace) -> None:
        self._images, self._pace = images, pace
        self._ahead = next(images, None)

    def newest(self) -> tuple[Raw, int, int] | None:
        """The newest image that has come, how many it superseded, and the time; None at the end."""
        newest, superseded = self._ahead, 0
        if newest is None:
            return None
        now_ns = self._pace.wait_until(newest.time_ns)
        while (ahead := next(self._images, None)) is not None and ahead.time_ns <= now_ns:
            newest, superseded = ahead, superseded + 1
        self._ahead = ahead
        return newest, superseded, now_ns
