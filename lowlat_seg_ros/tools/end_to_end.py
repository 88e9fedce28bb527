"""The live node, a camera in a process of its own and a subscriber in this one, timed."""

from __future__ import annotations

import multiprocessing
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from lowlat_seg_ros.lab.benchmark.timing import WARM_UP, EndToEnd
from lowlat_seg_ros.messages import stamp_ns
from lowlat_seg_ros.ros.params import as_parameters
from lowlat_seg_ros.ros.start import RosError, keep_freed_memory
from lowlat_seg_ros.tools.live import (
    LAST_TIMEOUT_S,
    NodeProcess,
    Player,
    Recorder,
    spun_node,
    wait_until_connected,
)

#: (H, W) of the cameras, in px.
SIZES = ((360, 480), (720, 1280), (1080, 1920))


def measure(
    parameters: dict[str, Any],
    images: Sequence[np.ndarray],
    sizes: Sequence[tuple[int, int]],
    rates_hz: Sequence[float],
    frames: int,
    progress: Callable[[int], object],
) -> tuple[EndToEnd, ...]:
    """``frames`` of the ``images``, uint8 (H, W, 3) RGB, at each size and rate, a node per size.

    ``parameters``: the node's, by the names in ``NodeConfig`` and ``EngineConfig``. ``progress`` is
    called for each size and rate. RosError if the node dies or gives no mask.
    """
    keep_freed_memory()
    found = []
    with tempfile.TemporaryDirectory() as folder, spun_node("subscriber") as node:
        recorder = Recorder(node, store_masks=False)
        for size in sizes:
            resized = [cv2.resize(image, size[::-1]) for image in images]
            expected = {"expected_height": size[0], "expected_width": size[1]}
            log = Path(folder) / "node.log"
            with NodeProcess(as_parameters(parameters | expected), log) as process:
                wait_until_connected(node, process, lambda: recorder.matched)
                for rate_hz in rates_hz:
                    with _camera(resized, rate_hz, frames + WARM_UP) as stamps:
                        _wait_for_mask(recorder, stamps[-1], process)
                    received_ms = recorder.received_ms
                    reports = {stamp_ns(r.header.stamp): r for r in recorder.reports}
                    times = [
                        (reports[stamp].timing.latency_ms, reports[stamp].processing_ms,
                         received_ms[stamp])
                        for stamp in stamps[WARM_UP:]
                        if stamp in received_ms and stamp in reports
                    ]  # fmt: skip
                    if not times:
                        raise RosError(f"no mask of {size[1]}x{size[0]} came back; see {log}")
                    found.append(EndToEnd.of(size, rate_hz, frames, times))
                    progress(1)
    return tuple(found)


def _wait_for_mask(recorder: Recorder, stamp: int, process: NodeProcess) -> None:
    """Until the newest image's mask, which nothing can supersede, and its report are there."""
    end = time.monotonic() + LAST_TIMEOUT_S
    while stamp not in recorder.received_ms and time.monotonic() < end:
        process.check()
        time.sleep(0.05)
    time.sleep(0.5)


@contextmanager
def _camera(images: Sequence[np.ndarray], rate_hz: float, count: int) -> Iterator[list[int]]:
    """Plays ``count`` of ``images``; the stamps of what was played, once all were."""
    here, there = multiprocessing.Pipe()
    spawned = multiprocessing.get_context("spawn")  # DDS does not survive a fork
    camera = spawned.Process(target=_play, args=(there, images, rate_hz, count), daemon=True)
    camera.start()
    there.close()
    try:
        yield here.recv()
    except EOFError as error:
        raise RosError("the camera's process ended before it had played its images") from error
    finally:
        here.close()
        camera.join()


def _play(pipe: Connection, images: Sequence[np.ndarray], rate_hz: float, count: int) -> None:
    """The camera's process: ends when ``pipe`` is closed, as the last image is on its way then."""
    keep_freed_memory()
    with spun_node("camera") as node:
        player, end = Player(node), time.monotonic() + LAST_TIMEOUT_S
        while not player.listeners and time.monotonic() < end:
            time.sleep(0.01)
        time.sleep(0.5)  # the node must have discovered this one as well
        played = [images[index % len(images)] for index in range(count)]
        pipe.send(list(player.play(played, rate_hz)))
        pipe.poll(2 * LAST_TIMEOUT_S)
