"""Gaps in the publishers' sequence numbers."""

from __future__ import annotations

import pytest

from lowlat_seg_ros.ros.gaps import NO_SEQUENCE_NUMBER, SequenceGaps


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
