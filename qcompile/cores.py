"""How work that nobody times is spread over the cores: several samples at once, each on its own thread.

An inference on two threads takes more than half of its time on one (PP-OCRv4 recognition, gated: 14 ms
against 20), two inferences beside each other do not. And what one thread computes is the same bits
whatever the number of cores.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

__all__ = ["Crew", "cores"]

MOST = 4
"""Inferences beside each other at most: each one holds tensors of its own."""

T = TypeVar("T")
R = TypeVar("R")


def cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class Crew:
    """Threads that run inferences beside each other.

    Attributes:
        workers: how many.
        threads: inside each one's operators.
        at_once: acts that are worth handing over together.
    """

    def __init__(self, threads: int | None, *, alone: bool = False) -> None:
        """Divide ``threads`` (None: all cores) among workers; ``alone`` is one with all of them."""
        given = cores() if threads is None else threads
        self.workers = 1 if alone else max(1, min(MOST, given))
        self.threads = threads if alone else max(1, given // self.workers)
        # of acts that take one to three inferences, so many that nobody waits long for the others
        self.at_once = 1 if self.workers == 1 else 4 * self.workers
        self._pool = ThreadPoolExecutor(self.workers) if self.workers > 1 else None

    def map(self, act: Callable[[T], R], over: Iterable[T]) -> list[R]:
        """``act`` on each, in order."""
        if self._pool is None:
            return [act(one) for one in over]
        return list(self._pool.map(act, over))
