"""Where the time of a compile goes, by name."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["Deadline", "Stopwatch"]

BUSY = 4.0
"""How many times as long as its budget work may take on a machine that is busy with other things."""


class Deadline:
    """The end of a budget of seconds, of which other processes take as little as possible.

    It passes when the clock and the processor time of this process have both used the budget up: what is
    learned should not depend on what else runs. The clock alone ends it after ``BUSY`` budgets.
    """

    def __init__(
        self,
        seconds: float,
        clock: Callable[[], float] = time.perf_counter,
        used: Callable[[], float] = time.process_time,
    ) -> None:
        self._seconds, self._clock, self._used = seconds, clock, used
        self._start = clock(), used()

    def passed(self) -> bool:
        """Whether the budget is used up."""
        by_clock = self._clock() - self._start[0]
        by_use = self._used() - self._start[1]
        return by_clock > self._seconds and (
            by_use > self._seconds or by_clock > BUSY * self._seconds
        )


class Stopwatch:
    """Adds up the seconds of named blocks; a block within another counts for itself alone.

    Attributes:
        seconds: name -> seconds, in the order of the first use.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.seconds: dict[str, float] = {}
        self._clock = clock
        self._open: list[str] = []
        self._since = 0.0

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Time a block."""
        self._book()
        self._open.append(name)
        self.seconds.setdefault(name, 0.0)
        try:
            yield
        finally:
            self._book()
            self._open.pop()

    def until_now(self) -> dict[str, float]:
        """The seconds so far, those of blocks still open included."""
        self._book()
        return dict(self.seconds)

    def _book(self) -> None:
        now = self._clock()
        if self._open:
            self.seconds[self._open[-1]] += now - self._since
        self._since = now
