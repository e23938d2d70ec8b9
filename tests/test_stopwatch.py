"""Seconds by name: repeats add up, inner blocks are not counted twice, errors end a block."""

from __future__ import annotations

import pytest

from qcompile.stopwatch import BUSY, Deadline, Stopwatch


def test_inner_blocks_count_for_themselves() -> None:
    now = [0.0]
    watch = Stopwatch(lambda: now[0])

    def wait(seconds: float) -> None:
        now[0] += seconds

    with watch("cuts"):
        wait(1)
        with watch("costs"):
            wait(10)
        wait(2)
    wait(100)
    with pytest.raises(ValueError, match="x"), watch("costs"):
        wait(5)
        raise ValueError("x")
    assert watch.seconds == {"cuts": 3, "costs": 15}


def test_until_now_counts_what_is_still_open() -> None:
    now = [0.0]
    watch = Stopwatch(lambda: now[0])
    with watch("write"):
        now[0] += 3
        assert watch.until_now() == {"write": 3}
        now[0] += 1
    now[0] += 10
    assert watch.until_now() == {"write": 4}


@pytest.mark.parametrize(
    ("clock", "used", "passed"),
    [(9.0, 9.0, False), (11.0, 5.0, False), (11.0, 11.0, True), (10.0 * BUSY + 1, 5.0, True)],
)
def test_a_busy_machine_takes_no_budget_away(clock: float, used: float, passed: bool) -> None:
    times = [iter((0.0, clock)), iter((0.0, used))]
    deadline = Deadline(10.0, *(lambda t=t: next(t) for t in times))  # type: ignore[misc]
    assert deadline.passed() is passed
