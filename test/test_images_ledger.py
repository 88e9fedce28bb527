"""The ledger of image messages."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowlat_seg_ros.frames import Ledger
from lowlat_seg_ros.pipeline import Bookkeeper

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
