"""Plans within a size: stored bytes get a price in nanoseconds, which rises until the limit is kept.

A layer's weights take four bytes an element in float and one in integers, whatever other layers do,
so a price on them only changes what each label of a site costs: for every price one minimum cut is
still the optimum. The smallest plan of all is found the same way, with bytes in place of time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from qcompile.ir.errors import BudgetError
from qcompile.ir.plan import FLOAT
from qcompile.planner.energy import Energy
from qcompile.planner.problem import LABELS, Problem
from qcompile.planner.sweep import PlanPoint, solve_budget

__all__ = ["solve_sized", "stored_bytes"]

_STEPS = 8
"""Halvings of the price: the fastest plan found is within some percent of the exact price's."""


def stored_bytes(problem: Problem, labels: Mapping[str, str]) -> int:
    """Bytes of the weights of all sites under ``labels``."""
    return sum(
        n.float_bytes if labels[n.origin] == FLOAT else n.integer_bytes for n in problem.nodes
    )


def solve_sized(
    problem: Problem,
    max_bytes: int | None,
    *,
    max_error: float | None = None,
    max_latency_ns: int | None = None,
) -> PlanPoint:
    """The best plan within a budget whose weights take ``max_bytes`` at most; see ``solve_budget``.

    Where a plan of that size (and error) exists one is returned; that it is the fastest is a
    heuristic, since two limits at once have no exact price.

    Raises:
        BudgetError: no plan keeps the limits; the text names the nearest one.
    """
    if max_bytes is None:
        return solve_budget(problem, max_error=max_error, max_latency_ns=max_latency_ns)
    error = float("inf") if max_error is None and max_latency_ns is None else max_error
    best = solve_budget(problem, max_error=error, max_latency_ns=max_latency_ns)
    if stored_bytes(problem, best.labels) <= max_bytes:
        return best
    smallest = _smallest(problem, max_bytes, error)
    kept = [_in(problem, smallest)]
    low, high = 0.0, None
    everything = problem.base_ns + sum(n.float_ns for n in problem.nodes)
    price = max(1.0, everything) / max(1, sum(n.float_bytes for n in problem.nodes))
    for _ in range(_STEPS):
        limit = None if max_latency_ns is None else max_latency_ns + round(price * max_bytes)
        try:
            trial = solve_budget(_priced(problem, price), max_error=error, max_latency_ns=limit)
        except BudgetError:
            low = price
        else:
            found = _in(problem, trial)
            if stored_bytes(problem, found.labels) <= max_bytes:
                kept.append(found)
                high = price
            else:
                low = price
        price = price * 8 if high is None else (low + high) / 2
    if max_latency_ns is None:
        return min(kept, key=lambda p: (p.latency_ns, p.error))
    within = [p for p in kept if p.latency_ns <= max_latency_ns]
    if not within:
        fastest = min(p.latency_ns for p in kept)
        raise BudgetError(
            f"no plan found has weights within {max_bytes / 1e6:.3f} MB and runs within "
            f"{max_latency_ns / 1e6:.3f} ms: the fastest of that size is predicted at "
            f"{fastest / 1e6:.3f} ms; allow more of one of them"
        )
    return min(within, key=lambda p: (p.error, p.latency_ns))


def _in(problem: Problem, point: PlanPoint) -> PlanPoint:
    """A priced problem's plan as the problem itself counts it."""
    energy = Energy(problem)
    labels = np.array([LABELS.index(point.labels[n.origin]) for n in problem.nodes], np.int8)
    return PlanPoint(point.labels, energy.total_ns(labels), energy.total_error(labels), "flips")


def _smallest(problem: Problem, max_bytes: int, error: float | None) -> PlanPoint:
    """The plan that stores least, of those within ``error``.

    Raises:
        BudgetError: even that one is too large.
    """
    nodes = tuple(
        replace(
            n,
            float_ns=n.float_bytes,
            int_ns=None if n.int_ns is None else n.integer_bytes,
            dynamic_ns=None if n.dynamic_ns is None else n.integer_bytes,
        )
        for n in problem.nodes
    )
    tensors = tuple(replace(t, quantize_ns=0, dequantize_ns=0) for t in problem.tensors)
    bytes_alone = Problem(nodes, tensors, problem.ties)
    found = solve_budget(bytes_alone, max_error=float("inf") if error is None else error)
    if found.latency_ns > max_bytes:
        what = "" if error in (None, float("inf")) else f" with an error below {error:.3g}"
        raise BudgetError(
            f"no plan{what} has weights within {max_bytes / 1e6:.3f} MB: the smallest has "
            f"{found.latency_ns / 1e6:.3f} MB, with every layer integer that may be; allow more"
        )
    return found


def _priced(problem: Problem, ns_per_byte: float) -> Problem:
    def price(ns: int | None, stored: int) -> int | None:
        return None if ns is None else ns + round(ns_per_byte * stored)

    return replace(
        problem,
        nodes=tuple(
            replace(
                n,
                float_ns=n.float_ns + round(ns_per_byte * n.float_bytes),
                int_ns=price(n.int_ns, n.integer_bytes),
                dynamic_ns=price(n.dynamic_ns, n.integer_bytes),
            )
            for n in problem.nodes
        ),
    )
