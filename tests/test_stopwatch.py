"""Seconds by name: repeats add up, inner blocks are not counted twice, errors end a block."""

from __future__ import annotations

import pytest

from qcompile.stopwatch import Stopwatch


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
