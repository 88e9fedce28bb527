"""Log lines that do not flood."""

from __future__ import annotations

from lowlat_seg_ros.ros.throttle import Throttle


def test_one_line_of_a_kind_in_a_period_and_the_rest_counted() -> None:
    lines: list[str] = []
    now = [0.0]
    log = Throttle(lines.append, lambda: now[0])
    for at, kind in [(0.0, "a"), (1.0, "a"), (1.0, "b"), (4.9, "a"), (5.0, "a"), (11.0, "a")]:
        now[0] = at
        log(kind, f"{kind} at {at}", 5.0)
    assert lines == ["a at 0.0", "b at 1.0", "a at 5.0 (2 more like this since)", "a at 11.0"]


def test_period_of_zero_writes_everything() -> None:
    lines: list[str] = []
    log = Throttle(lines.append, lambda: 0.0)
    for number in range(3):
        log("a", str(number), 0.0)
    assert lines == ["0", "1", "2"]
