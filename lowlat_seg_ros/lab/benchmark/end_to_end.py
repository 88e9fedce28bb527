"""What the way of an image to the engine, and of its mask to a subscriber, takes in the live node.

Measured by tools/end_to_end.py, which needs ROS.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lowlat_seg_ros.lab.benchmark.timing import Latency


@dataclass(frozen=True)
class EndToEnd:
    """``masks`` of ``frames`` images of ``height`` x ``width`` at ``rate_hz``, in ms.

    ``engine``: frame in to mask out. ``published``: from the begin of the image callback to the
    mask published, and ``received``: from the image's stamp to the mask in the subscriber's
    callback, both without the engine's time; ``total``: ``received`` with it.
    """

    height: int
    width: int
    rate_hz: float
    frames: int
    masks: int
    engine: Latency
    published: Latency
    received: Latency
    total: Latency

    @classmethod
    def of(
        cls,
        size: tuple[int, int],
        rate_hz: float,
        frames: int,
        times: Sequence[tuple[float, float, float]],
    ) -> EndToEnd:
        """``times``: for each mask the engine's, callback to published, and stamp to received."""
        engine, published, received = zip(*times, strict=True)
        return cls(
            *size, rate_hz, frames, len(times), Latency.of(engine),
            Latency.of([a - b for a, b in zip(published, engine, strict=True)]),
            Latency.of([a - b for a, b in zip(received, engine, strict=True)]),
            Latency.of(received),
        )  # fmt: skip
