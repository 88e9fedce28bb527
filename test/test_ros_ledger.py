"""The ledger of image messages."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowlat_seg_ros.ros.ledger import NO_SEQUENCE_NUMBER, Bookkeeper, Ledger, SequenceGaps

ENDS = ("publish", "reject", "fail")


@given(st.lists(st.tuples(st.sampled_from(ENDS), st.integers(0, 3))))
def test_each_message_ends_in_one_place(messages: list[tuple[str, int]]) -> None:
    books = Bookkeeper()
    for end, superseded in messages:
        books.receive(superseded)
        assert books.ledger.in_flight == 1
        getattr(books, end)()
    counts = [sum(end == name for end, _ in messages) for name in ENDS]
    lost = sum(superseded for _, superseded in messages)
    assert books.ledger == Ledger(len(messages), *counts, in_flight=0, superseded=lost)


def test_every_snapshot_balances_while_another_thread_books() -> None:
    books, stop = Bookkeeper(), threading.Event()

    def work() -> None:
        while not stop.is_set():
            books.receive(0)
            books.publish()

    thread = threading.Thread(target=work)
    thread.start()
    for _ in range(2000):
        ledger = books.ledger
        assert ledger.received == ledger.published + ledger.in_flight
    stop.set()
    thread.join()


def test_unbalanced_books_are_refused() -> None:
    with pytest.raises(ValueError, match="does not balance"):
        Bookkeeper().publish()
    with pytest.raises(ValueError, match="does not balance"):
        Ledger(received=2, published=1)


def missing(*numbers: int | None, publishers: int = 1) -> list[int]:
    gaps = SequenceGaps()
    return [gaps.missing(number, publishers) for number in numbers]


def test_gaps_in_sequence_numbers_are_missing_messages() -> None:
    assert missing(7, 8, 11, 12) == [0, 0, 2, 0]


def test_publisher_that_begins_anew_has_lost_nothing() -> None:
    assert missing(90, 1, 2, 4) == [0, 0, 0, 1]


@pytest.mark.parametrize("number", [None, NO_SEQUENCE_NUMBER])
def test_middleware_without_numbers(number: int | None) -> None:
    assert missing(1, number, 9, 10) == [0, 0, 0, 0]


def test_what_a_publisher_that_is_gone_left_over_is_no_base_for_counting() -> None:
    gaps = SequenceGaps()
    assert gaps.missing(1000, 1) == 0
    gaps.restart()  # another came and went; its last message, 7, is still to come
    assert [gaps.missing(number, 1) for number in (7, 1003, 1004, 1006)] == [0, 0, 0, 1]


def test_numbers_of_several_publishers_say_nothing() -> None:
    assert missing(1, 500, 2, 501, publishers=2) == [0, 0, 0, 0]
