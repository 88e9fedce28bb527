"""The way of an image message to its mask, for the node and the offline replay; its ledger."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowlat_seg_ros.config import EngineConfig
from lowlat_seg_ros.engine.engine import Engine
from lowlat_seg_ros.frames import Frame, FrameError, Ledger, NodeTiming, ResetReason, Segmentation
from lowlat_seg_ros.images import ImageError
from lowlat_seg_ros.network.segmenter import Segmenter
from lowlat_seg_ros.pipeline import Bookkeeper, Pipeline

PUBLISHED_NS = 7_500_000_000


class Notebook:
    """A sink that writes down what it is given; ``failing`` names the method that raises."""

    wants_confidence = True
    failing = ""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.headers: list[Any] = []  # of the masks, then of the details
        self.masks: list[np.ndarray] = []
        self.reports: list[tuple[Segmentation, NodeTiming]] = []

    def mask(self, header: Any, mask: np.ndarray, image_size: tuple[int, int]) -> int:
        self._note("mask")
        assert mask.shape == image_size
        self.masks.append(mask)
        self.headers.append(header)
        return PUBLISHED_NS

    def details(
        self, header: Any, image: np.ndarray, result: Segmentation, timing: NodeTiming
    ) -> None:
        self._note("details")
        self.headers.append(header)
        self.reports.append((result, timing))

    def _note(self, event: str) -> None:
        self.events.append(event)
        if event == self.failing:
            raise OSError("the disk is full")


def image(pixels: np.ndarray, stamp_s: int = 7, encoding: str = "rgb8") -> SimpleNamespace:
    """A message of no ROS library."""
    height, width = pixels.shape[:2]
    return SimpleNamespace(
        header=SimpleNamespace(stamp=SimpleNamespace(sec=stamp_s, nanosec=0), frame_id="camera"),
        height=height, width=width, encoding=encoding, step=3 * width, data=pixels.tobytes(),
    )  # fmt: skip


@pytest.fixture
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)


@pytest.fixture
def engine(tiny: Segmenter) -> Engine:
    config = EngineConfig(foreground_threads=1, inference_height=48)
    return Engine.deterministic(tiny, config, threshold=0.5, delay_frames=1)


def answer(pipeline: Pipeline, message: SimpleNamespace, superseded: int = 0) -> None:
    pipeline.answer(message, time.perf_counter_ns(), 2.0, superseded)


def test_mask_is_out_first_and_the_report_is_complete(
    engine: Engine, tiny: Segmenter, pixels: np.ndarray
) -> None:
    sink = Notebook()
    pipeline = Pipeline(engine, sink)
    messages = [image(pixels, stamp_s) for stamp_s in (7, 8)]
    for message in messages:
        answer(pipeline, message, superseded=3)
    assert sink.headers == [message.header for message in messages for _ in range(2)]
    assert pipeline.ledger == Ledger(2, 2, superseded=6)
    assert sink.events == ["mask", "details"] * 2
    other = Engine.deterministic(tiny, engine.config, threshold=0.5, delay_frames=1)
    for number, stamp_s in enumerate((7, 8)):
        frame = Frame(pixels, stamp_s * 10**9, "camera", "rgb8")
        expected = other.process(frame, confidence=True)
        np.testing.assert_array_equal(sink.masks[number], expected.mask)
        found = sink.reports[number][0]
        assert (found.provenance, found.counters) == (expected.provenance, expected.counters)
        np.testing.assert_array_equal(found.confidence, expected.confidence)
    assert [timing.age_ms for _, timing in sink.reports] == [500.0, -500.0]  # ahead of the clock
    assert [timing.wait_ms for _, timing in sink.reports] == [2.0, 2.0]


def test_classes_are_called_otherwise_in_all_that_goes_out(
    engine: Engine, tiny: Segmenter, pixels: np.ndarray
) -> None:
    ids = np.arange(255, -1, -1, np.uint8)
    other = Engine.deterministic(tiny, engine.config, threshold=0.5, delay_frames=1)
    plain, renamed = Notebook(), Notebook()
    pipelines = Pipeline(other, plain), Pipeline(engine, renamed, class_ids=ids)
    for stamp_s in (7, 8, 9):
        for pipeline in pipelines:
            answer(pipeline, image(pixels, stamp_s))
    for before, after, (result, _) in zip(plain.masks, renamed.masks, renamed.reports, strict=True):
        np.testing.assert_array_equal(after, ids[before])
        np.testing.assert_array_equal(result.mask, after)


@pytest.mark.parametrize("virtual_time", [False, True])
def test_processing_time_is_the_sum_in_virtual_time_alone(
    engine: Engine, pixels: np.ndarray, virtual_time: bool
) -> None:
    sink = Notebook()
    message, began_ns = image(pixels), time.perf_counter_ns() - 60_000_000_000
    Pipeline(engine, sink, virtual_time=virtual_time).answer(message, began_ns, 0.0)
    ((result, timing),) = sink.reports
    parts = timing.convert_ms + result.timing.latency_ms + timing.publish_ms
    assert (timing.processing_ms == parts) is virtual_time
    assert timing.processing_ms >= parts


@pytest.mark.parametrize("size", [(1, 1), (4320, 7680)], ids=["1x1", "8K"])
def test_smallest_and_largest_image_have_masks_of_their_size(
    engine: Engine, size: tuple[int, int], pixels: np.ndarray
) -> None:
    """The network runs at its own height, whatever the camera sends, and goes back."""
    sink = Notebook()
    pipeline = Pipeline(engine, sink)
    answer(pipeline, image(pixels))
    answer(pipeline, image(np.full((*size, 3), 90, np.uint8)))
    answer(pipeline, image(pixels))
    assert [mask.shape for mask in sink.masks] == [(48, 64), size, (48, 64)]
    assert pipeline.ledger == Ledger(received=3, published=3)


def test_impossible_image_is_rejected_and_the_next_one_works(
    engine: Engine, pixels: np.ndarray
) -> None:
    sink = Notebook()
    pipeline = Pipeline(engine, sink)
    with pytest.raises(ImageError, match="encoding is 'rgb9'"):
        answer(pipeline, image(pixels, encoding="rgb9"))
    with pytest.raises(FrameError):  # at 48 rows it would be far too wide
        answer(pipeline, image(np.zeros((1, 20_000, 3), np.uint8)))
    assert sink.events == []
    answer(pipeline, image(pixels))
    assert pipeline.ledger == Ledger(3, published=1, rejected=1, failed=1)


def test_message_that_cannot_be_read_at_all_is_accounted_for(
    engine: Engine, pixels: np.ndarray
) -> None:
    def read(message: Any) -> np.ndarray:
        raise ImportError("no decoder")

    pipeline = Pipeline(engine, Notebook(), read=read)
    with pytest.raises(ImportError):
        answer(pipeline, image(pixels))
    assert pipeline.ledger == Ledger(1, failed=1)


@pytest.mark.parametrize(("failing", "failed"), [("mask", 1), ("details", 0)])
def test_failing_sink_is_accounted_for(
    engine: Engine, pixels: np.ndarray, failing: str, failed: int
) -> None:
    sink = Notebook()
    pipeline = Pipeline(engine, sink)
    sink.failing = failing
    with pytest.raises(OSError, match="disk is full"):
        answer(pipeline, image(pixels))
    sink.failing = ""
    answer(pipeline, image(pixels, 8))
    assert pipeline.ledger == Ledger(2, published=2 - failed, failed=failed)
    assert engine.counters.frames == 2  # the first one was segmented all the same


def test_reset_is_for_the_next_frame_alone(engine: Engine, pixels: np.ndarray) -> None:
    sink = Notebook()
    pipeline = Pipeline(engine, sink)
    answer(pipeline, image(pixels, 7))
    pipeline.reset(ResetReason.ACTIVATED)
    pipeline.reset(ResetReason.ACTIVATED)
    answer(pipeline, image(pixels, 8))
    answer(pipeline, image(pixels, 9))
    reasons = [result.provenance.reset for result, _ in sink.reports]
    assert reasons == [ResetReason.FIRST_FRAME, ResetReason.ACTIVATED, None]
    assert engine.counters.resets == 1


ENDS = ("publish", "reject", "fail")


@given(st.lists(st.tuples(st.sampled_from(ENDS), st.integers(0, 3))))
def test_each_message_ends_in_one_place(messages: list[tuple[str, int]]) -> None:
    books = Bookkeeper()
    for end, superseded in messages:
        books.receive(superseded)
        assert books.snapshot().in_flight == 1
        getattr(books, end)()
    counts = [sum(end == name for end, _ in messages) for name in ENDS]
    lost = sum(superseded for _, superseded in messages)
    assert books.snapshot() == Ledger(len(messages), *counts, in_flight=0, superseded=lost)


def test_every_snapshot_balances_while_another_thread_books() -> None:
    books, stop = Bookkeeper(), threading.Event()

    def work() -> None:
        while not stop.is_set():
            books.receive(0)
            books.publish()

    thread = threading.Thread(target=work)
    thread.start()
    for _ in range(2000):
        ledger = books.snapshot()
        assert ledger.received == ledger.published + ledger.in_flight
    stop.set()
    thread.join()


def test_unbalanced_books_are_refused() -> None:
    with pytest.raises(ValueError, match="does not balance"):
        Bookkeeper().publish()
    with pytest.raises(ValueError, match="does not balance"):
        Ledger(received=2, published=1)


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [((4, 5, 3), np.float32), ((4, 5), np.uint8), ((4, 5, 4), np.uint8), ((0, 5, 3), np.uint8),
     ((4, 0, 3), np.uint8), ((1, 4, 5, 3), np.uint8)],
)  # fmt: skip
def test_a_frame_is_an_rgb_image_of_bytes(shape: tuple[int, ...], dtype: type) -> None:
    text = f"image is {np.dtype(dtype)} {shape}; it must be uint8 (H, W, 3) RGB, H and W > 0"
    with pytest.raises(FrameError) as caught:
        Frame(np.zeros(shape, dtype), 0)
    assert str(caught.value) == text
