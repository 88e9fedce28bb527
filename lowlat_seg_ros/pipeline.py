"""Image message in, mask and report out, every message accounted for; needs no ROS.

The node (ros/camera.py) and the offline replay of bags (tools/bag/offline.py) differ only in where
their messages come from and go to.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any, Protocol

import cv2
import numpy as np

from lowlat_seg_ros.engine.counters import Counted
from lowlat_seg_ros.engine.engine import Engine
from lowlat_seg_ros.frames import Frame, Ledger, NodeTiming, ResetReason, Segmentation
from lowlat_seg_ros.images import ImageError, encoding_of, to_rgb
from lowlat_seg_ros.messages import stamp_ns


class Sink(Protocol):
    """Where masks go to: the topics of a node, or a bag."""

    @property
    def wants_confidence(self) -> bool:
        """Whether the confidence of the next mask is to be made."""
        ...

    def mask(self, header: Any, mask: np.ndarray, image_size: tuple[int, int]) -> int:
        """Publish ``mask``, uint8 (H, W), of an image of ``image_size`` (height, width) pixels.

        Returns the time at which it was published, in ns on the clock of the images' stamps.
        """
        ...

    def details(
        self,
        header: Any,
        image: np.ndarray,
        result: Segmentation,
        timing: NodeTiming,
    ) -> None:
        """Publish all that is known of the mask, which is out; ``image`` is uint8 (H, W, 3) RGB."""
        ...


class Bookkeeper(Counted[Ledger]):
    """Owner of the ledger; any thread may read, and what it reads balances."""

    def __init__(self) -> None:
        super().__init__(Ledger())

    def receive(self, superseded: int) -> None:
        """A message has come in, ``superseded`` others before it never did."""
        self.count(received=1, in_flight=1, superseded=superseded)

    def publish(self) -> None:
        """The message in flight was answered with a mask."""
        self.count(published=1, in_flight=-1)

    def reject(self) -> None:
        """The message in flight is an impossible image."""
        self.count(rejected=1, in_flight=-1)

    def fail(self) -> None:
        """No mask could be made for the message in flight."""
        self.count(failed=1, in_flight=-1)


class Pipeline:
    """Answers the images of one camera, one at a time.

    ``read`` makes uint8 (H, W, 3) RGB of a message, or raises ``ImageError``. ``class_ids``, uint8
    (256,), is what the masks that go out call each class; None for its number. ``virtual_time``: Sh
    runs while a frame waits for it, which must not count as processing time.
    """

    def __init__(
        self,
        engine: Engine,
        sink: Sink,
        *,
        read: Callable[[Any], np.ndarray] = to_rgb,
        class_ids: np.ndarray | None = None,
        mask_at_network_size: bool = False,
        virtual_time: bool = False,
    ) -> None:
        self._engine, self._sink, self._read, self._class_ids = engine, sink, read, class_ids
        self._mask_at_network_size, self._virtual_time = mask_at_network_size, virtual_time
        self._books = Bookkeeper()
        self._reset_due: ResetReason | None = None

    @property
    def ledger(self) -> Ledger:
        """What became of every message; any thread may ask, and it always balances."""
        return self._books.snapshot()

    def reset(self, reason: ResetReason) -> None:
        """Make the next frame a new key frame with a full mask; any thread may call it."""
        self._reset_due = reason

    def answer(self, message: Any, began_ns: int, wait_ms: float, superseded: int = 0) -> None:
        """Publish the mask of ``message``, a ``sensor_msgs/Image`` or ``CompressedImage``, or
        whatever else ``read`` takes.

        Its handling began at ``began_ns`` (``time.perf_counter_ns``), ``wait_ms`` after it had
        arrived; ``superseded`` messages before it never did. Whatever is raised, the message is in
        the ledger and the next one works as usual: ``ImageError`` for an impossible image, else
        what the engine (``FrameError``) or the sink raises.
        """
        self._books.receive(superseded)
        try:
            image = self._read(message)
        except ImageError:
            self._books.reject()
            raise
        except Exception:
            self._books.fail()
            raise
        try:
            self._segment(message, image, began_ns, wait_ms)
        except Exception:
            if self.ledger.in_flight:  # else it was raised after the mask was out
                self._books.fail()
            raise

    def reject(self, superseded: int = 0) -> None:
        """Count a message that is none; ``superseded`` as in :meth:`answer`."""
        self._books.receive(superseded)
        self._books.reject()

    def _segment(self, message: Any, image: np.ndarray, began_ns: int, wait_ms: float) -> None:
        reason = self._reset_due
        if reason is not None:
            self._reset_due = None  # before the reset: one that is due from here on comes next
            self._engine.reset(reason)
        convert_ms = _since_ms(began_ns)
        header = message.header
        frame = Frame(image, stamp_ns(header.stamp), header.frame_id, encoding_of(message))
        step = self._engine.segment(
            frame,
            waited_ms=wait_ms + convert_ms,
            mask_at_network_size=self._mask_at_network_size,
        )
        mask, ids = step.mask, self._class_ids
        try:
            if ids is not None:
                mask = cv2.LUT(mask, ids)
            out_ns = time.perf_counter_ns()
            published_ns = self._sink.mask(header, mask, image.shape[:2])
            publish_ms, processing_ms = _since_ms(out_ns), _since_ms(began_ns)
            self._books.publish()
            if self._virtual_time:
                processing_ms = convert_ms + step.timing.latency_ms + publish_ms
            # Negative where the stamp is ahead of that clock, which hides nothing.
            age_ms = (published_ns - frame.stamp_ns) / 1e6
            timing = NodeTiming(wait_ms, convert_ms, publish_ms, processing_ms, age_ms)
        finally:
            # The selector runs after the mask is out, also where it could not be published.
            result = self._engine.finish(step, confidence=self._sink.wants_confidence)
        if ids is not None:
            result = dataclasses.replace(result, mask=mask)
        self._sink.details(header, image, result, timing)


def _since_ms(began_ns: int) -> float:
    return (time.perf_counter_ns() - began_ns) / 1e6
