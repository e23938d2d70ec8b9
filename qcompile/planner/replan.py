"""Meets an error budget as measured, not as predicted: solve, measure, tighten or loosen, again."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import inf, sqrt

from qcompile.ir.errors import BudgetError
from qcompile.planner.problem import Problem
from qcompile.planner.sizing import solve_sized
from qcompile.planner.sweep import PlanPoint

__all__ = ["Trial", "solve_measured"]


_CLOSE = 1.05
"""Limits within this ratio buy the same plan, nearly."""

_TINY = 1e-30


@dataclass(frozen=True)
class Trial:
    """One plan that was looked at.

    Attributes:
        point: the plan and what was predicted.
        limit: the error limit that the planner was given.
        measured: the error that was measured.
    """

    point: PlanPoint
    limit: float
    measured: float


def solve_measured(
    problem: Problem,
    measure: Callable[[Mapping[str, str]], float],
    max_error: float,
    *,
    max_bytes: int | None = None,
    tries: int = 8,
    least: int = 1,
    seen: dict[tuple[tuple[str, str], ...], float] | None = None,
    search_time: float | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> tuple[Trial | None, tuple[Trial, ...]]:
    """The fastest plan found whose *measured* error keeps the limit, and all that were tried.

    Errors of units are not quite additive (a softmax behind them makes them more than that), and they
    are summed over the outputs where the limit is about the worst one. So the limit given to the
    planner is moved until measurement and limit agree: by the ratio of the two, or by bisection of
    its logarithm where that leaves what is known. The fastest plan comes first.

    Args:
        problem: sites, tensors, costs, sensitivities.
        measure: error of labels, usually ``GatedSession.worst_error``.
        max_error: relative error energy to keep.
        max_bytes: what all sites' weights may take.
        tries: plans looked at, at most.
        least: plans that are measured whatever time they take: one measurement of a large model may
            take longer than ``search_time``, and the first plan is the fastest, which rarely keeps a limit.
        seen: measurements that are known, by plan; filled.
        search_time: seconds.
        clock: seconds, for tests.
    """
    start = clock()
    trials: list[Trial] = []
    seen = {} if seen is None else seen
    made = 0

    def attempt(limit: float) -> Trial:
        nonlocal made
        point = solve_sized(problem, max_bytes, max_error=limit)
        key = tuple(point.labels.items())
        if key not in seen:
            seen[key] = measure(point.labels)
            made += 1
        trials.append(Trial(point, limit, seen[key]))
        return trials[-1]

    try:
        last = attempt(inf)  # the fastest plan of all
    except BudgetError:  # none is that small
        return None, ()
    if last.measured > max_error:
        low, high = 0.0, last.point.error
        limit = _within(max_error * _ratio(last), low, high)
        while len(trials) < tries and high > low * _CLOSE:
            late = search_time is not None and clock() - start > search_time
            if late and made >= least:
                break
            try:
                last = attempt(limit)
            except BudgetError:  # pinned sites alone cause more than this limit
                low = limit
                limit = _within(high, low, high)
                continue
            if last.measured <= max_error:
                low = limit
            else:
                high = limit
            if last.point.error == 0.0:
                break
            limit = _within(max_error * _ratio(last), low, high)
    kept = [t for t in trials if t.measured <= max_error]
    best = min(kept, key=lambda t: (t.point.latency_ns, t.measured)) if kept else None
    return best, tuple(trials)


def _ratio(trial: Trial) -> float:
    """Predicted over measured error."""
    return max(trial.point.error, _TINY) / max(trial.measured, _TINY)


def _within(guess: float, low: float, high: float) -> float:
    """``guess`` when it halves the interval at least a little, else its geometric middle."""
    if low * 1.02 < guess < high * 0.98:
        return guess
    return sqrt(low * high) if low > 0 else high / 8
