"""Turn units of a plan to float, the ones that help most first, measured with all others in place.

Sensitivities of single units ignore what units do together. Starting from the plan that is wanted,
this looks at the plan itself: each step tries the most promising units and keeps the best.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from qcompile.ir.plan import FLOAT
from qcompile.planner.gated_session import GatedSession

__all__ = ["RepairStep", "repair"]


@dataclass(frozen=True)
class RepairStep:
    """One unit turned to float, and the plan's measured error afterwards."""

    origin: str
    error: float


def repair(
    session: GatedSession,
    start: Mapping[str, str],
    max_error: float,
    *,
    worth: Mapping[str, float] | None = None,
    cost_ns: Mapping[str, int] | None = None,
    tries: int = 8,
    samples: int | None = None,
    keep: frozenset[str] = frozenset(),
    search_time: float | None = None,
    progress: Callable[[RepairStep], None] | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> tuple[RepairStep, ...]:
    """Steps that bring a plan's measured error to ``max_error`` or as near as time allows.

    Args:
        session: the gated session.
        start: labels of the plan.
        max_error: relative error energy to reach.
        worth: expected error of each unit (its sensitivity); decides which are tried first.
        cost_ns: what turning each unit to float costs; the step with the best error saved per
            nanosecond is taken, without it the step that saves most.
        tries: candidates measured a step.
        samples: use only the first ones.
        keep: origins that must not change (pinned ones).
        search_time: seconds.
        progress: called with each step taken.
        clock: seconds, for tests.
    """
    begun = clock()

    def late() -> bool:
        return search_time is not None and clock() - begun > search_time

    labels = dict(start)
    error = session.evaluate_plan(labels, samples=samples)
    expected = dict(worth or {})
    steps: list[RepairStep] = []
    useless: set[str] = set()
    while error > max_error and not late():
        able = [
            name
            for name in session.gates
            if labels.get(name, FLOAT) != FLOAT and name not in keep and name not in useless
        ]
        if not able:
            break
        able.sort(key=lambda name: -expected.get(name, 0.0) / _price(cost_ns, name))
        tried: list[tuple[float, float, str]] = []
        for name in able[:tries]:
            if late():
                break
            after = session.evaluate_plan({**labels, name: FLOAT}, samples=samples)
            # What was learned orders the next step's candidates.
            expected[name] = max(error - after, 0.0)
            tried.append(((error - after) / _price(cost_ns, name), after, name))
        gains = [one for one in tried if one[0] > 0]
        if not gains:
            useless.update(name for _, _, name in tried)
            continue
        _, error, name = max(gains, key=lambda one: one[0])
        labels[name] = FLOAT
        useless.clear()
        steps.append(RepairStep(name, error))
        if progress is not None:
            progress(steps[-1])
    return tuple(steps)


def _price(cost_ns: Mapping[str, int] | None, name: str) -> float:
    return 1.0 if cost_ns is None else float(max(1, cost_ns.get(name, 1)))
