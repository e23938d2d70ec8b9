"""A clock that nothing but the timed models moves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from qcompile.enough import Enough
from qcompile.interleave import interleave


class Clock:
    """Nanoseconds that only advance when something runs."""

    def __init__(self) -> None:
        self.now = 0

    def __call__(self) -> int:
        return self.now

    def runner(self, ns: Callable[[int], int]) -> Callable[[int], None]:
        def run(index: int) -> None:
            self.now += ns(index)

        return run


def timed(
    clock: Clock,
    names: Sequence[str],
    open_one: Callable[[str], Callable[[int], Any]],
    **options: Any,
) -> dict[str, Any]:
    """What timing finds; the first name is the base."""
    given: dict[str, Any] = {"feeds": 1, "together": False, "budget_s": 60.0, "enough": Enough()}
    given |= {"progress": lambda _: None, "clock": clock, **options}
    return interleave(names, open_one, **given)
